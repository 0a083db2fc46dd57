"""Connections over a wire of the test's own, which delays what the near end receives."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.pods import Namespace
from tests.live.sockets import PATIENCE_SECONDS, PORT, connect, listen, read_all, tcp_figures
from tests.live.tuns import FarWire, Tun, tun

NEAR, FAR = 0, 1
SEGMENT = 1448  # of an MTU of 1500, with time stamps
MS = 1_000_000


@dataclass(frozen=True, slots=True)
class LongPath:
    """The two ends, and the wire between them."""

    near: Tun
    far: Tun
    wire: FarWire

    @contextmanager
    def connection(self) -> Iterator[Ends]:
        """A new connection from the near end to the far one."""
        with (
            listen(self.far.namespace, self.far.address) as listener,
            connect(self.near.namespace, self.far.address, PORT) as near,
        ):
            far, _ = listener.accept()
            with far:
                far.settimeout(PATIENCE_SECONDS)
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield Ends(near, far)

    def delayed_acks_of_far(self) -> int:
        """The ACKs that its kernel sent by the timer, as it counts them."""
        return tcp_figures(self.far.namespace)["DelayedACKs"]


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a connection."""

    near: socket.socket
    far: socket.socket

    def ask(self, request: bytes, reply: bytes) -> int:
        """Send a request to the far end, which answers at once; returns the nanoseconds."""
        began_ns = time.monotonic_ns()
        self.near.sendall(request)
        read_all(self.far, len(request))
        self.far.sendall(reply)
        read_all(self.near, len(reply))
        return time.monotonic_ns() - began_ns


@contextmanager
def long_path() -> Iterator[LongPath]:
    """A path without any delay yet."""
    with (
        tun("near", "192.0.2.1", "192.0.2.2") as near,
        tun("far", "192.0.2.2", "192.0.2.1") as far,
        FarWire(near, far).up() as wire,
    ):
        yield LongPath(near, far, wire)


async def watch_both_ends(
    start: Callable[..., KernelEngine], path: LongPath, *, typed: bool = True
) -> KernelEngine:
    """An engine with the default modules on everything at both ends."""
    engine = start(typed=typed)
    engine.assign({NEAR: _all_of(path.near.namespace), FAR: _all_of(path.far.namespace)})
    await engine.use(frozenset(DEFAULT_MODULES))
    return engine


def _all_of(there: Namespace) -> SlotSpec:
    inode = frozenset({there.inode})
    return SlotSpec(netns_wide=inode, netns=inode)
