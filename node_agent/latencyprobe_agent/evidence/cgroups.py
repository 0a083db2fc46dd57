"""The CPU time that a target's cgroups were denied: by a quota, or by others on its CPUs.

A quota may be on a container's cgroup, on its pod's, or on both. Each level accounts for the same
waiting, so the account is that of one: of the cgroup that was throttled longest. The cgroups above
a pod are not a tenant's, and are left out.

Where the controller `cpu` has a v1 hierarchy (hybrid nodes), the quotas are there, and the paths
are those of the target's processes. Where such a path cannot be derived, the counters are absent.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from latencyprobe.domain.stages import CPU_PRESSURE, THROTTLING
from latencyprobe.process.kernel_files import read_kernel_file
from latencyprobe.process.mounts import Mount, is_below
from latencyprobe.process.os_errors import is_transient
from latencyprobe_agent.desired import Selector
from latencyprobe_agent.evidence.cpu import (
    NO_THROTTLING,
    V1_CPU,
    V2,
    Throttling,
    parse_cgroups,
    parse_pressure,
    parse_throttling,
)
from latencyprobe_agent.targets.cgroups import find_hierarchy
from latencyprobe_agent.targets.containers import pod_uid_of
from latencyprobe_agent.targets.facts import TargetFacts

# Of one target, so that a tenant who makes cgroups and processes does not slow down the agent.
MOST_CGROUPS = 16
_MOST_PROCESSES = 16
_MOST_BYTES = 1 << 14
# A process may be moved to another cgroup, and the target's facts stay the same.
_PLACES_AGE_S = 30.0


class CpuCgroups:
    """The cgroups of targets, with their accounts at the last poll.

    `cgroup_root` restricts the hierarchies to that directory and the mounts below it.
    """

    def __init__(
        self,
        mounts: tuple[Mount, ...],
        *,
        cgroup_root: str | None = None,
        proc_root: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        v2 = find_hierarchy(mounts, cgroup_root)
        v1 = _find_v1(mounts, cgroup_root)
        self._finder = _Finder(
            proc_root,
            next((_Hierarchy(m.point, m.root, V2) for m in mounts if m.point == v2), None),
            _Hierarchy(v1.point, v1.root, V1_CPU) if v1 is not None else None,
        )
        self._clock = clock
        self._followed: dict[Selector, _FollowedCgroups] = {}

    def grown(self, targets: Mapping[Selector, TargetFacts]) -> Mapping[Selector, dict[str, int]]:
        """Return the growth of each target's counters since its last poll."""
        grown = {}
        for selector, facts in targets.items():
            followed = self._followed.get(selector)
            if followed is None:
                followed = self._followed[selector] = _FollowedCgroups(self._finder, self._clock)
            grown[selector] = followed.grown(facts)
        return {selector: counters for selector, counters in grown.items() if counters}

    def keep(self, selectors: Collection[object]) -> None:
        """Forget all other targets."""
        self._followed = {s: each for s, each in self._followed.items() if s in selectors}


def _find_v1(mounts: Iterable[Mount], cgroup_root: str | None) -> Mount | None:
    """Return the mount of the controller `cpu` in a v1 hierarchy; None without one."""
    found = (
        mount
        for mount in mounts
        if mount.fstype == "cgroup"
        and V1_CPU in mount.options
        and mount.is_whole
        and (cgroup_root is None or is_below(mount.point, cgroup_root))
    )
    return next(found, None)


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """A hierarchy: its mount, the part of it that is mounted, and its name in /proc/PID/cgroup."""

    point: str
    root: str
    controller: str

    def directory(self, path: str, beside: str) -> str | None:
        """Return the directory of a process's path; None if it cannot be derived, and of the root.

        A path outside of our cgroup namespace begins with `/..` and lacks the levels in common with
        ours. Then `beside`, the same cgroup's path in the v2 hierarchy, has them, if its end is the
        same.
        """
        levels = path.split("/")[1:]
        inner = [level for level in levels if level != ".."]
        if inner != levels:
            known = beside.split("/")[1:]
            if not inner or known[-len(inner) :] != inner:
                return None
            inner = known
        if not all(inner):
            return None
        return os.path.join(self.point, *inner)

    def levels(self, directory: str) -> Iterator[str]:
        """Yield a cgroup and those above it: up to its pod's, or to below the root."""
        while directory != self.point and is_below(directory, self.point):
            yield directory
            if pod_uid_of(os.path.basename(directory)) is not None:
                return
            directory = os.path.dirname(directory)


class _Places(NamedTuple):
    """The directories of a target.

    `quotas`: those whose quotas it is subject to. `topmost`: its own in v2 that are below no other
    of its own. `own`: all of its own, if they are known to be all.
    """

    quotas: tuple[str, ...] = ()
    topmost: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()


class _Finder:
    """A finder of the directories of a target's cgroups."""

    def __init__(self, proc_root: Path, v2: _Hierarchy | None, v1: _Hierarchy | None) -> None:
        self._proc_root = str(proc_root)
        self._v2 = v2
        self._v1 = v1

    def find(self, facts: TargetFacts) -> _Places:
        """Return the directories of a target. Raises OSError if the error is transient."""
        own = facts.cgroup_directories
        processes = self._processes(facts) if self._v1 is not None or not own else ()
        in_v2 = own or frozenset(_directories(self._v2, processes, facts.cgroup))
        topmost = tuple(itertools.islice(_topmost(in_v2), MOST_CGROUPS))
        if self._v1 is not None:
            beside = frozenset(_directories(self._v1, processes, facts.cgroup))
            return _Places(_quotas(self._v1, beside), topmost)
        if self._v2 is None:
            return _Places()
        quotas = _quotas(self._v2, in_v2)
        return _Places(quotas, topmost, own if own <= {*quotas} else frozenset())

    def _processes(self, facts: TargetFacts) -> tuple[Mapping[str, str], ...]:
        """Return the cgroups of some of its processes."""
        step = max(1, len(facts.pids) // _MOST_PROCESSES)
        some = facts.pids[::step][:_MOST_PROCESSES]
        read = (_read(f"{self._proc_root}/{pid}/cgroup") for pid in some)
        return tuple(parse_cgroups(each.text) for each in read if each is not None)


def _directories(
    hierarchy: _Hierarchy | None, processes: Iterable[Mapping[str, str]], beside: str
) -> Iterator[str]:
    if hierarchy is None:
        return
    for paths in processes:
        path = paths.get(hierarchy.controller)
        directory = hierarchy.directory(path, beside) if path is not None else None
        if directory is not None:
            yield directory


def _topmost(directories: Iterable[str]) -> Iterator[str]:
    """Yield those that are below no other one."""
    above: list[str] = []
    for directory in sorted(directories, key=_depth):
        if not any(is_below(directory, each) for each in above):
            above.append(directory)
            yield directory


def _quotas(hierarchy: _Hierarchy, own: Iterable[str]) -> tuple[str, ...]:
    """Return the cgroups whose quotas these are subject to, the upper levels first."""
    found = {level for directory in own for level in hierarchy.levels(directory)}
    return tuple(sorted(found, key=_depth)[:MOST_CGROUPS])


def _depth(directory: str) -> tuple[int, str]:
    return directory.count("/"), directory


class _FollowedCgroups:
    """A target, with the accounts of its cgroups at the last poll, by their files."""

    def __init__(self, finder: _Finder, clock: Callable[[], float]) -> None:
        self._finder = finder
        self._clock = clock
        self._facts: TargetFacts | None = None
        self._places = _Places()
        self._found_at = 0.0
        self._known: dict[str, tuple[int, Throttling]] = {}
        self._pressures: dict[str, tuple[int, int]] = {}
        self._new: frozenset[str] = frozenset()

    def grown(self, facts: TargetFacts) -> dict[str, int]:
        """Return the growth since the last poll; empty at the first one.

        That of a file that cannot be read now is part of the next poll that can read it.
        """
        self._find(facts)
        throttling = self._throttling()
        counters = dict(zip(THROTTLING, throttling, strict=True))
        counters[CPU_PRESSURE] = self._pressure()
        return {name: count for name, count in counters.items() if count}

    def _find(self, facts: TargetFacts) -> None:
        """Find the directories, and which of them were made since the last poll.

        A cgroup cannot be moved to another place. So one that was not below the target's own, when
        all of these were known, is new. Directories that cannot be found now stay as they were.
        """
        now = self._clock()
        if facts == self._facts and now - self._found_at < _PLACES_AGE_S:
            return
        try:
            found = self._finder.find(facts)
        except OSError:
            return
        before, self._places = self._places, found
        self._facts, self._found_at = facts, now
        new = found.own - before.own
        self._new |= frozenset(each for each in new if os.path.dirname(each) in before.own)

    def _throttling(self) -> Throttling:
        """Return the growth of the account of one cgroup: of that which was throttled longest."""
        longest, now, unread = NO_THROTTLING, {}, set()
        for directory in self._places.quotas:
            try:
                read = _read(f"{directory}/cpu.stat")
            except OSError:
                unread.add(directory)
                continue
            account = parse_throttling(read.text) if read is not None else None
            if read is None or account is None:
                continue
            start = (read.inode, NO_THROTTLING if directory in self._new else account)
            inode, before = self._known.get(directory, start)
            # Of another cgroup by the same name all is new.
            grown = account.since(before if inode == read.inode else NO_THROTTLING)
            longest = max(longest, grown or NO_THROTTLING)
            now[directory] = (read.inode, account)
        self._known = now | {each: self._known[each] for each in unread & self._known.keys()}
        self._new &= unread
        return longest

    def _pressure(self) -> int:
        longest, now = 0, {}
        for directory in self._places.topmost:
            try:
                read = _read(f"{directory}/cpu.pressure")
            except OSError:
                if directory in self._pressures:
                    now[directory] = self._pressures[directory]
                continue
            total = parse_pressure(read.text) if read is not None else None
            if read is None or total is None:
                continue
            inode, before = self._pressures.get(directory, (read.inode, total))
            longest = max(longest, total - before if inode == read.inode else 0)
            now[directory] = (read.inode, total)
        self._pressures = now
        return longest


class _File(NamedTuple):
    """A file's content, and the number by which another one of the same name differs."""

    inode: int
    text: str


def _read(path: str) -> _File | None:
    """Read a file; return None if it is gone, or not to be read at all.

    Raises OSError if the error is transient: the growth until then would be lost.
    """
    try:
        inode = os.stat(path).st_ino
        return _File(inode, os.fsdecode(read_kernel_file(path, _MOST_BYTES)))
    except OSError as error:
        if is_transient(error):
            raise
    except ValueError:  # a name with a NUL
        pass
    return None
