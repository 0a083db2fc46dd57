"""All targets of this node, and the time of their next poll.

The pace of polling depends on the target: one that is pending or new is polled often, a settled one
seldom. The kernel side follows forks by itself, so a settled target loses nothing in between.

A target that has failed is polled again with back-off: the cause may pass. A poll that failed for
lack of descriptors or memory says nothing of its target, which keeps the facts of before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latencyprobe.domain.targets import TargetState
from latencyprobe.process.backoff import Backoff
from latencyprobe.process.mounts import read_mounts
from latencyprobe.process.os_errors import is_transient
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
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
# A target that is gone stays so until the client names it again.
_PACE: Mapping[TargetState, float | None] = {
    TargetState.PENDING: _PACE_PENDING_S,
    TargetState.ATTACHED: _PACE_SETTLED_S,
    TargetState.GONE: None,
}


@dataclass(slots=True)
class _Tracked:
    """A target. `problem`: the message of the failed last poll; empty if it succeeded."""

    tracker: Tracker
    since: float
    facts: TargetFacts
    poll_at: float | None = None
    problem: str = ""
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S))


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
            if tracked.poll_at is None or tracked.poll_at > now:
                continue
            before = tracked.facts
            _poll(selector, tracked)
            tracked.poll_at = self._next_poll(tracked, now)
            if tracked.facts != before:
                changed = True
                _log_change(selector, before, tracked.facts)
        return changed

    def poll_again(self, selectors: Iterable[Selector]) -> None:
        """Have the next `refresh` poll these targets, if they can change."""
        now = self._clock()
        for selector in selectors:
            tracked = self._tracked.get(selector)
            if tracked is not None and tracked.poll_at is not None:
                tracked.poll_at = min(tracked.poll_at, now)

    @property
    def facts(self) -> Mapping[Selector, TargetFacts]:
        """The facts of each target."""
        return {selector: tracked.facts for selector, tracked in self._tracked.items()}

    def facts_of(self, selector: Selector) -> TargetFacts:
        """Return the facts of one target."""
        tracked = self._tracked.get(selector)
        return tracked.facts if tracked else failed("is no longer a target")

    @property
    def next_poll(self) -> float | None:
        """The clock's time of the next `refresh`; None if nothing can change."""
        times = [t.poll_at for t in self._tracked.values() if t.poll_at is not None]
        return min(times, default=None)

    def _begin(self, selector: Selector) -> _Tracked:
        now = self._clock()
        tracked = _Tracked(self._tracker_of(selector), since=now, facts=failed("not polled yet"))
        _poll(selector, tracked)
        tracked.poll_at = self._next_poll(tracked, now)
        return tracked

    def _next_poll(self, tracked: _Tracked, now: float) -> float | None:
        if tracked.problem or tracked.facts.state is TargetState.FAILED:
            return now + tracked.backoff.next()
        tracked.backoff.reset()
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


def _poll(selector: Selector, tracked: _Tracked) -> None:
    """Poll the tracker; an error of the file system is that target's failure alone.

    A transient error leaves the facts of a target that was resolved before.
    """
    before, tracked.problem = tracked.problem, ""
    try:
        tracked.facts = tracked.tracker.poll()
    except (OSError, ValueError) as error:
        tracked.problem = f"cannot resolve the target: {error}"
        if tracked.problem != before:
            log.warning("%s: %s; it is tried again", selector, tracked.problem)
        is_resolved = tracked.facts.state is not TargetState.FAILED
        if not (is_resolved and isinstance(error, OSError) and is_transient(error)):
            tracked.facts = failed(tracked.problem)


def _log_change(selector: Selector, before: TargetFacts, after: TargetFacts) -> None:
    if after.state is not before.state:
        log.info("%s: %s, was %s. %s", selector, after.state, before.state, after.message)
