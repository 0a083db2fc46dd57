"""All targets of this node, and the time of their next poll.

The pace of polling depends on the target: one that is pending or new is polled often, a settled one
seldom. The kernel side follows forks by itself, so a settled target loses nothing in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import (
    CgroupSelector,
    ContainerSelector,
    NetnsSelector,
    PidSelector,
    Selector,
)
from latencyprobe_agent.targets.cgroups import (
    CgroupTracker,
    Hierarchy,
    cgroup_version,
    find_hierarchy,
    read_mounts,
)
from latencyprobe_agent.targets.containers import ContainerFinder, ContainerTracker
from latencyprobe_agent.targets.facts import TargetFacts, Tracker, failed
from latencyprobe_agent.targets.netns import NetnsTracker
from latencyprobe_agent.targets.processes import Processes, ProcessTracker

log = logging.getLogger(__name__)

_NEW_FOR_S = 3.0
_PACE_NEW_S = 0.25
_PACE_PENDING_S = 0.5
_PACE_SETTLED_S = 3.0
# A target that is gone or has failed stays so until the client names it again.
_PACE: Mapping[TargetState, float | None] = {
    TargetState.PENDING: _PACE_PENDING_S,
    TargetState.ATTACHED: _PACE_SETTLED_S,
    TargetState.GONE: None,
    TargetState.FAILED: None,
}


@dataclass(slots=True)
class _Tracked:
    tracker: Tracker
    since: float
    facts: TargetFacts
    look_at: float | None = None


class Resolver:
    """The current facts of a set of targets."""

    def __init__(
        self,
        *,
        proc_root: Path = Path("/proc"),
        cgroup_root: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._processes = Processes(proc_root)
        self._mounts = read_mounts()
        root = find_hierarchy(self._mounts, cgroup_root)
        self._hierarchy = Hierarchy(root) if root is not None else None
        self._finder = ContainerFinder(self._hierarchy, clock=clock) if self._hierarchy else None
        self._tracked: dict[Selector, _Tracked] = {}

    @property
    def cgroup_version(self) -> str:
        """The mounted cgroup version: "v1", "v2" or "hybrid"."""
        return cgroup_version(self._mounts)

    @property
    def hierarchy_root(self) -> str | None:
        """The mount point of the v2 hierarchy."""
        return self._hierarchy.root if self._hierarchy else None

    def track(self, selectors: Iterable[Selector]) -> None:
        """Track just these targets from now on. Resolve new ones, and those that failed."""
        wanted = dict.fromkeys(selectors)
        self._tracked = {
            selector: tracked
            for selector, tracked in self._tracked.items()
            if selector in wanted and tracked.facts.state is not TargetState.FAILED
        }
        for selector in wanted:
            if selector not in self._tracked:
                self._tracked[selector] = self._begin(selector)

    def refresh(self) -> bool:
        """Poll the targets that are due; return True if anything changed."""
        now = self._clock()
        changed = False
        for selector, tracked in self._tracked.items():
            if tracked.look_at is None or tracked.look_at > now:
                continue
            before, tracked.facts = tracked.facts, _look(tracked.tracker)
            tracked.look_at = self._next_look(tracked, now)
            if tracked.facts != before:
                changed = True
                _log_change(selector, before, tracked.facts)
        return changed

    @property
    def facts(self) -> Mapping[Selector, TargetFacts]:
        """The facts of each target."""
        return {selector: tracked.facts for selector, tracked in self._tracked.items()}

    def facts_of(self, selector: Selector) -> TargetFacts:
        """Return the facts of one target."""
        tracked = self._tracked.get(selector)
        return tracked.facts if tracked else failed("is no longer a target")

    @property
    def next_look(self) -> float | None:
        """The clock's time of the next `refresh`; None if nothing can change."""
        times = [t.look_at for t in self._tracked.values() if t.look_at is not None]
        return min(times, default=None)

    def _begin(self, selector: Selector) -> _Tracked:
        now = self._clock()
        tracker = self._tracker_of(selector)
        tracked = _Tracked(tracker, since=now, facts=_look(tracker))
        tracked.look_at = self._next_look(tracked, now)
        return tracked

    def _next_look(self, tracked: _Tracked, now: float) -> float | None:
        pace = _PACE[tracked.facts.state]
        if pace is None:
            return None
        is_new = now - tracked.since < _NEW_FOR_S
        return now + (_PACE_NEW_S if is_new else pace)

    def _tracker_of(self, selector: Selector) -> Tracker:
        match selector:
            case ContainerSelector():
                return ContainerTracker(self._finder, self._hierarchy, self._processes, selector)
            case CgroupSelector(path):
                return CgroupTracker(self._hierarchy, self._mounts, self._processes, path)
            case PidSelector(pid):
                return ProcessTracker(self._processes, pid)
            case NetnsSelector(path):
                return NetnsTracker(path)


def _look(tracker: Tracker) -> TargetFacts:
    """Poll the tracker; an error of the file system is that target's failure alone."""
    try:
        return tracker.look()
    except (OSError, ValueError) as error:
        log.warning("cannot resolve a target", exc_info=True)
        return failed(f"cannot resolve the target: {error}")


def _log_change(selector: Selector, before: TargetFacts, after: TargetFacts) -> None:
    if after.state is not before.state:
        log.info("%s: %s, was %s. %s", selector, after.state, before.state, after.message)
