"""The network between two tun devices, as a process: it delays packets, and loses some.

Both directions are alike. It counts what it forwards and what it drops.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.live.situations.witness import ready, report, run_role

MTU = 1500
SYN, ACK = 0x02, 0x10


@dataclass(frozen=True, slots=True)
class Tcp:
    """What the network has to know of a segment over IPv4."""

    ports: tuple[int, int]
    flags: int
    size: int

    @classmethod
    def of(cls, packet: bytes) -> Tcp | None:
        if packet[0] >> 4 != 4 or packet[9] != 6:
            return None
        header = (packet[0] & 15) * 4
        segment = packet[header:]
        ports = int.from_bytes(segment[:2], "big"), int.from_bytes(segment[2:4], "big")
        return cls(ports, segment[13], len(packet) - header - (segment[12] >> 4) * 4)

    @property
    def is_first(self) -> bool:
        return self.flags & (SYN | ACK) == SYN


@dataclass(slots=True)
class Losses:
    """The packets that do not arrive.

    `share`: of all that carry data. `nth_syn`: one SYN in so many. `mtu`: larger packets.
    `swallow_after_s`: the first connection, from so many seconds after its first SYN on.
    """

    share: float = 0.0
    nth_syn: int = 0
    mtu: int = MTU
    swallow_after_s: float = 0.0
    syns: int = 0
    first: frozenset[int] = frozenset()
    began: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def is_lost(self, packet: bytes) -> bool:
        segment = Tcp.of(packet)
        if segment is None:
            return False
        if segment.is_first:
            self.syns += 1
            if not self.first:
                self.first, self.began = frozenset(segment.ports), time.monotonic()
            return bool(self.nth_syn) and self.syns % self.nth_syn == 0
        if self.swallow_after_s and frozenset(segment.ports) == self.first:
            return time.monotonic() - self.began > self.swallow_after_s
        if len(packet) > self.mtu:
            return True
        return segment.size > 0 and self.random.random() < self.share


def carry(
    *,
    near: int,
    far: int,
    one_way_ms: Sequence[tuple[float, float]],
    share: float = 0.0,
    nth_syn: int = 0,
    mtu: int = MTU,
    swallow_after_s: float = 0.0,
    late_syn_ms: float = 0.0,
    late_share: float = 0.0,
    late_ms: float = 0.0,
) -> None:
    """Carry packets; `one_way_ms`: the delay at seconds after the first packet, in between linear.

    An order that a shrinking delay would change is kept. `late_syn_ms`: a SYN takes so much longer.
    `late_share`, `late_ms`: of all packets, so many take so much longer, and others overtake them.
    """
    # At once, whoever else has work: what waits in a device would be the device's fault.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    losses = Losses(share, nth_syn, mtu, swallow_after_s)
    under_way: list[tuple[float, int, int, bytes]] = []
    numbers = itertools.count()
    last = {near: 0.0, far: 0.0}
    forwarded = dropped = 0
    began = 0.0
    ready()
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([near, far, sys.stdin], [], [], wait)
        if sys.stdin in readable:
            if not sys.stdin.readline():
                return
            report({"forwarded": forwarded, "dropped": dropped, "syns": losses.syns})
        now = time.monotonic()
        for taken_from, to in ((near, far), (far, near)):
            if taken_from in readable:
                packet = os.read(taken_from, MTU)
                began = began or now
                if losses.is_lost(packet):
                    dropped += 1
                    continue
                forwarded += 1
                last[to] = max(last[to], now + _delay_s(now - began, one_way_ms))
                segment = Tcp.of(packet)
                late_s = late_syn_ms / 1e3 if segment and segment.is_first else 0.0
                if late_share and losses.random.random() < late_share:
                    late_s += late_ms / 1e3
                heapq.heappush(under_way, (last[to] + late_s, next(numbers), to, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(under_way)
            os.write(to, packet)


def _delay_s(at_s: float, one_way_ms: Sequence[tuple[float, float]]) -> float:
    """The delay at this time: linear between the points, and the last one's after it."""
    for (begin_s, begin_ms), (end_s, end_ms) in itertools.pairwise(one_way_ms):
        if begin_s <= at_s < end_s:
            part = (at_s - begin_s) / (end_s - begin_s)
            return (begin_ms + part * (end_ms - begin_ms)) / 1e3
    return one_way_ms[-1][1] / 1e3


if __name__ == "__main__":
    run_role({"carry": carry})
