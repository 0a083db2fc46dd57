"""Sums since the agent's start, for metrics: of one pod where its probe asks for that, else of all.

A sum never decreases: Prometheus takes differences. Those of a pod or probe that has
ended stay for some minutes, so that a short Job is seen by the next scrape. The number of sums is
bounded: pods beyond the administrator's limit count in the sum of their probe.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from latencyprobe.domain.fairness import MAX_PROBES, Claim, refused_claims
from latencyprobe.domain.histogram import POSITIONS, position_of
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.packets import TracedPacket
from latencyprobe.domain.pending import Pending, joint_pending
from latencyprobe.domain.stages import stages_of
from latencyprobe_agent.desired import (
    ContainerSelector,
    Desired,
    DesiredProbe,
    DesiredTarget,
    pod_uid,
)
from latencyprobe_agent.plan import TargetKey

DEFAULT_MAX_PODS = 110
"""As many pods as a kubelet runs by default."""
KEPT_S = 300.0
# Of one sum: drop reasons that a kernel may have, and room for the counters of the vocabulary.
MAX_COUNTERS = 320
# Of one stage of a sum, each in another bucket: as many as Prometheus' own libraries keep.
MAX_SLOW_PACKETS = 10
OTHER = "other"
_PODS = "pods"


@dataclass(frozen=True, slots=True)
class Subject:
    """The owner of a sum: one pod or container of a probe, or all others of it."""

    namespace: str
    probe: str
    pod: str = ""
    container: str = ""
    """Empty for a pod that is measured as a whole."""

    @property
    def others(self) -> Subject:
        """The sum of the pods without one of their own."""
        return Subject(self.namespace, self.probe)


class StageTotal:
    """All samples of one stage, the known losses, and the newest slow packets of a trace."""

    __slots__ = ("_counts", "_slow", "clamped", "lost", "sum_ns", "unmatched")

    def __init__(self) -> None:
        # 64 bits: the kernel counts in 32 between two readings.
        self._counts = array("Q", bytes(8 * POSITIONS))
        self.sum_ns = self.lost = self.unmatched = self.clamped = 0
        # By position, with the time when each was noted; the newest is last.
        self._slow: dict[int, tuple[float, TracedPacket]] | None = None

    @property
    def buckets(self) -> Mapping[int, int]:
        """The number of samples by position; no zeroes."""
        return {position: count for position, count in enumerate(self._counts) if count}

    def add(self, measured: StageMeasurement) -> None:
        """Add a measurement."""
        counts = self._counts
        # 110 busy pods have some 200,000 buckets: nothing else is in this loop.
        for position, count in measured.histogram.buckets.items():
            counts[position] += count
        self.sum_ns += measured.histogram.sum_ns
        self.lost += measured.lost
        self.unmatched += measured.unmatched
        self.clamped += measured.clamped

    def note_slow(self, packet: TracedPacket, duration_ns: int, now: float) -> None:
        """Keep a packet in place of the one in the same bucket, or else of the oldest."""
        slow = self._slow = self._slow or {}
        position = position_of(duration_ns)
        slow.pop(position, None)
        slow[position] = (now, packet)
        if len(slow) > MAX_SLOW_PACKETS:
            del slow[next(iter(slow))]

    def slow_packets(self, now: float) -> list[TracedPacket]:
        """Return the packets of the last minutes."""
        return [packet for at, packet in (self._slow or {}).values() if at + KEPT_S > now]


@dataclass(slots=True)
class Total:
    """The sum of one subject, from `began_at` on.

    `ended_at`: None while something is measured for it.
    """

    began_at: float = 0.0
    stages: dict[str, StageTotal] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    ended_at: float | None = None

    def add(self, delta: Measurement) -> None:
        """Add a measurement."""
        for name, measured in delta.stages.items():
            known = self.stages.get(name)
            if known is None:
                known = self.stages[name] = StageTotal()
            known.add(measured)
        for name, count in delta.counters.items():
            self.counters[self._name_of(name)] = self.counters.get(self._name_of(name), 0) + count

    def note_slow(self, packet: TracedPacket, stage: str, now: float) -> None:
        """Keep a packet with the samples of one of its stages."""
        if stage not in self.stages:
            self.stages[stage] = StageTotal()
        self.stages[stage].note_slow(packet, packet.stages_ns[stage], now)

    def _name_of(self, counter: str) -> str:
        """Return the name that a counter has here: families of names must not grow for ever."""
        family, dot, _ = counter.partition(".")
        if counter in self.counters or not dot or len(self.counters) < MAX_COUNTERS:
            return counter
        return f"{family}.{OTHER}"


class Totals:
    """The sums of all probes. `max_pods`: those that may have sums of their own."""

    def __init__(self, max_pods: int = DEFAULT_MAX_PODS) -> None:
        self._max_pods = max_pods
        self._totals: dict[Subject, Total] = {}
        self._subjects: dict[TargetKey, Subject] = {}
        self._stages: Mapping[str, frozenset[str]] = {}
        self._pending: dict[TargetKey, Mapping[str, Pending]] = {}
        self._left_out: Mapping[Subject, int] = {}
        self._shown: frozenset[tuple[str, str, str]] = frozenset()

    @property
    def left_out(self) -> Mapping[Subject, int]:
        """The number of pods without a sum of their own, by the probes that ask for these."""
        return self._left_out

    def follow(self, desired: Desired, now: float) -> None:
        """Keep sums for these probes, and those of the others for some minutes."""
        asked = {
            TargetKey(probe.id, target.id): _subject_of(probe, target)
            for probe, target in desired.targets
        }
        refused = self._refused(desired, asked)
        self._subjects = {
            key: subject.others if subject in refused else subject for key, subject in asked.items()
        }
        self._stages = {
            probe.id: frozenset(stage.name for stage in stages_of(probe.modules))
            for probe in desired.probes
        }
        per_pod = {_probe_of(probe) for probe in desired.probes if probe.per_pod}
        self._left_out = {
            **dict.fromkeys(per_pod, 0),
            **Counter(subject.others for subject in refused),
        }
        self._shown = frozenset(
            (subject.namespace, subject.probe, subject.pod)
            for subject in self._subjects.values()
            if subject.pod
        )
        live = {*self._subjects.values(), *map(_probe_of, desired.probes)}
        for subject in live:
            self._totals.setdefault(subject, Total(now)).ended_at = None
        for subject, total in self._totals.items():
            if subject not in live and total.ended_at is None:
                total.ended_at = now
        self._pending = {k: v for k, v in self._pending.items() if k in self._subjects}
        self._forget(now)

    def add(self, key: TargetKey, delta: Measurement) -> None:
        """Add a reading of one target."""
        subject = self._subjects.get(key)
        if subject is None:
            return
        self._totals[subject].add(delta)
        if delta.pending is not None:
            self._pending[key] = delta.pending

    def note_slow(
        self, key: TargetKey, packet: TracedPacket, stages: Iterable[str], now: float
    ) -> None:
        """Keep a traced packet of one target, which was slow in these stages.

        Those that its probe does not measure are left out: another probe may share the slot.
        """
        if subject := self._subjects.get(key):
            for stage in self._stages[key.probe_id].intersection(stages):
                self._totals[subject].note_slow(packet, stage, now)

    def current(self, now: float) -> Iterator[tuple[Subject, Total]]:
        """Return the sums, with those that have ended lately."""
        self._forget(now)
        return iter(self._totals.items())

    def pending(self) -> Mapping[Subject, Mapping[str, Pending]]:
        """Return the pending waits of the last reading."""
        found: dict[Subject, Mapping[str, Pending]] = {}
        for key, pending in self._pending.items():
            subject = self._subjects[key]
            found[subject] = joint_pending(found.get(subject), pending) or {}
        return found

    def is_shown(self, namespace: str, probe: str, pod: str) -> bool:
        """Return True if this pod is measured, and has a sum of its own."""
        return (namespace, probe, pod) in self._shown

    def _refused(self, desired: Desired, asked: Mapping[TargetKey, Subject]) -> frozenset[Subject]:
        """Return the pods that get no sum of their own; namespaces share the places fairly."""
        claims = [
            Claim(
                subject,
                probe.namespace,
                probe.id,
                target.id,
                {_PODS: frozenset({subject})},
                subject in self._totals,
            )
            for probe, target in desired.targets
            if (subject := asked[TargetKey(probe.id, target.id)]).pod
        ]
        return frozenset(refused_claims(claims, {_PODS: self._max_pods}))

    def _forget(self, now: float) -> None:
        ended = [(t.ended_at, s) for s, t in self._totals.items() if t.ended_at is not None]
        ended.sort(key=lambda each: each[0], reverse=True)
        most = self._max_pods + MAX_PROBES
        for number, (ended_at, subject) in enumerate(ended):
            if number >= most or ended_at + KEPT_S <= now:
                del self._totals[subject]


def probe_names(probe: DesiredProbe) -> tuple[str, str]:
    """Return the namespace and the name of a probe, as labels have them."""
    return probe.namespace, probe.name.partition("/")[2] or probe.name or probe.id


def _probe_of(probe: DesiredProbe) -> Subject:
    return Subject(*probe_names(probe))


def _subject_of(probe: DesiredProbe, target: DesiredTarget) -> Subject:
    if not probe.per_pod:
        return _probe_of(probe)
    is_container = isinstance(target.selector, ContainerSelector)
    container = target.container_name if is_container else ""
    return Subject(*probe_names(probe), target.pod_name or pod_uid(target), container)
