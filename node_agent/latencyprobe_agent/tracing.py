"""A trace: the slow packets of a probe, reported one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe.domain.stages import PACKET_STAGES
from latencyprobe_agent.desired import Desired, InvalidStateError
from latencyprobe_agent.kernel.contract import EngineError, TraceSpec
from latencyprobe_agent.plan import SlotKey

_STAGES = {stage.name: stage for stage in PACKET_STAGES}


@dataclass(frozen=True, slots=True)
class TraceWish:
    """What a client asks for: stages of a packet with their limits. `per_second`: 0 for all."""

    probe_id: str
    limits_ns: Mapping[str, int]
    per_second: int


def check_wish(wish: TraceWish, desired: Desired) -> None:
    """Raise InvalidStateError where the probe does not measure a stage that is asked for."""
    probe = desired.probe(wish.probe_id)
    if probe is None:
        return
    for index, name in enumerate(wish.limits_ns):
        stage = _STAGES[name]
        if not stage.is_measured_by(probe.modules):
            raise InvalidStateError(
                f"limits[{index}].stage",
                f"{name} needs module {stage.needs}, which the probe does not enable",
            )


@dataclass(frozen=True, slots=True)
class PacketNews:
    """Packets that were traced, and what became of all slow ones since the trace began.

    `sampling_ratio`: the smallest share of the packets that was looked at.
    """

    packets: Sequence[TracedPacket]
    counts: TraceCounts
    sampling_ratio: float


class TraceBusyError(Exception):
    """There is a trace already."""

    def __init__(self, probe_id: str) -> None:
        self.probe_id = probe_id
        super().__init__(
            f"packets of probe {probe_id!r} are being traced already, and there is one trace at a "
            "time: end that one, or wait for its end"
        )


class Trace:
    """A trace from its request on. Its probe may come later; the trace ends with its probe.

    `has_begun` is set once packets are reported, or it is certain that none will be; `failure` is
    the reason.
    """

    def __init__(self, wish: TraceWish) -> None:
        self.wish = wish
        self.has_begun = asyncio.Event()
        self.failure: EngineError | None = None
        self._is_over = False
        self._lowest_ratio = 1.0

    def goes_on(self, desired: Desired) -> bool:
        """Whether its probe is there and measures what it asks for; once over, it stays so."""
        probe = desired.probe(self.wish.probe_id)
        if probe is None:
            if self.has_begun.is_set():
                self.end()
            return False
        stages = (_STAGES[name] for name in self.wish.limits_ns)
        if not all(stage.is_measured_by(probe.modules) for stage in stages):
            self.end()
        return not self._is_over

    def end(self, failure: EngineError | None = None) -> None:
        """End it."""
        self.failure = failure
        self._is_over = True
        self.has_begun.set()

    def spec(self, desired: Desired, numbers: Mapping[SlotKey, int]) -> TraceSpec:
        """Return the engine's spec, with the current slots of the probe's targets."""
        probe = desired.probe(self.wish.probe_id)
        keys = (SlotKey(t.selector, probe.socket_filter) for t in probe.targets) if probe else ()
        slots = frozenset(numbers[key] for key in keys if key in numbers)
        return TraceSpec(self.wish.limits_ns, slots, self.wish.per_second)

    def lowest_ratio(self, now: float) -> float:
        """Return the smallest sampling ratio so far."""
        self._lowest_ratio = min(self._lowest_ratio, now)
        return self._lowest_ratio
