"""The window of one probe: of each of its pods, of all of them together, and of the node.

Time is divided into slots, at most SLOTS in a window; all pods of a probe share them. So the sum
over all pods is always the sum of the pods' windows. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from types import MappingProxyType

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.measurement import (
    NOTHING,
    Measurement,
    NodeMeasurement,
    across_pods,
    of_one_pod,
)
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.report import in_full, report_on
from latencyprobe.domain.score import score_of
from latencyprobe.domain.slots import slot_length_s
from latencyprobe.domain.summary import (
    PodReport,
    ProbeSummary,
    accused_waiting_ns,
    verdict_counts,
    waiting_by_cause,
    worst_first,
)
from latencyprobe.domain.waits import TOTALS
from latencyprobe_agent.collector import Moment, ProbeFigures, only
from latencyprobe_agent.desired import DesiredProbe, DesiredTarget, DesiredWindow, pod_uid
from latencyprobe_agent.plan import PodTargets
from latencyprobe_agent.windows.early_figures import EarlyFigures
from latencyprobe_agent.windows.gaps import Gaps
from latencyprobe_agent.windows.merging import merged
from latencyprobe_agent.windows.node_window import WindowOfNode
from latencyprobe_agent.windows.running import RunningWindow

# Of one probe in its window: with the windows that are kept, a summary has fewer than it may.
MAX_DROPPED_PODS = 2048
# Of a pod in an interval, apart from each other.
MAX_LEFT_CONTAINERS = 3
# Readings come an interval apart, give or take this part of it.
_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class WindowReport:
    """One probe's report over the window that ends at `end`.

    `begin`: the beginning of the newest interval. `pods`: those with a score, worst first.
    """

    probe: DesiredProbe
    begin: Moment
    end: Moment
    summary: ProbeSummary
    pods: tuple[PodReport, ...]
    node: NodeMeasurement
    verdicts: Mapping[str, Bottleneck] = field(default_factory=dict)
    """The verdict on each pod that has not ended, by its name, if the probe has metrics per pod."""


@dataclass(slots=True)
class _TimeSlot:
    number: int
    began: float
    ended: float


class _PodWindow:
    """One pod, its measurements, its pending waits of now, and when it was measured last."""

    __slots__ = ("_left", "_peers", "_pending", "last_measured", "pod", "sums")

    def __init__(self, pod: PodTargets) -> None:
        self.pod = pod
        self.sums = RunningWindow()
        # Of its containers that have left in the present interval.
        self._left: dict[str, EarlyFigures] = {}
        self._pending: Mapping[str, Pending] = {}
        self._peers: Sequence[Peer] = ()
        self.last_measured = math.inf

    def become(self, pod: PodTargets, now: float) -> None:
        """Take the pod's state of now."""
        if pod.is_measured:
            self.last_measured = math.inf
        elif self.pod.is_measured:
            self.last_measured = now
        self.pod = pod

    def leave(self, figures: Mapping[str, Measurement]) -> None:
        """Keep the figures of containers that leave now until the interval has ended.

        Those of very many containers are kept together.
        """
        for name, measurement in figures.items():
            if name in self._left or len(self._left) < MAX_LEFT_CONTAINERS:
                kept = self._left.setdefault(name, EarlyFigures())
                kept.put(kept.value() + measurement)
            else:
                kept = next(iter(self._left.values()))
                kept.put(of_one_pod(kept.value(), measurement))

    def last(self) -> Measurement:
        """Return the figures of containers that have left in the present interval."""
        return _together({name: kept.value() for name, kept in self._left.items()})

    def pack(self) -> None:
        """Pack the figures that wait for the end of the interval."""
        for kept in self._left.values():
            kept.pack()

    def complete(self, figures: Mapping[str, Measurement]) -> Measurement:
        """Return the figures of the whole interval, those of containers that have left included.

        The stays of one container follow each other. Others may have run at the same time.
        """
        present = _together(figures)
        if not self._left:
            return present
        names = dict.fromkeys((*self._left, *figures))
        left = {name: kept.value() for name, kept in self._left.items()}
        self._left = {}
        together = _together(
            {name: left.get(name, NOTHING) + figures.get(name, NOTHING) for name in names}
        )
        now = present or together
        return replace(together, pending=now.pending, peers=now.peers)

    def advance(self, delta: Measurement, *, slot: int, oldest: int) -> None:
        """Add the measurement of an interval, and replace the pending waits."""
        self._pending, self._peers = delta.pending or {}, delta.peers
        self.sums.advance(replace(delta, pending=None, peers=()), slot=slot, oldest=oldest)

    def value(self) -> Measurement:
        """Return the measurement of the window."""
        return replace(self.sums.value(), pending=self._pending, peers=self._peers)

    def is_over(self, before: float) -> bool:
        """Return True if it was not measured since this time."""
        return self.sums.is_empty and self.last_measured <= before


@dataclass(slots=True)
class _Dropped:
    """The verdicts and the waiting times of pods whose windows were dropped early."""

    verdicts: Counter[str] = field(default_factory=Counter)
    waiting_ns: Counter[str] = field(default_factory=Counter)

    def count(self, pod: PodReport) -> DroppedPod:
        verdict = pod.report.verdict
        counted = DroppedPod(self, str(verdict.bottleneck), accused_waiting_ns(verdict))
        self.verdicts[counted.bottleneck] += 1
        self.waiting_ns.update(counted.waiting_ns)
        return counted


@dataclass(frozen=True, slots=True)
class DroppedPod:
    """A pod whose window was dropped, as it counts in the summaries of its probe."""

    counts: _Dropped
    bottleneck: str
    waiting_ns: Mapping[str, int]

    def come_back(self) -> None:
        """Count it no more: it has a window again."""
        self.counts.verdicts -= Counter([self.bottleneck])
        self.counts.waiting_ns -= Counter(self.waiting_ns)


class ProbeWindow:
    """The figures of one probe over its window.

    Large, because pods that end, gaps and the node each have a state beside the sums.
    """

    def __init__(
        self,
        probe: DesiredProbe,
        window: DesiredWindow,
        asked: Moment,
        *,
        of_first_state: bool = False,
    ) -> None:
        self.probe = probe
        self._of_first_state = of_first_state
        self._window = window
        self._applied_at = asked.monotonic
        self._interval: tuple[Moment, Moment] | None = None
        self._newest: WindowReport | None = None
        self._slots: deque[_TimeSlot] = deque()
        self._pods: dict[str, _PodWindow] = {}
        # Of dropped pods, in the present interval.
        self._omitted = EarlyFigures()
        self._merged = RunningWindow()
        self._node = WindowOfNode()
        self._gaps = Gaps()
        # By the slot in which they were measured last.
        self._dropped: dict[int, _Dropped] = {}
        # Since the last interval: figures of theirs may still come.
        self._just_dropped: set[str] = set()
        self._uncounted: Container[str] = ()
        self._is_active = self._has_pods = False

    @property
    def end(self) -> Moment | None:
        """The end of the newest interval; None before the first."""
        return self._interval[1] if self._interval else None

    def follow(
        self,
        probe: DesiredProbe,
        window: DesiredWindow,
        pods: Sequence[PodTargets],
        departed: Mapping[DesiredTarget, Measurement] = MappingProxyType({}),
        *,
        is_active: bool,
        asked: Moment,
        now: Moment,
    ) -> None:
        """Follow the probe and its pods.

        `departed`: the last figures of targets that leave now. `is_active`: programs of its modules
        are attached. `asked`: when this change began.
        """
        self.probe, self._window = probe, window
        current = {pod.uid: pod for pod in pods}
        self._follow_pods(current, now.monotonic)
        self._keep_last(departed, now.monotonic)
        self._just_dropped &= current.keys()
        had_pods, has_pods = self._has_pods, any(pod.is_measured for pod in pods)
        if has_pods and not (had_pods and self._is_active):
            self._gaps.begin(asked.monotonic)
        if has_pods and not is_active:
            self._gaps.begin(now.monotonic)
        else:
            self._gaps.end(now.monotonic)
        self._is_active, self._has_pods = is_active, has_pods

    def suspend(self, now: Moment) -> None:
        """Begin a gap: nothing is measured until the next `follow`."""
        self._follow_pods({}, now.monotonic)
        self._gaps.begin(now.monotonic)
        self._is_active = self._has_pods = False
        self._interval = self._newest = None

    def add(self, figures: ProbeFigures) -> None:
        """Add the figures of one interval."""
        slot, oldest = self._slot_at(figures.end.monotonic)
        by_pod = _by_pod({target: figures.of(target.id) for target in figures.probe.targets})
        for uid in by_pod:
            if uid not in self._pods and uid not in self._just_dropped:
                self._pods[uid] = _PodWindow(PodTargets(uid))
                self._pods[uid].last_measured = figures.end.monotonic
        self._just_dropped.clear()
        together = merged(self._advance_pods(by_pod, slot=slot, oldest=oldest))
        self._merged.advance(together, slot=slot, oldest=oldest)
        self._node.advance(figures.of_node(), slot=slot, oldest=oldest)
        self._interval, self._newest = (figures.begin, figures.end), None
        self._forget(figures.end.monotonic - self._window.length_s)

    def report(self, uncounted: Container[str]) -> WindowReport | None:
        """Return the report on the newest interval; None before the first.

        `uncounted`: counters that this node cannot count.
        """
        self._uncounted = uncounted
        if self._newest is None and self._interval is not None:
            self._newest = self._report(*self._interval, uncounted)
        return self._newest

    # The pods

    @property
    def ended(self) -> Sequence[tuple[float, str]]:
        """The pods that have ended, each with the time when it was measured last."""
        return [
            (known.last_measured, uid) for uid, known in self._pods.items() if known.pod.has_ended
        ]

    def drop(self, uids: Iterable[str]) -> Mapping[str, DroppedPod]:
        """Drop the windows of pods that have ended; their figures and their verdicts still count.

        Of very many such verdicts, the first ones count. Return the pods that count, by UID.
        """
        self._newest = None
        dropped = [self._pods.pop(uid) for uid in uids]
        self._just_dropped.update(known.pod.uid for known in dropped)
        node = self._node.value() if self.probe.node_figures else None
        before = sum(each.verdicts.total() for each in self._dropped.values())
        self._omit(known.last() for known in dropped)
        return {
            known.pod.uid: self._dropped.setdefault(self._slot_of(known), _Dropped()).count(
                _pod_report(
                    known.pod,
                    known.value() + known.last(),
                    probe=self.probe,
                    node=node,
                    uncounted=self._uncounted,
                    only_stages=TOTALS,
                )
            )
            for known in dropped[: MAX_DROPPED_PODS - before]
        }

    def _slot_of(self, pod: _PodWindow) -> int:
        """Return the number of the slot in which a pod was measured last.

        Its last figures may come with the present interval, which has no slot yet.
        """
        if self._slots and pod.last_measured > self._slots[-1].ended:
            return self._number_at(self._slots[-1].ended + self.probe.interval_s)
        began = (slot.number for slot in reversed(self._slots) if slot.began < pod.last_measured)
        return next(began, self._slots[0].number if self._slots else 0)

    def pack(self) -> None:
        """Pack the figures that wait for the end of the interval."""
        for known in self._pods.values():
            known.pack()
        self._omitted.pack()

    def _keep_last(self, departed: Mapping[DesiredTarget, Measurement], now: float) -> None:
        """Keep figures until the interval has ended: in the pod's window, if that is kept."""
        names = {pod_uid(target): target.pod_name for target in departed}
        ours = {target: only(each, self.probe.modules) for target, each in departed.items()}
        omitted = []
        for uid, figures in _by_pod(ours).items():
            if uid in self._just_dropped and uid not in self._pods:
                omitted.append(_together(figures))
                continue
            if uid not in self._pods:
                self._pods[uid] = _PodWindow(PodTargets(uid, names[uid]))
                self._pods[uid].last_measured = now
            self._pods[uid].leave(figures)
        self._omit(omitted)

    def _omit(self, figures: Iterable[Measurement]) -> None:
        """Keep figures until the interval has ended, for the sum over all pods alone."""
        if together := merged(figures):
            self._omitted.put(merged((self._omitted.value(), together)))

    def _follow_pods(self, current: Mapping[str, PodTargets], now: float) -> None:
        for uid, known in self._pods.items():
            pod = current.get(uid, replace(known.pod, is_measured=False, has_ended=True))
            known.become(pod, now)
        for uid, pod in current.items():
            if pod.is_measured and uid not in self._pods:
                self._pods[uid] = _PodWindow(pod)

    def _advance_pods(
        self, by_pod: Mapping[str, Mapping[str, Measurement]], *, slot: int, oldest: int
    ) -> Iterator[Measurement]:
        """Advance the windows; yield what each pod adds to the sum over all of them."""
        for uid, known in self._pods.items():
            delta = known.complete(by_pod.get(uid, {}))
            known.advance(delta, slot=slot, oldest=oldest)
            yield across_pods(delta)
        for uid, figures in by_pod.items():
            if uid not in self._pods:
                yield across_pods(_together(figures))
        yield self._omitted.value()
        self._omitted.put(NOTHING)

    def _forget(self, before: float) -> None:
        over = [uid for uid, known in self._pods.items() if known.is_over(before)]
        for uid in over:
            del self._pods[uid]
        oldest = self._slots[0].number
        self._dropped = {slot: each for slot, each in self._dropped.items() if slot >= oldest}
        self._gaps.forget(before)

    # The slots

    def _slot_at(self, at: float) -> tuple[int, int]:
        """Return the numbers of the newest and of the oldest slot."""
        interval_s = self.probe.interval_s
        number = self._number_at(at)
        if not self._slots or number != self._slots[-1].number:
            self._slots.append(_TimeSlot(number, at - interval_s, at))
        self._slots[-1].ended = at
        before = at - self._window.length_s + interval_s * _JITTER
        while self._slots[0].ended <= before:
            self._slots.popleft()
        return self._slots[-1].number, self._slots[0].number

    def _number_at(self, at: float) -> int:
        """Return the number of the slot of an interval that ends at this time."""
        if not self._slots:
            return 0
        interval_s, newest = self.probe.interval_s, self._slots[-1]
        length_s = slot_length_s(self._window.length_s, interval_s)
        is_full = at > newest.began + length_s + interval_s * _JITTER
        return newest.number + 1 if is_full else newest.number

    # The report

    def _report(self, begin: Moment, end: Moment, uncounted: Container[str]) -> WindowReport:
        node = self._node.value()
        seen = node if self.probe.node_figures else None
        judged = partial(_pod_report, probe=self.probe, node=seen, uncounted=uncounted)
        # A pod in full takes several times as long as its score.
        is_each_shown = len(self._pods) <= self._window.max_pods
        figures_of = None if is_each_shown else TOTALS
        counts: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        for dropped in self._dropped.values():
            counts.update(dropped.verdicts)
            waiting.update(dropped.waiting_ns)
        reports: dict[str, PodReport] = {}
        for uid, known in self._pods.items():
            measurement = known.value()
            reports[uid] = judged(known.pod, measurement, only_stages=figures_of)
        scores = worst_first((pod.place for pod in reports.values()), self._window.max_pods)
        counts.update(verdict_counts(reports.values()))
        waiting.update(waiting_by_cause(reports.values()))
        summary = ProbeSummary(
            merged=self._merged.value(),
            verdicts=counts,
            waiting_ns=waiting,
            scores=scores,
            unobserved_ns=self._unobserved_ns(end.monotonic),
            kept_ns=round(max(end.monotonic - self._applied_at, 0.0) * 1e9),
            of_first_state=self._of_first_state,
        )
        shown = (reports[score.pod_uid] for score in scores)
        complete = shown if is_each_shown else map(self._in_full, shown)
        verdicts = {
            pod.name or uid: pod.report.verdict.bottleneck
            for uid, pod in reports.items()
            if self.probe.per_pod and not pod.ended
        }
        return WindowReport(self.probe, begin, end, summary, tuple(complete), node, verdicts)

    def _in_full(self, pod: PodReport) -> PodReport:
        measurement = self._pods[pod.pod_uid].value()
        return replace(pod, report=in_full(pod.report, measurement, self.probe.modules))

    def _unobserved_ns(self, end: float) -> int:
        begin = max(end - self._window.length_s, self._applied_at)
        return round(self._gaps.within(begin, end) * 1e9)


def _by_pod(
    figures: Mapping[DesiredTarget, Measurement],
) -> dict[str, dict[str, Measurement]]:
    """Return the figures by the pods' UIDs and the containers' names; no empty ones.

    A container keeps its name when it restarts. A target without one has its id.
    """
    found: dict[str, dict[str, Measurement]] = defaultdict(dict)
    for target, measurement in figures.items():
        if measurement:
            own, name = found[pod_uid(target)], target.container_name or target.id
            own[name] = own.get(name, NOTHING) + measurement
    return found


def _together(figures: Mapping[str, Measurement]) -> Measurement:
    """Return the figures of all containers of a pod, in the same time."""
    return reduce(of_one_pod, figures.values()) if figures else NOTHING


def _pod_report(
    pod: PodTargets,
    measurement: Measurement,
    *,
    probe: DesiredProbe,
    node: NodeMeasurement | None,
    uncounted: Container[str],
    only_stages: Container[str] | None = None,
) -> PodReport:
    report = report_on(
        measurement,
        probe.modules,
        node,
        uncounted=uncounted,
        only_stages=only_stages,
        objectives=probe.objectives,
    )
    return PodReport(
        pod.uid, pod.name, pod.containers, score_of(report), report, ended=pod.has_ended
    )
