"""rx.host and tx.host: a long way through the node, against the kernel's own timestamps."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from latencyprobe.measurement import Measurement
from latencyprobe.stages import DEFAULT_MODULES
from latencyprobe.verdict import Bottleneck, judge
from latencyprobe_agent.kernel.engine import KernelEngine
from tests.live.pods import Namespace, Pod, pods_on_bridge, pods_on_routes
from tests.live.sockets import PORT, everything_in, udp_socket
from tests.live.test_engine_accuracy import CLIENT, RX_PARTS, SERVER, TX_PARTS, account_for
from tests.live.test_engine_paths import send_datagrams
from tests.live.traffic import SO_TIMESTAMPING, SOF_RX_SOFTWARE, SOF_SOFTWARE, TIMESTAMPING
from tests.live.truth import Durations, Moment

Start = Callable[..., KernelEngine]
SOF_TX_SOFTWARE, SOF_OPT_TSONLY = 1 << 1, 1 << 11  # include/uapi/linux/net_tstamp.h
MSG_ERRQUEUE = 0x2000  # include/linux/socket.h
DATAGRAMS = 110
RULES, TIMES = 100_000, 10
MILLISECOND_NS = 1_000_000
# What is for the server is compared with all of the rules, and with all of them again.
LONG_CHAIN = """
table ip long {{
  chain every {{
    {rules}
  }}
  chain forward {{
    type filter hook forward priority 0;
    {jumps}
  }}
}}
"""


@contextmanager
def routed() -> Iterator[tuple[Namespace, Pod, Pod]]:
    """A host that routes between a (client, server) pair."""
    with pods_on_routes(2) as (host, (client, server)):
        yield host, client, server


@contextmanager
def filtering_bridge() -> Iterator[tuple[Namespace, Pod, Pod]]:
    """A host whose bridge shows netfilter what passes between a (client, server) pair."""
    with pods_on_bridge(2) as (host, (client, server)):
        host.execute("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
        yield host, client, server


def lengthen(host: Namespace, address: str) -> None:
    """Have the host's netfilter take its time for what goes to an address."""
    rules = "ip saddr 203.0.113.1 drop\n" * RULES
    jumps = f"ip daddr {address} jump every\n" * TIMES
    host.load_rules(LONG_CHAIN.format(rules=rules, jumps=jumps))


def stamp_ns(receiver: socket.socket, flags: int = 0) -> int:
    """When the kernel saw the packet whose data, or whose report, is received next."""
    _, ancillary, *_ = receiver.recvmsg(64, 512, flags)
    (stamp,) = (data for _, kind, data in ancillary if kind == SO_TIMESTAMPING)
    seconds, nanoseconds, *_ = TIMESTAMPING.unpack(stamp[: TIMESTAMPING.size])
    return int(seconds * 1_000_000_000 + nanoseconds)


def send_one_by_one(client: Pod, server: Pod) -> Durations:
    """Datagrams, each read before the next; how long the kernel had them between the pods."""
    took = Durations()
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        reading.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SOF_RX_SOFTWARE | SOF_SOFTWARE)
        reports = SOF_TX_SOFTWARE | SOF_SOFTWARE | SOF_OPT_TSONLY
        sending.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, reports)
        for _ in range(DATAGRAMS):
            sending.sendto(b"d" * 64, (server.address, PORT))
            received_ns = stamp_ns(reading)
            left_ns = stamp_ns(sending, MSG_ERRQUEUE)  # its driver's: veth_xmit()
            took.add(Moment(left_ns, left_ns), Moment(received_ns, received_ns))
    return took


def assert_is_there_alone(measured: Measurement, stage: str, parts: tuple[str, ...]) -> None:
    """The packets' time is in this one of the parts."""
    held_ns = measured.stage(stage).histogram.percentile(50)
    assert held_ns > MILLISECOND_NS
    for part in set(parts) & measured.stages.keys() - {stage}:
        assert measured.stage(part).histogram.percentile(50) < held_ns / 10, part


@pytest.mark.parametrize("way", [routed, filtering_bridge])
async def test_a_long_netfilter_chain_is_found_on_the_hosts_side_and_nowhere_else(
    start_engine: Start, way: Callable[[], AbstractContextManager[tuple[Namespace, Pod, Pod]]]
) -> None:
    with way() as (host, client, server):
        engine = start_engine(host_netns=host.inode)
        engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
        await engine.use(frozenset(DEFAULT_MODULES))
        # The first one to a neighbour is cloned while its address is asked for, neigh_probe().
        send_datagrams(client.namespace, server.namespace, server.address, 1)
        engine.read()
        lengthen(host, server.address)
        took = send_one_by_one(client, server)
        measured = engine.read()
    for slot, module, parts in ((SERVER, "rx", RX_PARTS), (CLIENT, "tx", TX_PARTS)):
        stage = f"{module}.host"
        assert account_for(measured[slot], stage) == (DATAGRAMS, 0)
        took.assert_are_in(measured[slot].stage(stage).histogram)
        assert_is_there_alone(measured[slot], stage, parts)
        assert judge(measured[slot]).bottleneck is Bottleneck.HOST_PATH
