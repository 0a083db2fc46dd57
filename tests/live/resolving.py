"""The C library's resolver in a pod, and a name server that is silent at first."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.live.pods import Pod
from tests.live.sockets import udp_socket

NAME, DNS_PORT = "name.example", 53
TYPE_A, TYPE_AAAA = 1, 28
_PIECE_S = 0.1


@dataclass(slots=True)
class NameServer:
    """It leaves the first query of each of these types without a reply.

    `asked_ns`: when the queries of a type came.
    """

    silent_at_first: frozenset[int]
    asked_ns: dict[int, list[int]] = field(default_factory=dict)
    replies: int = 0
    is_over: bool = False

    def serve(self, end: socket.socket) -> None:
        """Reply until it is over."""
        end.settimeout(_PIECE_S)
        while not self.is_over:
            try:
                query, sender = end.recvfrom(512)
            except TimeoutError:
                continue
            (kind,) = struct.unpack("!H", _question(query)[-4:-2])
            times = self.asked_ns.setdefault(kind, [])
            times.append(time.monotonic_ns())
            if len(times) > 1 or kind not in self.silent_at_first:
                end.sendto(_reply(query, kind), sender)
                self.replies += 1

    def waited_ns(self, kind: int) -> int:
        """How long the query of this type was without a reply, at least."""
        times = self.asked_ns[kind]
        return times[-1] - times[0]


def _question(query: bytes) -> bytes:
    end = query.index(b"\0", 12) + 5
    return query[12:end]


def _reply(query: bytes, kind: int) -> bytes:
    address = bytes([192, 0, 2, 1]) if kind == TYPE_A else bytes([0x20, 1, 0xD, 0xB8, *[0] * 12])
    header = query[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0)
    return (
        header
        + _question(query)
        + struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(address))
        + address
    )


@contextmanager
def name_server(pod: Pod, *silent_at_first: int) -> Iterator[NameServer]:
    """A name server in a pod."""
    server = NameServer(frozenset(silent_at_first))
    with udp_socket(pod.namespace, pod.address, DNS_PORT) as end:
        serving = threading.Thread(target=server.serve, args=(end,))
        serving.start()
        try:
            yield server
        finally:
            server.is_over = True
            serving.join()


def look_up(client: Pod, server: Pod, folder: Path) -> str:
    """Have the C library look the name up, which asks again after a second; what it found."""
    configuration = folder / "resolv.conf"
    configuration.write_text(f"nameserver {server.address}\noptions timeout:1 attempts:4\n")
    script = (
        f"echo $$ > {client.cgroup}/cgroup.procs && mount --bind {configuration} /etc/resolv.conf "
        f"&& exec getent ahosts {NAME}"
    )
    enter = ("nsenter", f"--net={client.namespace.path}")
    private = ("unshare", "--mount", "--propagation", "private")
    command = [*enter, *private, "sh", "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
