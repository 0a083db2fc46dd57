"""All targets of this node, and the time of their next poll.

The pace of polling depends on the target: one that is pending or new is polled often, a settled one
seldom. The kernel side follows forks and new cgroups by itself, so a settled target loses nothing
in between. The beginning of a target does not wait for a poll. The directories in which cgroups are
made are watched, and each cgroup for its first process. After such a change a target is polled
every few milliseconds, until its processes and their network namespace are known.

A target that has failed is polled again with back-off: the cause may pass. A poll that failed for
lack of descriptors or memory says nothing of its target, which keeps the facts of before.

A poll reads each process of its target. A target with thousands of them is polled less often.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    PodSelector,
    Selector,
)
from latencyprobe_agent.targets.cgroups import (
    CgroupTracker,
    Hierarchy,
    cgroup_version,
    find_hierarchy,
)
from latencyprobe_agent.targets.containers import (
    ContainerFinder,
    ContainerTracker,
    pod_uid_of,
)
from latencyprobe_agent.targets.facts import TargetFacts, Tracker, failed
from latencyprobe_agent.targets.inotify import IN_CREATE, IN_DELETE, IN_MODIFY
from latencyprobe_agent.targets.netns import NetnsTracker
from latencyprobe_agent.targets.pods import PodTracker
from latencyprobe_agent.targets.processes import Processes, ProcessTracker
from latencyprobe_agent.targets.survey import holds_pods
from latencyprobe_agent.targets.watches import PathChange, Watches

log = logging.getLogger(__name__)

_NEW_FOR_S = 3.0
_PACE_NEW_S = 0.25
_PACE_PENDING_S = 0.5
_PACE_SETTLED_S = 3.0
# After a change that a watch has reported, while the target is not known: at first, and later,
# since on a busy node the start of a sandbox takes seconds. So many targets have this pace; more of
# them share it.
_BEGINS_FOR_S = 30.0
_PACE_AT_FIRST_S = 0.005
_AT_FIRST_S = 1.0
_PACE_BEGINNING_S = 0.03
_BEGINNING_AT_FULL_PACE = 4
# A poll takes some 8 µs a process.
_PACE_PER_PROCESS_S = 0.0005
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
# A target that is gone stays so until the client names it again, or a watch reports it.
_PACE: Mapping[TargetState, float | None] = {
    TargetState.PENDING: _PACE_PENDING_S,
    TargetState.ATTACHED: _PACE_SETTLED_S,
    TargetState.GONE: None,
}


@dataclass(slots=True)
class _Tracked:
    """A target.

    `problem`: the message of the failed last poll; empty if it succeeded. `begins_until`: it is
    polled often until then, since a watch has reported a change. `is_announced`: its cgroup was
    made since the last poll.
    """

    tracker: Tracker
    since: float
    facts: TargetFacts
    polled_at: float = 0.0
    poll_at: float | None = None
    problem: str = ""
    begins_until: float = 0.0
    is_announced: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S))


# It is replaced, never changed: one of before stays as it was.
Targets = Mapping[Selector, _Tracked]


class Resolver:
    """The current facts of a set of targets.

    Large, because polling and the kernel's watches decide together when which facts are read again.
    """

    def __init__(
        self,
        *,
        proc_root: Path = Path("/proc"),
        cgroup_root: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        watches: Watches | None = None,
        host_netns: int = 0,
    ) -> None:
        """Track nothing yet. `host_netns`: the node's own network namespace; 0: unknown."""
        self._host_netns = frozenset({host_netns})
        self._clock = clock
        self._processes = Processes(proc_root)
        self._mounts = read_mounts()
        root = find_hierarchy(self._mounts, cgroup_root)
        self._hierarchy = Hierarchy(root) if root is not None else None
        self._finder = ContainerFinder(self._hierarchy, clock=clock) if self._hierarchy else None
        self._tracked: Targets = {}
        self._watches = watches or Watches()
        self._watched_by: dict[str, list[Selector]] = {}
        self._by_pod: dict[str, list[Selector]] = {}
        self._pod_parents: tuple[str, ...] = ()
        self._beginning = 0
        self.missed_pods = 0
        """Pods whose cgroup was made and removed before it could be measured, since the start."""

    @property
    def cgroup_version(self) -> str:
        """The mounted cgroup version: "v1", "v2" or "hybrid"."""
        return cgroup_version(self._mounts)

    @property
    def hierarchy(self) -> Hierarchy | None:
        """The v2 hierarchy; None if it is not mounted."""
        return self._hierarchy

    def track(self, selectors: Iterable[Selector]) -> None:
        """Track just these targets from now on. Resolve new ones, and those that failed."""
        kept = {
            selector: tracked
            for selector, tracked in self._tracked.items()
            if tracked.facts.state is not TargetState.FAILED
        }
        self._follow(
            {
                selector: kept.get(selector) or self._begin(selector)
                for selector in dict.fromkeys(selectors)
            }
        )

    @property
    def tracked(self) -> Targets:
        """The targets with all that is known of them, for `track_again`."""
        return self._tracked

    def track_again(self, before: Targets) -> None:
        """Track the targets of before, with their facts.

        Those that were dropped since are polled soon, since changes were not reported to them. A
        process is not looked up again by its number, which may be another's now.
        """
        now = self._clock()
        for selector in before.keys() - self._tracked.keys():
            before[selector].poll_at = now
        self._follow(before)

    def _follow(self, targets: Targets) -> None:
        self._tracked = targets
        self._by_pod = defaultdict(list)
        for selector in targets:
            if isinstance(selector, PodSelector | ContainerSelector):
                self._by_pod[selector.pod_uid].append(selector)
        self._watch()

    def refresh(self) -> bool:
        """Poll the targets that are due; return True if anything changed."""
        now = self._clock()
        changed = False
        self._beginning = sum(self._begins(tracked, now) for tracked in self._tracked.values())
        for selector, tracked in self._tracked.items():
            if tracked.poll_at is None or tracked.poll_at > now:
                continue
            before = tracked.facts
            _poll(selector, tracked)
            self._note_missed(selector, tracked)
            tracked.polled_at = now
            tracked.poll_at = self._next_poll(tracked, now)
            if tracked.facts != before:
                changed = True
                _log_change(selector, before, tracked.facts)
        if changed or self._watches.problem or self._parents() != self._pod_parents:
            self._watch()
        return changed

    def close(self) -> None:
        """End all watches. Idempotent."""
        self._watches.close()

    # Watches

    def fileno(self) -> int | None:
        """Return a descriptor that is readable while changes of targets wait; None without one."""
        return self._watches.fileno()

    @property
    def watch_problem(self) -> str:
        """The reason why new targets are found by polling alone; empty if they are watched."""
        return self._watches.problem

    def take_changes(self) -> bool:
        """Take in the reports of the watches; return True if a target is to be polled now."""
        taken = self._watches.take()
        if taken.is_incomplete:
            log.warning("the kernel has dropped changes of cgroups; polling all targets")
            self._survey_again()
            self.poll_again(self._tracked)
            return True
        is_due = [self._take(change) for change in taken.changes]
        return any(is_due)

    def _take(self, change: PathChange) -> bool:
        if self._finder is not None and holds_pods(change.name):
            self._survey_again()
            return True
        concerned = [each for each in self._concerned(change) if each in self._tracked]
        now = self._clock()
        for selector in concerned:
            tracked = self._tracked[selector]
            # The processes of one that is known may come and go at any rate.
            is_known = self._is_known(tracked.facts)
            pause_s = max(_PACE_NEW_S, _pause_s(tracked.facts)) if is_known else 0.0
            tracked.poll_at = max(now, tracked.polled_at + pause_s)
            tracked.begins_until = now + _BEGINS_FOR_S
            tracked.is_announced |= change.is_new and isinstance(selector, PodSelector)
        return bool(concerned)

    def _concerned(self, change: PathChange) -> Iterable[Selector]:
        if not change.name:
            return self._watched_by.get(change.path, ())
        if pod_uid := pod_uid_of(change.name):
            return self._by_pod.get(pod_uid, ())
        return (NetnsSelector(os.path.join(change.path, change.name)),)

    def _survey_again(self) -> None:
        """Search the hierarchy again for directories that hold pods, for all that wait."""
        if self._finder is not None:
            self._finder.survey_again()
        self.poll_again(
            selector
            for selector, tracked in self._tracked.items()
            if tracked.facts.state is not TargetState.ATTACHED
        )

    def _watch(self) -> None:
        """Watch what the present targets appear in; poll again where a watch is new."""
        self._pod_parents = self._parents()
        wanted: dict[str, int] = {}
        watched_by: dict[str, list[Selector]] = defaultdict(list)
        for selector, tracked in self._tracked.items():
            for path, mask in self._watched(selector, tracked.facts):
                wanted[path] = wanted.get(path, 0) | mask
                watched_by[path].append(selector)
        self._watched_by = watched_by
        if self._watches.follow(wanted):
            self.poll_again(
                selector
                for selector, tracked in self._tracked.items()
                if tracked.facts.state is not TargetState.ATTACHED
            )

    def _watched(self, selector: Selector, facts: TargetFacts) -> Iterator[tuple[str, int]]:
        """Yield the paths whose changes concern a target, with the kinds of changes."""
        match selector:
            case NetnsSelector(path):
                yield os.path.dirname(path), IN_CREATE
            case PodSelector() | ContainerSelector():
                if self._finder is None or self._hierarchy is None:
                    return
                yield self._hierarchy.root, IN_CREATE
                for parent in self._pod_parents:
                    yield parent, IN_CREATE | IN_DELETE
            case PidSelector():
                return
        if facts.cgroup_directories:
            topmost = min(facts.cgroup_directories, key=len)
            yield f"{topmost}/cgroup.events", IN_MODIFY

    def _parents(self) -> tuple[str, ...]:
        return self._finder.pod_parents if self._finder is not None else ()

    def _note_missed(self, selector: Selector, tracked: _Tracked) -> None:
        """Count a pod whose cgroup was reported as made, and is not there."""
        if tracked.problem:
            return  # It is not known whether it is there.
        if tracked.is_announced and not tracked.facts.cgroup_ids:
            self.missed_pods += 1
            log.warning("%s: its cgroup was removed before it could be measured", selector)
        tracked.is_announced = False

    # Polls

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
        if self._begins(tracked, now):
            is_first = tracked.begins_until - now > _BEGINS_FOR_S - _AT_FIRST_S
            pace_s = _PACE_AT_FIRST_S if is_first else _PACE_BEGINNING_S
            return now + pace_s * max(1.0, self._beginning / _BEGINNING_AT_FULL_PACE)
        pace = _PACE[tracked.facts.state]
        if pace is None:
            return None
        is_new = now - tracked.since < _NEW_FOR_S
        return now + max(_PACE_NEW_S if is_new else pace, _pause_s(tracked.facts))

    def _begins(self, tracked: _Tracked, now: float) -> bool:
        """Return True if a change was reported, and the target is not known yet."""
        return tracked.begins_until > now and not self._is_known(tracked.facts)

    def _is_known(self, facts: TargetFacts) -> bool:
        """Return True for an attached target with processes in a network namespace of its own.

        In the node's they may be those of a container's runtime.
        """
        has_processes = bool(facts.pids or facts.netns_wide)
        is_in_host = facts.netns == self._host_netns and not facts.netns_wide
        return facts.state is TargetState.ATTACHED and has_processes and not is_in_host

    def _tracker_of(self, selector: Selector) -> Tracker:
        match selector:
            case PodSelector():
                return PodTracker(self._finder, self._hierarchy, self._processes, selector)
            case ContainerSelector():
                return ContainerTracker(self._finder, self._hierarchy, self._processes, selector)
            case CgroupSelector(path):
                return CgroupTracker(self._hierarchy, self._mounts, self._processes, path)
            case PidSelector(pid):
                return ProcessTracker(self._processes, pid)
            case NetnsSelector(path):
                return NetnsTracker(path)


def _pause_s(facts: TargetFacts) -> float:
    """Return the shortest time between two polls of a target with so many processes."""
    return _PACE_PER_PROCESS_S * len(facts.pids)


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
