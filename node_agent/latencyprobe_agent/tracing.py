"""A trace: the slow packets of a probe, each reported by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe.domain.stages import PACKET_STAGES, Module, Stage
from latencyprobe_agent.desired import Desired, InvalidStateError
from latencyprobe_agent.kernel.contract import EngineError, TraceSpec
from latencyprobe_agent.plan import SlotKey

_STAGES = {stage.name: stage for stage in PACKET_STAGES}


@dataclass(frozen=True, slots=True)
class TraceWish:
    """A client's request: stages of a packet with their limits. `per_second`: 0 for all."""

    probe_id: str
    limits_ns: Mapping[str, int]
    per_second: int


def check_wish(wish: TraceWish, desired: Desired) -> None:
    """Raise InvalidStateError if the probe does not measure a requested stage."""
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
    """Packets that were traced, and the counts of all slow packets since the trace began.

    `sampling_ratio`: the smallest share of the packets that was measured.
    """

    packets: Sequence[TracedPacket]
    counts: TraceCounts
    sampling_ratio: float


class TraceBusyError(Exception):
    """A request for a trace while another one runs."""

    def __init__(self, probe_id: str) -> None:
        self.probe_id = probe_id
        super().__init__(
            f"cannot begin a trace: packets of probe {probe_id!r} are being traced already, and "
            "only one trace can run; end it or wait for its end"
        )


class Trace:
    """A trace from its request on. Its probe may come later; the trace ends with its probe.

    `has_begun` is set once packets are reported, or once the trace has failed; `failure` is the
    reason. `yields`: it makes room for a client's.
    """

    yields = False

    def __init__(self, wish: TraceWish) -> None:
        self.wish = wish
        self.has_begun = asyncio.Event()
        self.failure: EngineError | None = None
        self._is_over = False
        self._lowest_ratio = 1.0

    def goes_on(self, desired: Desired) -> bool:
        """Return True if its probe measures the requested stages; end it if that changes."""
        probe = desired.probe(self.wish.probe_id)
        if probe is None:
            if self.has_begun.is_set():
                self.end()
            return False
        if not all(stage.is_measured_by(probe.modules) for stage in self._stages):
            self.end()
        return not self._is_over

    def needs_code(self, modules: Collection[Module]) -> bool:
        """Return True if programs of these modules have to report single packets for it."""
        return bool(modules)

    def end(self, failure: EngineError | None = None) -> None:
        """End the trace."""
        self.failure = failure
        self._is_over = True
        self.has_begun.set()

    def spec(self, desired: Desired, numbers: Mapping[SlotKey, int]) -> TraceSpec:
        """Return the engine's spec, with the current slots of the probe's targets."""
        probe = desired.probe(self.wish.probe_id)
        keys = (SlotKey(t.selector, probe.socket_filter) for t in probe.targets) if probe else ()
        slots = frozenset(numbers[key] for key in keys if key in numbers)
        return TraceSpec(self.wish.limits_ns, slots, self.wish.per_second)

    @property
    def _stages(self) -> Iterator[Stage]:
        return (_STAGES[name] for name in self.wish.limits_ns)

    def lowest_ratio(self, now: float) -> float:
        """Return the smallest sampling ratio so far."""
        self._lowest_ratio = min(self._lowest_ratio, now)
        return self._lowest_ratio
