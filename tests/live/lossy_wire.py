"""A wire between two tun devices that loses the segments that a test chooses, and times all."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.live.tuns import MTU, Tun, tun

FIN, SYN, ACK = 0x01, 0x02, 0x10


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment over IPv4 that the wire has taken."""

    is_from_near: bool
    flags: int
    seq: int
    ack: int
    size: int

    @classmethod
    def of(cls, packet: bytes, *, is_from_near: bool) -> Segment:
        header = (packet[0] & 15) * 4
        segment = packet[header:]
        seq, ack = (int.from_bytes(segment[at : at + 4], "big") for at in (4, 8))
        size = len(segment) - (segment[12] >> 4) * 4
        return cls(is_from_near, segment[13], seq, ack, size)

    @property
    def is_opening(self) -> bool:
        """A SYN, with or without an ACK: it counts as a byte."""
        return self.flags & SYN != 0

    @property
    def is_ending(self) -> bool:
        return self.flags & FIN != 0

    @property
    def is_syn(self) -> bool:
        return self.flags & (SYN | ACK) == SYN

    @property
    def is_syn_ack(self) -> bool:
        return self.flags & (SYN | ACK) == SYN | ACK


@dataclass(frozen=True, slots=True)
class Carried:
    """A segment, when it had left its sender, and when its receiver had not got it yet."""

    segment: Segment
    taken_ns: int
    given_ns: int
    is_lost: bool


class LossyWire:
    """Carries segments at once, but for those that `loses` is true of."""

    def __init__(self, near: Tun, far: Tun) -> None:
        self.near, self.far = near, far
        self.loses: Callable[[Segment], bool] = lambda segment: False
        self._carried: list[Carried] = []
        self._stop, self._stopping = os.pipe()

    @contextmanager
    def up(self) -> Iterator[LossyWire]:
        """While it carries."""
        thread = threading.Thread(target=self._carry)
        thread.start()
        try:
            yield self
        finally:
            os.close(self._stopping)
            thread.join()
            os.close(self._stop)

    @property
    def carried(self) -> list[Carried]:
        """All segments so far."""
        return list(self._carried)

    @property
    def lost(self) -> list[Carried]:
        return [each for each in self.carried if each.is_lost]

    def lose_first(self, count: int, kind: Callable[[Segment], bool]) -> None:
        """Lose as many segments of a kind, from now on."""
        seen = 0

        def loses(segment: Segment) -> bool:
            nonlocal seen
            seen += kind(segment)
            return kind(segment) and seen <= count

        self.loses = loses

    def lose_number(self, number: int, kind: Callable[[Segment], bool]) -> None:
        """Lose one segment of a kind: the first from now on has the number 1."""
        seen = 0

        def loses(segment: Segment) -> bool:
            nonlocal seen
            seen += kind(segment)
            return kind(segment) and seen == number

        self.loses = loses

    def _carry(self) -> None:
        # At once, whoever else has work: a late ACK has segments sent again that were not lost.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        near, far = self.near.descriptor, self.far.descriptor
        while True:
            readable, _, _ = select.select([near, far, self._stop], [], [])
            if self._stop in readable:
                return
            for source, target in ((near, far), (far, near)):
                if source in readable:
                    self._take(source, target, is_from_near=source == near)

    def _take(self, source: int, target: int, *, is_from_near: bool) -> None:
        packet = os.read(source, MTU)
        taken_ns = time.monotonic_ns()
        segment = Segment.of(packet, is_from_near=is_from_near)
        is_lost = self.loses(segment)
        self._carried.append(Carried(segment, taken_ns, time.monotonic_ns(), is_lost))
        if not is_lost:
            os.write(target, packet)


@contextmanager
def lossy_wire() -> Iterator[LossyWire]:
    """A wire between two new namespaces."""
    with (
        tun("near", "192.0.2.1", "192.0.2.2") as near,
        tun("far", "192.0.2.2", "192.0.2.1") as far,
        LossyWire(near, far).up() as wire,
    ):
        yield wire
