"""Namespaces whose only way out is a tun device: what leaves them goes through the test."""

from __future__ import annotations

import os
import queue
import select
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from tests.live.pods import Namespace, namespace
from tests.live.sockets import inside

# include/uapi/linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 1500


@dataclass(frozen=True, slots=True)
class Tun:
    """A namespace whose only way out is a tun device, and the end that the test holds."""

    namespace: Namespace
    descriptor: int
    address: str
    beyond: str  # an address that is reached through the device

    def take(self) -> bytes:
        """What was transmitted: the driver frees it with this read, tun_do_read()."""
        return os.read(self.descriptor, MTU)


@contextmanager
def tun(role: str, address: str, beyond: str, *, queue_length: int = 500) -> Iterator[Tun]:
    """A new namespace with a tun device between `address` and `beyond`."""
    with namespace(role) as made:
        with inside(made):
            descriptor = os.open("/dev/net/tun", os.O_RDWR)
            ioctl(descriptor, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN | IFF_NO_PI))
        try:
            with inside(made):  # no router solicitations among the packets
                Path("/proc/sys/net/ipv6/conf/tun0/disable_ipv6").write_text("1")
            made.ip_in_turn(
                f"link set tun0 txqueuelen {queue_length} up",
                f"address add {address} peer {beyond} dev tun0",
            )
            yield Tun(made, descriptor, address, beyond)
        finally:
            os.close(descriptor)


class FarWire:
    """Carries packets between two tuns; those of the far end arrive `delay_s` after they left.

    Each is taken from its device at once, so that nothing waits there.
    """

    def __init__(self, near: Tun, far: Tun) -> None:
        self.delay_s = 0.0
        self._near, self._far = near, far
        self._under_way: queue.SimpleQueue[tuple[float, bytes] | None] = queue.SimpleQueue()
        self._stop, self._stopping = os.pipe()
        self._threads: list[threading.Thread] = []

    @contextmanager
    def up(self) -> Iterator[FarWire]:
        """While it carries."""
        self._threads = [threading.Thread(target=run) for run in (self._take, self._deliver)]
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            os.close(self._stopping)
            for thread in self._threads:
                thread.join()
            os.close(self._stop)

    def be_prompt(self) -> None:
        """Carry on time whatever else this process does: all round trips are alike."""
        for thread in self._threads:
            assert thread.native_id is not None
            os.sched_setscheduler(thread.native_id, os.SCHED_FIFO, os.sched_param(1))

    def _take(self) -> None:
        near, far = self._near.descriptor, self._far.descriptor
        while True:
            readable, _, _ = select.select([near, far, self._stop], [], [])
            if self._stop in readable:
                self._under_way.put(None)
                return
            if near in readable:
                os.write(far, self._near.take())
            if far in readable:
                self._under_way.put((time.monotonic() + self.delay_s, self._far.take()))

    def _deliver(self) -> None:
        while (packet := self._under_way.get()) is not None:
            arrives, content = packet
            time.sleep(max(0, arrives - time.monotonic()))
            os.write(self._near.descriptor, content)
