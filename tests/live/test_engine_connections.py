"""Connections: how they open, how they fail, what is sent again."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.domain.verdict import judge
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.foreign_programs import Flags, Kind, foreign
from tests.live.hidden_events import TRIES, counts_of
from tests.live.measuring import CLIENT, SERVER, account_for, assert_all_left, both, count, measure
from tests.live.netfilter import load_rules
from tests.live.pods import Namespace, Pod, inside_cgroup
from tests.live.sockets import (
    connect,
    connection,
    everything_in,
    inside,
    listen,
    read_all,
    sent_again,
    tcp_figures,
    udp_socket,
)

Start = Callable[..., KernelEngine]
ROUND_TRIP_US = struct.Struct("=68xI")  # tcpi_rtt, linux/tcp.h

DROP_PORT_9 = """
table inet silent {
  chain input {
    type filter hook input priority 0;
    tcp dport 9 drop
  }
}
"""
REJECT_PORT_9 = """
table inet rejecting {{
  chain input {{
    type filter hook input priority 0;
    tcp dport 9 reject with icmpx type {}
  }}
}}
"""
DROP_EVERY_TENTH_REQUEST = """
table inet lossy {
  chain input {
    type filter hook input priority 0;
    tcp dport 7000 tcp flags & psh == psh numgen inc mod 10 == 5 drop
  }
}
"""
CONNECT = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family) as s:
    s.settimeout(float(sys.argv[3]) or None)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
    except OSError as error:
        print(error.errno or 0)
"""

pytestmark = pytest.mark.shared_programs


def connect_from(pod: Pod, address: str, port: int, timeout: float = 0) -> int:
    """Connect from inside a pod; returns the errno (0 for a time-out of our own)."""
    join = f"echo $$ > {pod.cgroup}/cgroup.procs && exec ip netns exec {pod.namespace.name}"
    done = subprocess.run(
        [
            *("sh", "-c", f'{join} "$@"', "sh", sys.executable, "-c", CONNECT),
            *(address, str(port), str(timeout)),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return int(done.stdout)


async def measure_connect(
    engine: KernelEngine, pod: Pod, address: str, port: int, patience: float = 0
) -> tuple[int, Measurement]:
    engine.read()
    error = connect_from(pod, address, port, patience)
    return error, engine.read().get(CLIENT, NOTHING)


async def counters_of_connect(
    engine: KernelEngine, pod: Pod, address: str, error: int, *names: str
) -> Mapping[str, int]:
    """The counters of a connect that ends with this error, by a timer, which may be hidden."""
    for _ in TRIES:
        ended, measured = await measure_connect(engine, pod, address, 9)
        assert ended == error
        assert "tcp.connect" not in measured.stages
        if measured.counters.keys() >= set(names):
            return measured.counters
    raise AssertionError(f"{names} were never all seen")


@pytest.mark.every_kernel
async def test_both_ends_of_a_connection_are_timed(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    measured, _ = await measure(engine, client, server, 10)
    assert count(measured[CLIENT], "tcp.connect") == 1
    assert count(measured[SERVER], "tcp.handshake") == 1
    assert "tcp.handshake" not in measured[CLIENT].stages
    assert count(measured[CLIENT], "tcp.rtt") >= 10


def round_trip_ns(end: socket.socket) -> int:
    """The kernel's own estimate: right after a connect, the time from the SYN to its answer."""
    info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ROUND_TRIP_US.size)
    (round_trip_us,) = ROUND_TRIP_US.unpack(info)
    return int(round_trip_us) * 1000


async def test_connect_time_is_the_wait_of_the_application(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    host.execute(
        *("tc", "qdisc", "add", "dev", "veth1", "root", "tbf"),
        *("rate", "16kbit", "burst", "200", "latency", "10s"),
    )
    engine = await both(start_engine, client, server, host_netns=host.inode)
    with (
        listen(server.namespace, server.address),
        udp_socket(server.namespace, server.address, 7001),
        udp_socket(client.namespace) as ahead,
        inside_cgroup(client.cgroup),
    ):

        def connect_behind_datagrams() -> tuple[Histogram, int, int]:
            # some 100 bytes each, at 2 kB/s: the SYN waits behind them
            for _ in range(15):
                ahead.sendto(bytes(64), (server.address, 7001))
            began_ns = time.monotonic_ns()
            with connect(client.namespace, server.address) as asking:
                waited_ns = time.monotonic_ns() - began_ns
                answered_ns = round_trip_ns(asking)
            measured = engine.read().get(CLIENT, NOTHING).stage("tcp.connect")
            return measured.histogram, answered_ns, waited_ns

        # The queue's timer has the SYN leave.
        tries = (connect_behind_datagrams() for _ in TRIES)
        measured, answered_ns, waited_ns = next(each for each in tries if each[0].count)
    assert measured.count == 1
    assert 100_000_000 < answered_ns <= measured.max_ns <= waited_ns


@pytest.mark.every_kernel
async def test_a_refused_connect_is_a_count_and_no_sample(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    error, measured = await measure_connect(engine, client, server.address, 9)
    assert error == errno.ECONNREFUSED
    connects = {"connectCalls": 1, "connectsSent": 1}
    assert measured.counters == {**connects, "connectRefused": 1, "resetsReceived": 1}
    assert "tcp.connect" not in measured.stages


def rejected(client: Pod, address: str, patience: float | None) -> int:
    """Connect to a port that a rule rejects; return the error."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside_cgroup(client.cgroup), inside(client.namespace), socket.socket(family) as asking:
        asking.settimeout(patience)
        return asking.connect_ex((address, 9))


@pytest.mark.every_kernel
@pytest.mark.parametrize(
    ("message", "error", "name"),
    [
        ("port-unreachable", errno.ECONNREFUSED, "connectRejected"),
        ("host-unreachable", errno.EHOSTUNREACH, "connectUnreachable"),
    ],
)
async def test_a_connect_that_an_error_of_icmp_ends_is_counted_by_it(
    start_engine: Start, pair: tuple[Pod, Pod], message: str, error: int, name: str
) -> None:
    """Whether connect() waits, or the error finds its socket in it: then SO_ERROR takes it."""
    client, server = pair
    engine = await both(start_engine, client, server)
    rates = ("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
    server.namespace.execute("sysctl", "-qw", *rates)
    load_rules(server, REJECT_PORT_9.format(message))
    addresses = (server.address, server.address6)
    for address, patience in itertools.product(addresses, (5.0, None)):
        engine.read()
        assert rejected(client, address, patience) == error
        counters = engine.read()[CLIENT].counters
        assert counters[name] == 1
        assert "connectAborted" not in counters
        assert "connectRefused" not in counters


@pytest.mark.every_kernel
async def test_a_connect_without_a_local_port_is_a_call_that_is_not_sent(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    client.namespace.execute("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40001")
    engine.read()
    with listen(server.namespace, server.address), inside_cgroup(client.cgroup):
        with inside(client.namespace):
            sockets = [socket.socket() for _ in range(6)]
        errors = [each.connect_ex((server.address, 7000)) for each in sockets]
        for each in sockets:
            each.close()
    assert errors == [0, 0, *[errno.EADDRNOTAVAIL] * 4]
    counters = engine.read()[CLIENT].counters
    calls, sent = counters["connectCalls"], counters["connectsSent"]
    assert calls - sent == 4
    assert "connectAborted" not in counters


async def test_a_connect_that_a_program_of_another_refuses_is_a_call_that_is_not_sent(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    with foreign(Kind.CONNECT4, answer=0) as refusing:
        refusing.attach(client.cgroup, Flags.MULTI)
        engine.read()
        with inside_cgroup(client.cgroup), inside(client.namespace), socket.socket() as asking:
            assert asking.connect_ex((server.address, 7000)) == errno.EPERM
    assert engine.read()[CLIENT].counters == {"connectCalls": 1}


async def test_a_connect_without_a_route_is_a_call_that_is_not_sent(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    engine.read()
    with inside_cgroup(client.cgroup), inside(client.namespace), socket.socket() as asking:
        assert asking.connect_ex(("203.0.113.1", 7000)) == errno.ENETUNREACH
    with inside_cgroup(client.cgroup), inside(client.namespace):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with datagrams:
        datagrams.connect((server.address, 7000))  # is no connect of TCP
    counters = engine.read()[CLIENT].counters
    assert counters == {"connectCalls": 1}


async def test_a_connect_without_an_answer_is_counted_by_cause(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    load_rules(server, DROP_PORT_9)
    client.namespace.execute("sysctl", "-qw", "net.ipv4.tcp_syn_retries=1")
    linear = "/proc/sys/net/ipv4/tcp_syn_linear_timeouts"  # 6.5+
    client.namespace.execute("sh", "-c", f"test ! -e {linear} || echo 0 > {linear}")
    given_up, measured = await measure_connect(engine, client, server.address, 9, patience=0.3)
    assert given_up == 0
    assert measured.counters["connectAborted"] == 1
    counters = await counters_of_connect(
        engine, client, server.address, errno.ETIMEDOUT, "connectTimedOut", "retransmits"
    )
    assert counters["connectTimedOut"] == 1
    assert counters["retransmits"] >= 1


def give_up(client: Pod, address: str, port: int, seconds: float) -> tuple[int, int]:
    """Connect, wait, and close; the nanoseconds without the calls, and with them."""
    with inside_cgroup(client.cgroup), inside(client.namespace):
        asking = socket.socket()
    asking.setblocking(False)
    before_ns = time.monotonic_ns()
    assert asking.connect_ex((address, port)) == errno.EINPROGRESS
    sent_ns = time.monotonic_ns()
    assert select.select([], [asking], [], seconds) == ([], [], [])
    closing_ns = time.monotonic_ns()
    asking.close()
    return closing_ns - sent_ns, time.monotonic_ns() - before_ns


@pytest.mark.every_kernel
async def test_connects_that_are_given_up_before_the_syn_is_sent_again_have_their_time(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    """The first address of a name does not answer; after 0.25 s the client tries the second one."""
    client, server = pair
    engine = await both(start_engine, client, server)
    load_rules(server, DROP_PORT_9)
    engine.read()
    waited = [give_up(client, server.address, 9, 0.25) for _ in range(6)]
    measured, _ = await measure(engine, client, server, 120)
    least_ns, most_ns = (sum(each) for each in zip(*waited, strict=True))
    counters = measured[CLIENT].counters
    assert counters["connectAborted"] == 6
    assert least_ns <= counters["connectAbortedNs"] <= most_ns
    assert "connectRetransmits" not in counters


async def test_an_unreachable_peer_is_counted_by_cause(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    counters = await counters_of_connect(
        engine, client, "198.51.100.77", errno.EHOSTUNREACH, "connectUnreachable"
    )
    assert counters["connectUnreachable"] == 1


@pytest.mark.every_kernel
async def test_segments_sent_again_are_counted(start_engine: Start, pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    load_rules(server, DROP_EVERY_TENTH_REQUEST)
    before = sent_again(client.namespace)
    measured, _ = await measure(engine, client, server, 40)
    again = sent_again(client.namespace) - before
    assert again >= 4
    assert measured[CLIENT].counters["retransmits"] in counts_of(again)
    assert_all_left(measured[CLIENT], "tx.total", 40, again)
    assert count(measured[CLIENT], "tx.total") >= 40 + min(counts_of(4))
    # What a timer has sent again may reach the socket unseen: then its bytes are unmatched.
    assert count(measured[SERVER], "rx.total") in counts_of(40)
    assert sum(account_for(measured[SERVER], "rx.socket")) == 40


async def test_acks_that_the_peer_holds_back_are_reported_and_not_as_the_networks(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    """The client reads an answer late, so that its ACK rides on the next request."""
    client, server = pair
    engine = await both(start_engine, client, server)
    slowly = ("--gap-ms", "10")
    measured, _ = await measure(engine, client, server, 150, client_options=slowly)
    round_trips = measured[SERVER].stage("tcp.rtt").histogram
    assert round_trips.percentile(50) > 2_000_000
    assert round_trips.count >= measured[SERVER].counters["delayedAcks"] > round_trips.count / 2
    assert judge(measured[SERVER]).bottleneck is not Bottleneck.NETWORK


@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_segment_that_still_waits_in_our_queue_is_not_sent_again(
    start_engine: Start, pair: tuple[Pod, Pod], typed: bool
) -> None:
    client, server = pair
    engine = start_engine(typed=typed)
    engine.assign({CLIENT: everything_in(client)})
    await engine.use(frozenset(DEFAULT_MODULES))
    # 2 kB/s: after the first, a segment leaves each half second, and TCP asks sooner
    client.namespace.execute(
        *("tc", "qdisc", "add", "dev", "eth0", "root", "tbf"),
        *("rate", "16kbit", "burst", "2000", "latency", "10s"),
    )
    with connection(client.namespace, server.namespace, server.address) as ends:
        for _ in range(5):
            ends.client.sendall(bytes(1000))
        read_all(ends.server, 5000)
    truth = tcp_figures(client.namespace)
    # What still waits goes with its queue, else it leaves while the next test measures.
    client.namespace.execute("tc", "qdisc", "del", "dev", "eth0", "root")
    assert truth["TCPSpuriousRtxHostQueues"] > 0
    counted = engine.read()[CLIENT].counters.get("retransmits", 0)
    assert counted in counts_of(truth["RetransSegs"])
