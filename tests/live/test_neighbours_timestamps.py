"""What others see of packets is the same with and without our programs: times, marks, priorities.

The structure is compared: which time-stamps come, and in which order. No duration is.
"""

from __future__ import annotations

import errno
import json
import re
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import pytest

from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, count
from tests.live.netfilter import load_rules
from tests.live.pods import Namespace, Pod, run
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    connection,
    everything_in,
    read_all,
    udp_socket,
)
from tests.live.taps import tap

Start = Callable[..., KernelEngine]
Bridged = tuple[Namespace, Pod, Pod]
PACKETS = 10
# include/uapi/asm-generic/socket.h
SO_TIMESTAMPNS, SO_TIMESTAMPING, SO_MAX_PACING_RATE, SO_RCVMARK = 35, 37, 47, 75
# include/uapi/linux/net_tstamp.h: SOF_TIMESTAMPING_*
TX_SOFTWARE, RX_SOFTWARE, SOFTWARE, OPT_ID = 1 << 1, 1 << 3, 1 << 4, 1 << 7
TX_SCHED, TX_ACK, OPT_TSONLY = 1 << 8, 1 << 9, 1 << 11
SENT = TX_SCHED | TX_SOFTWARE | TX_ACK | SOFTWARE | OPT_ID | OPT_TSONLY
# include/uapi/linux/errqueue.h: struct sock_extended_err, and its ee_info for time-stamps
EXTENDED_ERROR = struct.Struct("=IBBBBII")
ORIGIN_TIMESTAMPING = 4
TX_STAMPS = {1: "scheduled", 0: "sent", 2: "acknowledged"}
TIMESPEC = struct.Struct("=qq")
TCP_INFO_RATES = struct.Struct("=104xQQ")  # tcpi_pacing_rate and its maximum, linux/tcp.h
ETH_P_IP, PROTOCOL_PLACE, UDP_HEADERS = 0x800, 14 + 9, 14 + 20 + 8  # with Ethernet and IPv4
HOST = SERVER + 1
MARK, PRIORITY, RATE = 42, 0x10005, 50_000_000


@dataclass(frozen=True, slots=True)
class Stamped:
    """What others learn of one packet's times, in the order of those times."""

    sent: tuple[str, ...]
    is_received: bool


Seen = TypeVar("Seen")


def stamped_datagrams(sender: Namespace, server: Pod, wanted: int) -> list[Stamped]:
    """Datagrams whose sender and receiver ask for their times, `wanted` of each that is sent."""
    seen = []
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(sender, family=socket.AF_INET) as sending,
    ):
        sending.connect((server.address, PORT))
        stamp_arrivals(sending, reading)
        sending.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SENT)
        for _ in range(PACKETS):
            sending.send(b"d")
            is_received = is_stamped(reading)
            seen.append(Stamped(stamps(sending, wanted), is_received))
        assert stamps(sending, 0) == ()
    return seen


def stamped_segments(sender: Namespace, server: Pod, wanted: int) -> list[Stamped]:
    """The same of a connection, where the acknowledgement has its time, too."""
    seen = []
    with connection(sender, server.namespace, server.address) as ends:
        stamp_arrivals(ends.client, ends.server)
        ends.client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SENT)
        for _ in range(PACKETS):
            ends.client.sendall(b"q" * 100)
            is_received = is_stamped(ends.server)
            seen.append(Stamped(stamps(ends.client, wanted), is_received))
        assert stamps(ends.client, 0) == ()
    return seen


def stamp_arrivals(sending: socket.socket, reading: socket.socket) -> None:
    """Have arrivals stamped. The kernel begins some time after it was asked to: netstamp_work."""
    reading.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE | SOFTWARE)
    deadline = time.monotonic() + PATIENCE_SECONDS
    sending.send(b"w")
    while not is_stamped(reading):
        assert time.monotonic() < deadline, "no arrival is stamped"
        sending.send(b"w")


def is_stamped(reading: socket.socket) -> bool:
    """Read one message: true if its arrival has a time."""
    _, ancillary, _, _ = reading.recvmsg(1 << 10, 1 << 10)
    return any(time_of(data) for _, kind, data in ancillary if kind == SO_TIMESTAMPING)


def time_of(data: bytes) -> int:
    """The software time, in nanoseconds: the first of struct scm_timestamping."""
    seconds, nanoseconds = TIMESPEC.unpack(data[: TIMESPEC.size])
    return int(seconds * 1_000_000_000 + nanoseconds)


def stamps(sending: socket.socket, wanted: int) -> tuple[str, ...]:
    """As many times of packets that were sent, and those that are there beyond them."""
    found: list[tuple[int, int, str]] = []
    poll = select.poll()
    poll.register(sending, 0)  # POLLERR is always reported
    deadline = time.monotonic() + PATIENCE_SECONDS
    while poll.poll(0) or len(found) < wanted:
        assert time.monotonic() < deadline, f"{len(found)} of {wanted} times came: {found}"
        if poll.poll(100):
            found.append(next_stamp(sending))
    return tuple(name for _, _, name in sorted(found))


def next_stamp(sending: socket.socket) -> tuple[int, int, str]:
    """Its time, its rank among equal ones, and its name."""
    _, ancillary, _, _ = sending.recvmsg(0, 1 << 10, socket.MSG_ERRQUEUE)
    stamp_ns, kind = 0, -1
    for level, type_, data in ancillary:
        if (level, type_) == (socket.SOL_SOCKET, SO_TIMESTAMPING):
            stamp_ns = time_of(data)
        else:
            code, origin, _, _, _, kind, _ = EXTENDED_ERROR.unpack(data[: EXTENDED_ERROR.size])
            assert (code, origin) == (errno.ENOMSG, ORIGIN_TIMESTAMPING)
    return stamp_ns, list(TX_STAMPS).index(kind), TX_STAMPS[kind]


def tapped(host: Namespace, client: Pod, server: Pod) -> list[tuple[str, int, int, list[bool]]]:
    """Device, direction and number of each datagram that tcpdump sees, and if it has a time."""
    seen = []
    with (
        tap(host, with_times) as packets,
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace, family=socket.AF_INET) as sending,
    ):
        for number in range(PACKETS):
            sending.sendto(number.to_bytes(4, "big"), (server.address, PORT))
            reading.recv(10)
        packets.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                frame, ancillary, _, (device, protocol, direction, *_) = packets.recvmsg(
                    1 << 11, 1 << 10
                )
                if protocol != ETH_P_IP or frame[PROTOCOL_PLACE] != socket.IPPROTO_UDP:
                    continue
                times = [data for _, kind, data in ancillary if kind == SO_TIMESTAMPNS]
                number = int.from_bytes(frame[UDP_HEADERS : UDP_HEADERS + 4], "big")
                seen.append((device, direction, number, [time_of(each) > 0 for each in times]))
    return seen


def with_times(packets: socket.socket) -> None:
    """Ask for the time of each packet, as tcpdump does without a ring."""
    packets.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


@dataclass(frozen=True, slots=True)
class Marked:
    """The marks and the priority that others saw: how often, and the marks at the receiver."""

    marked: int
    prioritised: int
    received_marks: tuple[int, ...]


MARK_RULES = {
    "sender": f"""
table inet marks {{
  counter marked {{ }}
  chain output {{
    type filter hook output priority 0;
    udp dport {PORT} meta mark {MARK} counter name marked
  }}
}}
""",
    "receiver": f"""
table inet marks {{
  chain arriving {{
    type filter hook prerouting priority 0;
    udp dport {PORT} meta mark set {MARK + 1}
  }}
}}
""",
}


def prepare_marks(client: Pod, server: Pod) -> None:
    """Rules that count and set marks; a queueing discipline with a class for the priority."""
    load_rules(client, MARK_RULES["sender"])
    load_rules(server, MARK_RULES["receiver"])
    tc = ("tc", "-n", client.namespace.name)
    run(*tc, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1")
    for number in ("1:1", "1:5"):
        run(
            *(*tc, "class", "add", "dev", "eth0", "parent", "1:", "classid", number),
            *("htb", "rate", "10gbit", "quantum", "10000"),
        )


def marked(client: Pod, server: Pod) -> Marked:
    """Datagrams with a mark and a priority."""
    before = counted(client)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace, family=socket.AF_INET) as sending,
    ):
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY)
        reading.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
        received = []
        for _ in range(PACKETS):
            sending.sendto(b"d", (server.address, PORT))
            _, ancillary, _, _ = reading.recvmsg(10, 1 << 10)
            received += [
                int.from_bytes(data, sys.byteorder)
                for level, kind, data in ancillary
                if (level, kind) == (socket.SOL_SOCKET, socket.SO_MARK)
            ]
    after = counted(client)
    return Marked(after[0] - before[0], after[1] - before[1], tuple(received))


def counted(client: Pod) -> tuple[int, int]:
    """Packets that had the mark, and those in the class of the priority."""
    inside = ("ip", "netns", "exec", client.namespace.name)
    counters = output(*inside, "nft", "-j", "list", "counters")
    (marks,) = (row["counter"] for row in json.loads(counters)["nftables"] if "counter" in row)
    classes = output(*inside, "tc", "-s", "class", "show", "dev", "eth0", "classid", "1:5")
    found = re.search(r"Sent \d+ bytes (\d+) pkt", classes)
    assert found is not None, classes
    return marks["packets"], int(found[1])


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def paced(client: Pod, server: Pod) -> tuple[int, bool, int]:
    """The largest rate that TCP was told, whether it paces, within that; and what came."""
    amount = 1 << 20
    with connection(client.namespace, server.namespace, server.address) as ends:
        ends.client.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, RATE)
        with ThreadPoolExecutor(1) as executor:
            sending = executor.submit(ends.client.sendall, b"p" * amount)
            read_all(ends.server, amount)
            sending.result()
        info = ends.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_RATES.size)
        rate, most = TCP_INFO_RATES.unpack(info)
        return most, 0 < rate <= most, amount


async def without_and_with(
    start: Start, bridged: Bridged, observe: Callable[[], Seen], *, on_devices: bool = False
) -> tuple[Seen, Seen]:
    """What is observed while nothing is attached, and while both pods and the host are targets.

    `on_devices`: the pods alone, by programs on devices.
    """
    host, client, server = bridged
    before = observe()
    engine = start(host_netns=host.inode, on_devices=on_devices)
    inode = frozenset({host.inode})
    pods = {CLIENT: everything_in(client), SERVER: everything_in(server)}
    engine.assign(pods if on_devices else {**pods, HOST: SlotSpec(netns_wide=inode, netns=inode)})
    await engine.use(frozenset(DEFAULT_MODULES))
    during = observe()
    assert count(engine.read()[SERVER], "rx.total") >= PACKETS, "they measured these packets"
    return before, during


@pytest.mark.parametrize(
    ("sender", "scheduled"),
    [("pod", ("scheduled",)), ("host", ("scheduled",) * 2)],  # the host's bridge is a device, too
    ids=["pod", "host"],
)
@pytest.mark.parametrize(
    ("observe", "sent"),
    [(stamped_datagrams, ("sent",)), (stamped_segments, ("sent", "acknowledged"))],
    ids=["UDP", "TCP"],
)
async def test_the_times_that_applications_ask_for_stay(
    start_engine: Start,
    bridged: Bridged,
    *,
    sender: str,
    scheduled: tuple[str, ...],
    observe: Callable[[Namespace, Pod, int], list[Stamped]],
    sent: tuple[str, ...],
) -> None:
    host, client, server = bridged
    place = host if sender == "host" else client.namespace
    times = (*scheduled, *sent)
    before, during = await without_and_with(
        start_engine, bridged, lambda: observe(place, server, len(times))
    )
    assert before == [Stamped(times, is_received=True)] * PACKETS
    assert during == before


@pytest.mark.parametrize(
    ("observe", "times"),
    [
        (stamped_datagrams, ("scheduled", "sent")),
        (stamped_segments, ("scheduled", "sent", "acknowledged")),
    ],
    ids=["UDP", "TCP"],
)
async def test_programs_on_devices_leave_the_times_that_applications_ask_for(
    start_engine: Start,
    bridged: Bridged,
    observe: Callable[[Namespace, Pod, int], list[Stamped]],
    times: tuple[str, ...],
) -> None:
    _, client, server = bridged
    before, during = await without_and_with(
        start_engine,
        bridged,
        lambda: observe(client.namespace, server, len(times)),
        on_devices=True,
    )
    assert during == before == [Stamped(times, is_received=True)] * PACKETS


@pytest.mark.parametrize("on_devices", [False, True], ids=["tracepoints", "devices"])
async def test_tcpdump_sees_the_same_packets_with_a_time_each(
    start_engine: Start, bridged: Bridged, *, on_devices: bool
) -> None:
    host, client, server = bridged
    before, during = await without_and_with(
        start_engine, bridged, lambda: tapped(host, client, server), on_devices=on_devices
    )
    assert {number for _, _, number, _ in before} == set(range(PACKETS))
    assert all(times == [True] for *_, times in before)
    assert during == before


@pytest.mark.parametrize("on_devices", [False, True], ids=["tracepoints", "devices"])
async def test_marks_and_priorities_stay(
    start_engine: Start, bridged: Bridged, *, on_devices: bool
) -> None:
    _, client, server = bridged
    prepare_marks(client, server)
    before, during = await without_and_with(
        start_engine, bridged, lambda: marked(client, server), on_devices=on_devices
    )
    assert before == Marked(PACKETS, PACKETS, (MARK + 1,) * PACKETS)
    assert during == before


@pytest.mark.parametrize("on_devices", [False, True], ids=["tracepoints", "devices"])
async def test_pacing_keeps_its_rate(
    start_engine: Start, bridged: Bridged, *, on_devices: bool
) -> None:
    _, client, server = bridged
    before, during = await without_and_with(
        start_engine, bridged, lambda: paced(client, server), on_devices=on_devices
    )
    assert before == (RATE, True, 1 << 20)
    assert during == before
