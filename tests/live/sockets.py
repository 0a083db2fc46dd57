"""Sockets of pods, held by the test itself, so that it says what happens in which order.

A socket belongs for life to the network namespace in which it was made: a thread enters a pod's,
makes one, and goes back.
"""

from __future__ import annotations

import os
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from latencyprobe_agent.kernel.contract import SlotSpec
from tests.live.entering import entered
from tests.live.pods import Namespace, Pod
from tests.patience import patient

PORT = 7000
PATIENCE_SECONDS = patient(20)
SO_MEMINFO = 55  # asm-generic/socket.h; the figures are SK_MEMINFO_* of linux/sock_diag.h
SK_MEMINFO = struct.Struct("=9I")


def inside(namespace: Namespace) -> AbstractContextManager[None]:
    """This thread is in the namespace; the sockets that it makes stay there."""
    return entered(namespace.path)


def everything_in(*pods: Pod) -> SlotSpec:
    """All sockets of these pods' network namespaces."""
    inodes = frozenset(pod.namespace.inode for pod in pods)
    return SlotSpec(netns_wide=inodes, netns=inodes)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def udp_socket(
    namespace: Namespace,
    address: str = "",
    port: int = 0,
    *,
    family: socket.AddressFamily | None = None,
) -> socket.socket:
    """A datagram socket, bound if there is an address."""
    with inside(namespace):
        made = socket.socket(family or family_of(address), socket.SOCK_DGRAM)
    made.settimeout(PATIENCE_SECONDS)
    if address:
        made.bind((address, port))
    return made


def group_member(namespace: Namespace, address: str, group: str) -> socket.socket:
    """A datagram socket at PORT that receives what is sent to an IPv4 multicast group."""
    made = udp_socket(namespace, family=socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", PORT))
    membership = socket.inet_aton(group) + socket.inet_aton(address)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return made


def receive_memory(end: socket.socket) -> tuple[int, int]:
    """(kernel memory of what waits to be read, datagrams dropped so far), SO_MEMINFO."""
    size = SK_MEMINFO.size
    figures = SK_MEMINFO.unpack(end.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, size))
    return figures[0], figures[-1]


def send_unread(
    sending: socket.socket, reading: socket.socket, datagram: bytes, times: int
) -> None:
    """Send as often; returns when each one waits to be read, or was dropped for want of room.

    On a busy machine that is some time after the last one was sent: ksoftirqd delivers them.
    """
    address = reading.getsockname()
    sending.sendto(datagram, address)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (each := receive_memory(reading)[0]):
        assert time.monotonic() < deadline, "the first datagram did not come"
    for _ in range(times - 1):
        sending.sendto(datagram, address)
    while (came := _came(reading, each)) < times:
        assert time.monotonic() < deadline, f"{came} of {times} datagrams came"
        os.sched_yield()


def _came(reading: socket.socket, each: int) -> int:
    waiting, dropped = receive_memory(reading)
    return waiting // each + dropped


def listen(namespace: Namespace, address: str, port: int = PORT) -> socket.socket:
    """A listening socket."""
    with inside(namespace):
        made = socket.create_server(
            (address, port),
            family=family_of(address),
            backlog=1024,
            dualstack_ipv6=address == "::",
        )
    made.settimeout(PATIENCE_SECONDS)
    return made


def connect(namespace: Namespace, address: str, port: int = PORT) -> socket.socket:
    """A connected socket that sends each write at once."""
    with inside(namespace):
        made = socket.create_connection((address, port), timeout=PATIENCE_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


@dataclass(frozen=True, slots=True)
class Connection:
    """Both ends of a TCP connection."""

    client: socket.socket
    server: socket.socket

    def close(self) -> None:
        self.client.close()
        self.server.close()


@contextmanager
def connection(
    client: Namespace,
    server: Namespace,
    address: str,
    *,
    connect_to: str | None = None,
    port: int = PORT,
) -> Iterator[Connection]:
    """A connection from `client` to `address` in `server`."""
    with listen(server, address, port) as listener:
        asking = connect(client, connect_to or address, port)
        with asking:
            answering, _ = listener.accept()
            with answering:
                answering.settimeout(PATIENCE_SECONDS)
                answering.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield Connection(asking, answering)


def waiting_bytes(end: socket.socket) -> int:
    """How much there is to read."""
    answer = bytearray(4)
    ioctl(end.fileno(), termios.FIONREAD, answer)
    return int(struct.unpack("=i", answer)[0])


def bytes_in_queue(end: socket.socket, request: int) -> int:
    """How much there is to send, by this request of linux/sockios.h."""
    answer = bytearray(4)
    ioctl(end.fileno(), request, answer)
    return int(struct.unpack("=i", answer)[0])


def wait_until_acknowledged(end: socket.socket) -> None:
    """Return when the peer has acknowledged all that was sent."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while bytes_in_queue(end, termios.TIOCOUTQ):
        assert time.monotonic() < deadline
        os.sched_yield()


def wait_for_bytes(end: socket.socket, amount: int) -> None:
    """Return when as much is there to read."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (there := waiting_bytes(end)) < amount:
        assert time.monotonic() < deadline, f"{there} of {amount} bytes came"
        os.sched_yield()


SO_PEEK_OFF = 42  # asm-generic/socket.h


def wait_for_byte(end: socket.socket, place: int) -> None:
    """Return when the byte at this place is there to read, in whichever datagram.

    The amount that there is to read is that of the first datagram alone.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    end.setblocking(False)
    while True:
        end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, place)
        with suppress(BlockingIOError):
            end.recv(1, socket.MSG_PEEK)
            break
        assert time.monotonic() < deadline, f"byte {place} did not come"
        os.sched_yield()
    end.settimeout(PATIENCE_SECONDS)


def read_all(end: socket.socket, amount: int, piece: int = 1 << 16) -> int:
    """Read as much in pieces; returns how many reads it took."""
    reads = 0
    while amount:
        amount -= len(end.recv(min(piece, amount)))
        reads += 1
    return reads


def drain(end: socket.socket) -> int:
    """Read what is there; returns how many reads it took."""
    reads = 0
    end.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            end.recv(1 << 16)
            reads += 1
    end.settimeout(PATIENCE_SECONDS)
    return reads


def tcp_figures(namespace: Namespace) -> dict[str, int]:
    """What the kernel counts of TCP in a namespace, by its own names."""
    figures: dict[str, int] = {}
    with inside(namespace):
        for table in ("snmp", "netstat"):
            lines = Path("/proc/thread-self/net", table).read_text().splitlines()
            for names, values in zip(lines[::2], lines[1::2], strict=True):
                if names.startswith("Tcp"):
                    figures |= zip(names.split()[1:], map(int, values.split()[1:]), strict=True)
    return figures


def sent_again(namespace: Namespace) -> int:
    """How many segments the kernel has sent once more: after a halt of the machine, too."""
    return tcp_figures(namespace)["RetransSegs"]


def sent_from(pod: Pod, segments: int) -> range:
    """How often so many segments may have left a pod.

    After a halt of the machine some are sent again, or what has no data: a SYN or a FIN.
    """
    return range(segments, segments + sent_again(pod.namespace) + 1)


def open_between(client: Pod, server: Pod) -> AbstractContextManager[Connection]:
    return connection(client.namespace, server.namespace, server.address)


def exchange(both: Connection, times: int) -> int:
    """Question and answer, one at a time; returns how long the slowest took, in nanoseconds."""
    slowest_ns = 0
    for _ in range(times):
        began_ns = time.monotonic_ns()
        both.client.sendall(b"q" * 64)
        read_all(both.server, 64)
        both.server.sendall(b"r" * 64)
        read_all(both.client, 64)
        slowest_ns = max(slowest_ns, time.monotonic_ns() - began_ns)
    return slowest_ns


def send_datagrams(sender: Namespace, receiver: Namespace, address: str, times: int) -> None:
    """Datagrams, each read before the next is sent."""
    with (
        udp_socket(receiver, address, PORT) as reading,
        udp_socket(sender, family=family_of(address)) as sending,
    ):
        for _ in range(times):
            sending.sendto(b"d" * 200, (address, PORT))
            reading.recv(1024)
