"""The cgroups that targets waited for: their paths, and the pods and containers in these.

Module sched reports a cgroup by its id, which is the inode number of its directory. One that is
gone has no path any more. So a new id is looked up after the reading that has it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.stages import waits_for_cgroups
from latencyprobe.process.os_errors import explained
from latencyprobe_agent.targets.cgroups import Hierarchy
from latencyprobe_agent.targets.containers import pod_uid_of

log = logging.getLogger(__name__)

# Of one target: those that it waited for longest.
MOST_NAMED = 8
# A walk through so many takes some 30 ms. The upper levels come first.
MOST_WALKED = 2048
_MOST_KNOWN = 1024
_WALK_EVERY_S = 5.0
_CONTAINER_NAME = re.compile(r"(?:.*[-:])?(?P<id>[0-9a-f]{64})(?:\.scope)?")


class KnownCgroups:
    """The cgroups by their ids, those that were looked up last. `hierarchy`: None without v2."""

    def __init__(
        self, hierarchy: Hierarchy | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hierarchy = hierarchy
        self._clock = clock
        # A dictionary keeps the order, so the oldest is the first. None: not found.
        self._known: dict[int, Cgroup | None] = {}
        self._walked_at: float | None = None

    def look_up(self, ids: Iterable[int]) -> None:
        """Find the cgroups of these ids that are not known yet.

        Not more often than every few seconds: until then they have to be named again.
        """
        new = {each for each in ids if each not in self._known}
        now = self._clock()
        is_early = self._walked_at is not None and now < self._walked_at + _WALK_EVERY_S
        if not new or is_early or self._hierarchy is None:
            return
        self._walked_at = now
        self._known |= self._found(self._hierarchy, new)
        for oldest in list(self._known)[: max(len(self._known) - _MOST_KNOWN, 0)]:
            del self._known[oldest]

    def among(self, counters: Mapping[str, int]) -> tuple[Cgroup, ...]:
        """Return the known cgroups in the counters of a target: the longest waits first."""
        waits = sorted(
            ((ns, cgroup_id) for cgroup_id, ns in waits_for_cgroups(counters).items()), reverse=True
        )
        found = (self._known.get(cgroup_id) for _, cgroup_id in waits)
        return tuple(each for each in found if each is not None)[:MOST_NAMED]

    @staticmethod
    def _found(hierarchy: Hierarchy, wanted: set[int]) -> dict[int, Cgroup | None]:
        """Return the cgroups of these ids; after an error, only those that were found before it."""
        found: dict[int, Cgroup | None] = {}
        try:
            for directory, status in hierarchy.walk(hierarchy.root, MOST_WALKED):
                if status.st_ino in wanted:
                    found[status.st_ino] = _described(hierarchy, directory, status.st_ino)
                    if len(found) == len(wanted):
                        break
        except OSError as error:
            log.warning("cannot look up all cgroups that targets waited for: %s", explained(error))
            return found
        return dict.fromkeys(wanted, None) | found


def _described(hierarchy: Hierarchy, directory: str, cgroup_id: int) -> Cgroup:
    """Return a cgroup, with the pod in its path unless a user of the node may have made that up."""
    path = hierarchy.relative(directory)
    levels = path.split("/")
    level = _pod_level(levels)
    above = ["/".join(levels[:end]) for end in range(2, (level or 0) + 1)]
    if not all(hierarchy.has_trusted_owner(hierarchy.root + each) for each in above):
        return Cgroup(cgroup_id, path=path)
    pod_uid, container_id = identity_of(path)
    return Cgroup(cgroup_id, pod_uid=pod_uid, container_id=container_id, path=path)


def identity_of(path: str) -> tuple[str, str]:
    """Return the UID of the pod and the id of its container in a path; empty ones without them.

    The topmost count: a pod may make cgroups of any name, but only below its own.
    """
    levels = path.split("/")
    index = _pod_level(levels)
    if index is None:
        return "", ""
    # One directory may be both.
    inner = levels[index + 1] if index + 1 < len(levels) else ""
    container = _CONTAINER_NAME.fullmatch(levels[index] if ":" in levels[index] else inner)
    return pod_uid_of(levels[index]) or "", container["id"] if container else ""


def _pod_level(levels: Sequence[str]) -> int | None:
    """Return the index of the topmost level with the UID of a pod; None without one."""
    return next((index for index, name in enumerate(levels) if pod_uid_of(name)), None)
