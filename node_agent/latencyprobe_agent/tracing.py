"""A trace: which slow packets of which probe are told of, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from latencyprobe.domain.packets import LONGEST_NS
from latencyprobe.domain.stages import PACKET_STAGES
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import Desired, InvalidStateError, Probe
from latencyprobe_agent.kernel.contract import EngineError, TraceSpec
from latencyprobe_agent.plan import SlotKey

_STAGES = {stage.name: stage for stage in PACKET_STAGES}


@dataclass(frozen=True, slots=True)
class TraceWish:
    """What a client asks for. `per_second`: 0 for all."""

    probe_id: str
    limits_ns: Mapping[str, int]
    per_second: int


def parse_trace(message: pb.TraceRequest, desired: Desired) -> TraceWish:
    """The request, checked against the state in force; raises InvalidStateError."""
    if not message.probe_id:
        raise InvalidStateError("probe_id", "is empty")
    probe = _find_probe(desired, message.probe_id)
    if not message.limits:
        raise InvalidStateError("limits", "none given: name a stage and its least duration")
    limits_ns: dict[str, int] = {}
    for index, limit in enumerate(message.limits):
        _check_limit(limit, probe, f"limits[{index}]")
        if limit.stage in limits_ns:
            raise InvalidStateError(f"limits[{index}].stage", f"{limit.stage!r} came before")
        limits_ns[limit.stage] = limit.min_ns
    return TraceWish(message.probe_id, limits_ns, message.max_packets_per_second)


def _check_limit(limit: pb.StageLimit, probe: Probe | None, field: str) -> None:
    stage = _STAGES.get(limit.stage)
    if stage is None:
        raise InvalidStateError(
            f"{field}.stage",
            f"{limit.stage[:80]!r} is no stage of a packet: those are {', '.join(_STAGES)}",
        )
    if probe is not None and not stage.is_measured_by(probe.modules):
        raise InvalidStateError(
            f"{field}.stage",
            f"{limit.stage} is measured by module {stage.needs}, which the probe does not have",
        )
    if limit.min_ns > LONGEST_NS:
        raise InvalidStateError(
            f"{field}.min_ns", f"{limit.min_ns}: at most {LONGEST_NS}, no packet takes longer"
        )


class Trace:
    """A trace, from when it is asked for. Its probe may come later; with its probe it ends.

    `has_begun` is set once packets are told of, or never will be; `failure` says why not.
    """

    def __init__(self, wish: TraceWish) -> None:
        self.wish = wish
        self.has_begun = asyncio.Event()
        self.failure: EngineError | None = None
        self._is_over = False
        self._lowest_ratio = 1.0

    def goes_on(self, desired: Desired) -> bool:
        """Whether its probe is there and measures what it asks for; once over, it stays so."""
        probe = _find_probe(desired, self.wish.probe_id)
        if probe is None:
            if self.has_begun.is_set():
                self.end()
            return False
        stages = (_STAGES[name] for name in self.wish.limits_ns)
        if not all(stage.is_measured_by(probe.modules) for stage in stages):
            self.end()
        return not self._is_over

    def end(self, failure: EngineError | None = None) -> None:
        """Have it be over."""
        self.failure = failure
        self._is_over = True
        self.has_begun.set()

    def spec(self, desired: Desired, numbers: Mapping[SlotKey, int]) -> TraceSpec:
        """What the engine is told: by the slots that the probe's targets have now."""
        probe = _find_probe(desired, self.wish.probe_id)
        keys = (SlotKey(t.selector, probe.socket_filter) for t in probe.targets) if probe else ()
        slots = frozenset(numbers[key] for key in keys if key in numbers)
        return TraceSpec(self.wish.limits_ns, slots, self.wish.per_second)

    def lowest_ratio(self, now: float) -> float:
        """The smallest sampling ratio so far."""
        self._lowest_ratio = min(self._lowest_ratio, now)
        return self._lowest_ratio


def _find_probe(desired: Desired, probe_id: str) -> Probe | None:
    return next((probe for probe in desired.probes if probe.id == probe_id), None)
