"""The bounds from which waiting is worth a person's attention, defined once.

That is 1 ms on average, or 5 ms once in a hundred times. Waiting that has not ended is worth it
after a second. Less is the noise of a healthy machine. On an idle one, a wake-up of 20 us holds
most of a packet's time.

*Objectives* override the bounds for their stages, and for the waits that are parts of them. Within
a stage whose objectives are met, no wait that is shorter than the objective is worth attention. If
one is missed, the waits that make up the time of its stage are worth it, however short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import of_percentile
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.stages import BY_NAME

MIN_SAMPLES = 100
ATTENTION_MEAN_NS = 1_000_000
# Waits to be sent are counted by their causes from here on.
LONG_WAIT_NS = ATTENTION_MEAN_NS
ATTENTION_P99_NS = 5_000_000
# An interval of waiting that no percentile can outvote: of so few packets that have no percentiles.
LONG_IN_ALL_NS = 1_000_000_000
OPEN_TOO_LONG_NS = 1_000_000_000
# Of two or more connections that never had an answer, this is too long without any.
NO_FIRST_ANSWER_NS = 3_000_000_000
# A person notices such a wait for an answer.
LONG_ANSWER_NS = 100_000_000
_ONCE_IN = 100
# A wait makes up the time of a stage whose objective is missed if it is this part of it.
_PART_OF_MISSED = 0.40
# Stages that hold the time of another one, beside its total.
_WITHIN: Mapping[str, tuple[str, ...]] = {
    "tcp.accept": ("rx.socket", "rx.total"),
    "tcp.rtt": ("peer.response",),
    "tcp.recovery": ("peer.response",),
}
# Stages that hold some of its time. If they are quick, not all of its time has to be.
_PARTLY_WITHIN: Mapping[str, tuple[str, ...]] = {
    "tcp.rtt": ("tcp.connect", "tcp.handshake", "tcp.queueing", "app.transfer", "peer.transfer"),
    "tcp.recovery": ("tcp.connect", "tcp.handshake", "app.transfer", "peer.transfer"),
    "tx.socket": ("app.transfer",),
    "peer.response": ("peer.transfer",),
}


@dataclass(frozen=True, slots=True)
class Objective:
    """A person's bound: `percentile` (0 to 100) of `stage` must not exceed `max_ns`."""

    stage: str
    percentile: float
    max_ns: int

    def value_ns(self, measurement: Measurement) -> int | None:
        """Return the percentile as measured; None for fewer than MIN_SAMPLES."""
        histogram = measurement.stage(self.stage).histogram
        if histogram.count < MIN_SAMPLES:
            return None
        return histogram.percentile(self.percentile)

    def is_missed(self, value_ns: int) -> bool:
        """Return True if this value exceeds the bound."""
        return value_ns > self.max_ns

    def figures(self, value_ns: int) -> str:
        """Return the percentile and its bound as a text."""
        return (
            f"p{self.percentile:g} of {self.stage} is {format_ns(value_ns)}, "
            f"at most {format_ns(self.max_ns)}"
        )


@dataclass(frozen=True, slots=True)
class _Missed:
    """The stage of a missed objective: its mean, and its percentile, which is too large."""

    mean_ns: int
    percentile: float
    value_ns: int

    def is_explained_by(self, histogram: Histogram) -> bool:
        value_ns = histogram.percentile(self.percentile)
        return value_ns > 0 and value_ns >= _PART_OF_MISSED * self.value_ns


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of attention for one kind of wait.

    `allowed_ns`: the largest that a met objective allows. `missed`: objectives of stages that the
    wait is a part of.
    """

    allowed_ns: int = 0
    missed: tuple[_Missed, ...] = ()

    def are_exceeded(self, histogram: Histogram) -> bool:
        """Return True for waits that deserve attention. Few of them have to be long in all."""
        if histogram.count < MIN_SAMPLES and histogram.sum_ns < LONG_IN_ALL_NS:
            return False
        if histogram.mean_ns >= self.at_least(ATTENTION_MEAN_NS):
            return True
        p99_ns = self.at_least(ATTENTION_P99_NS)
        if histogram.max_ns >= p99_ns and histogram.percentile(99) >= p99_ns:
            return True
        return bool(self.missed) and any(each.is_explained_by(histogram) for each in self.missed)

    def add_up(self, waiting_ns: int, count: int, among: int) -> bool:
        """Return True for waiting by `count` of `among` requests that deserves attention.

        It has no histogram: it takes 1 ms on average of all, or 5 ms of at least one in a hundred.
        """
        of_all = max(among, MIN_SAMPLES)
        if self.is_long(waiting_ns, of_all):
            return True
        p99_ns = self.at_least(ATTENTION_P99_NS)
        return count * _ONCE_IN >= of_all and waiting_ns >= p99_ns * count

    def is_long(self, waiting_ns: int, times: int, default_ns: int = ATTENTION_MEAN_NS) -> bool:
        """Return True if so many waits, together so long, deserve attention by their mean."""
        if waiting_ns >= self.at_least(default_ns) * times:
            return True
        if not self.missed or not waiting_ns:
            return False
        least_ns = _PART_OF_MISSED * min(missed.mean_ns for missed in self.missed)
        return waiting_ns >= least_ns * times

    def allow(self, open_ns: int) -> bool:
        """Return True for waiting that has not ended, and is within a met objective."""
        return open_ns < self.allowed_ns

    def at_least(self, default_ns: int) -> int:
        """Return the bound, which a met objective may raise, but not lower."""
        return max(default_ns, self.allowed_ns) if self.allowed_ns else default_ns


DEFAULT_BOUNDS = Bounds()


@dataclass
class Attention:
    """The bounds for one measurement: the default ones, or those of objectives on its stages."""

    measurement: Measurement
    objectives: Sequence[Objective] = ()

    def bounds(self, *stages: str) -> Bounds:
        """Return the bounds of a wait in these stages.

        Any missed objective counts, also of a stage that theirs are parts of. Without one, the
        largest of those that are met is the bound.
        """
        if not self.objectives:
            return DEFAULT_BOUNDS
        around = {each for stage in stages for each in _around(stage)}
        partly = {each for stage in stages for each in _PARTLY_WITHIN.get(stage, ())}
        missed = tuple(
            self._missed(each, value_ns)
            for each, value_ns in self.known
            if each.stage in around | partly and each.is_missed(value_ns)
        )
        if missed:
            return Bounds(missed=missed)
        return Bounds(
            max((each.max_ns for each, _ in self.known if each.stage in around), default=0)
        )

    @cached_property
    def known(self) -> Sequence[tuple[Objective, int]]:
        """The objectives on stages with enough samples, each with its percentile as measured."""
        values = ((each, each.value_ns(self.measurement)) for each in self.objectives)
        return [(each, value_ns) for each, value_ns in values if value_ns is not None]

    def missed(self) -> Iterator[str]:
        """Yield the missed objectives as sentences."""
        for each, value_ns in self.known:
            if each.is_missed(value_ns):
                yield of_percentile(value_ns, f"objective missed: {each.figures(value_ns)}")

    def met(self) -> Iterator[str]:
        """Yield the figures of the objectives that are met."""
        for each, value_ns in self.known:
            if not each.is_missed(value_ns):
                yield each.figures(value_ns)

    def _missed(self, objective: Objective, value_ns: int) -> _Missed:
        mean_ns = self.measurement.stage(objective.stage).histogram.mean_ns
        return _Missed(mean_ns, objective.percentile, value_ns)


def _around(stage: str) -> Iterator[str]:
    """Yield the stage, and the stages that its time is a part of."""
    yield stage
    yield from _WITHIN.get(stage, ())
    yield from filter(None, (BY_NAME[stage].within, BY_NAME[stage].whole))
