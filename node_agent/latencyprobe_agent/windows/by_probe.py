"""The windows of all probes of a node that have one.

Each probe has a window of each of its pods; those of two probes share no memory. The windows of
pods that are measured are bounded with the targets (`latencyprobe.domain.fairness`). Those of ended
pods are bounded here, with their figures of the interval in which they ended.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from latencyprobe.domain.fairness import MAX_TARGETS
from latencyprobe.domain.stages import Module
from latencyprobe_agent.collector import Departed, Moment, ProbeFigures, measure_alike
from latencyprobe_agent.desired import NOTHING_DESIRED, Desired, DesiredProbe
from latencyprobe_agent.plan import PodTargets
from latencyprobe_agent.windows.probe_window import DroppedPod, ProbeWindow, WindowReport

# Of a node: as many as a report can have in full.
MAX_ENDED_PODS = 256
# Of a node: no more can come back at once.
MAX_REMEMBERED_PODS = MAX_TARGETS


class Windows:
    """The windows, and the newest report of each that was taken.

    `is_suspending`: the next `suspend` is due, since the lease has ended.
    """

    def __init__(self) -> None:
        self.is_suspending = False
        self._had_a_state = False
        self._windows: dict[str, ProbeWindow] = {}
        # Without a lease nothing is measured; a client that comes back finds them again.
        self._suspended: dict[str, ProbeWindow] = {}
        self._taken: dict[str, float] = {}
        # By the ids of their probes, and their UIDs: targets that were refused may be admitted
        # again.
        self._dropped: dict[tuple[str, str], DroppedPod] = {}

    @property
    def probe_ids(self) -> Container[str]:
        """The ids of the probes that have a window."""
        return self._windows.keys()

    def follow(
        self,
        desired: Desired,
        pods: Mapping[str, Sequence[PodTargets]],
        active: Container[Module],
        departed: Departed = MappingProxyType({}),
        *,
        asked: Moment,
        now: Moment,
    ) -> None:
        """Keep windows for these probes; figures that no longer mean the same are dropped.

        `active`: the modules with attached programs. `departed`: the figures of targets that leave
        now. `asked`: when this change began.
        """
        before, self._windows = {**self._suspended, **self._windows}, {}
        for probe in desired.probes:
            if probe.window is None:
                continue
            known = before.get(probe.id)
            if known is None or not measure_alike(known.probe, probe):
                of_first = not self._had_a_state
                known = ProbeWindow(probe, probe.window, asked, of_first_state=of_first)
                self._taken.pop(probe.id, None)
            self._take_back(probe.id, pods.get(probe.id, ()))
            known.follow(
                probe,
                probe.window,
                pods.get(probe.id, ()),
                departed.get(probe.id, {}),
                is_active=_is_active(probe, active),
                asked=asked,
                now=now,
            )
            self._windows[probe.id] = known
        self._had_a_state = self._had_a_state or desired != NOTHING_DESIRED
        if desired.probes:
            self._suspended = {}
        self._taken = {name: end for name, end in self._taken.items() if name in self._windows}
        self._drop_surplus()
        for window in self._windows.values():
            window.pack()

    def _take_back(self, probe_id: str, pods: Iterable[PodTargets]) -> None:
        """Count pods that get a window again no more as dropped ones."""
        for pod in pods:
            if pod.is_measured and (probe_id, pod.uid) in self._dropped:
                self._dropped.pop((probe_id, pod.uid)).come_back()

    def suspend(self, now: Moment) -> None:
        """Keep the windows for a client that comes back after its lease has ended."""
        self.is_suspending = False
        for window in self._windows.values():
            window.suspend(now)
        self._suspended, self._windows = {**self._suspended, **self._windows}, {}

    def add(self, figures: Iterable[ProbeFigures]) -> None:
        """Add the figures of the newest intervals."""
        for each in figures:
            if (window := self._windows.get(each.probe.id)) is not None:
                window.add(each)
        self._drop_surplus()

    def _drop_surplus(self) -> None:
        """Keep MAX_ENDED_PODS: the namespace that has most of them loses its oldest first."""
        ended: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
        for name, window in self._windows.items():
            ended[window.probe.namespace] += ((at, uid, name) for at, uid in window.ended)
        surplus = sum(map(len, ended.values())) - MAX_ENDED_PODS
        if surplus <= 0:
            return
        for own in ended.values():
            own.sort(reverse=True)
        dropped: dict[str, list[str]] = defaultdict(list)
        for _ in range(surplus):
            _, uid, name = max(ended.values(), key=len).pop()
            dropped[name].append(uid)
        for name, uids in dropped.items():
            for uid, counted in self._windows[name].drop(uids).items():
                self._dropped[name, uid] = counted
        self._forget_surplus()

    def _forget_surplus(self) -> None:
        """Keep MAX_REMEMBERED_PODS: the namespace that has most of them loses its oldest first."""
        surplus = len(self._dropped) - MAX_REMEMBERED_PODS
        if surplus <= 0:
            return
        remembered: dict[str, deque[tuple[str, str]]] = defaultdict(deque)
        for name, uid in self._dropped:
            window = self._windows.get(name) or self._suspended.get(name)
            remembered[window.probe.namespace if window else ""].append((name, uid))
        for _ in range(surplus):
            del self._dropped[max(remembered.values(), key=len).popleft()]

    @property
    def due(self) -> list[str]:
        """The ids of the probes with an interval that no report was taken of."""
        return [
            probe_id
            for probe_id, window in self._windows.items()
            if window.end is not None and window.end.monotonic != self._taken.get(probe_id)
        ]

    def take(self, probe_id: str, uncounted: Container[str]) -> WindowReport | None:
        """Return the report on a probe's newest interval; None if there is none any more."""
        window = self._windows.get(probe_id)
        report = window.report(uncounted) if window is not None else None
        if window is None or report is None:
            return None
        self._taken[probe_id] = report.end.monotonic
        # A report that is taken again may be from before the probe's last change.
        return replace(report, probe=window.probe)

    def newest(self, uncounted: Container[str]) -> Iterator[WindowReport]:
        """Yield the newest report of each probe, whether it was taken or not."""
        for window in self._windows.values():
            if (report := window.report(uncounted)) is not None:
                yield replace(report, probe=window.probe)

    def take_again(self) -> None:
        """Make all newest reports due, for a new client."""
        self._taken.clear()


def _is_active(probe: DesiredProbe, active: Container[Module]) -> bool:
    """Return True if programs of the probe are attached, or it needs none."""
    modules = probe.measured_modules
    return not modules or any(module in active for module in modules)
