"""The v2 cgroup hierarchy: its mount and its cgroups.

A socket carries the id of its process's v2 cgroup at the time of `socket()`. This holds on every
node with a v2 hierarchy, with controllers (pure v2) or without (hybrid). That id is the inode
number of the cgroup's directory. Nothing here ever mounts, unmounts, makes or removes anything.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import deque
from collections.abc import Iterator

from latencyprobe.domain.targets import TargetState
from latencyprobe.process.kernel_files import read_kernel_file
from latencyprobe.process.mounts import Mount, is_below
from latencyprobe.process.os_errors import is_gone, is_transient
from latencyprobe_agent.targets.facts import TargetFacts, failed
from latencyprobe_agent.targets.processes import Processes, refusal_message

# Polls between two walks of a whole subtree; in between a directory's link count shows changes.
_POLLS_PER_WALK = 5
# Of one pod or container: its own, those of a pod's containers, and some of those inside them. The
# kernel looks up the cgroups above one that is not listed. A tenant may make any number.
MAX_CGROUPS_OF_POD = 64


def cgroup_version(mounts: tuple[Mount, ...]) -> str:
    """Return "v1", "v2" or "hybrid"; "none" if no hierarchy is mounted."""
    fstypes = {mount.fstype for mount in mounts}
    has_v1, has_v2 = "cgroup" in fstypes, "cgroup2" in fstypes
    if has_v1:
        return "hybrid" if has_v2 else "v1"
    return "v2" if has_v2 else "none"


def find_hierarchy(mounts: tuple[Mount, ...], cgroup_root: str | None = None) -> str | None:
    """Return the mount point of the v2 hierarchy, the most complete one; None without a mount.

    `cgroup_root` restricts the search to that directory and the mounts below it.
    """
    candidates = [mount for mount in mounts if mount.fstype == "cgroup2"]
    if cgroup_root is not None:
        candidates = [mount for mount in candidates if is_below(mount.point, cgroup_root)]
    if not candidates:
        return None
    # `/../..` includes levels above our own cgroup namespace, hence more than `/`.
    return min(candidates, key=lambda m: (not m.is_whole, -m.root.count(".."), len(m.root))).point


def mount_of(path: str, mounts: tuple[Mount, ...]) -> Mount | None:
    """Return the mount of an absolute path without symbolic links."""
    best = None
    for mount in mounts:
        if is_below(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


class Hierarchy:
    """The directories below the mount of the v2 hierarchy."""

    def __init__(self, root: str) -> None:
        self.root = root

    def relative(self, directory: str) -> str:
        """Return the cgroup's path below the mount, as in /proc/PID/cgroup."""
        return "/" + os.path.relpath(directory, self.root) if directory != self.root else "/"

    def has_trusted_owner(self, directory: str) -> bool:
        """Return True if root owns the directory, or the owner of all cgroups here does."""
        status = status_of(directory)
        return status is not None and status.st_uid in self.trusted_owners()

    def trusted_owners(self) -> frozenset[int]:
        """Return the owners of the cgroups above pods: root, and the owner of all cgroups here.

        In a user namespace the latter may be another one than root.
        """
        root = status_of(self.root)
        return frozenset({0}) if root is None else frozenset({0, root.st_uid})

    def walk(self, directory: str, most: int | None = None) -> Iterator[tuple[str, os.stat_result]]:
        """Yield a cgroup and all below it, except those that vanish during the walk.

        `most`: the largest number of them. Then the upper levels come first.
        """
        unvisited = deque([directory])
        for _ in itertools.count() if most is None else range(most):
            if not unvisited:
                return
            current = unvisited.popleft()
            try:
                status = os.stat(current)
                # The link count of a kernfs directory is 2 and one for each directory in it.
                if status.st_nlink > 2:
                    unvisited.extend(subdirectories(current, most))
            except OSError as error:
                if not is_gone(error):
                    raise
                continue
            yield current, status

    def pids(self, directory: str) -> list[int]:
        """Return the processes in one cgroup. 0 is a process outside our PID namespace."""
        try:
            return [int(line) for line in read_kernel_file(f"{directory}/cgroup.procs").split()]
        except OSError as error:
            # In a threaded subtree the processes are listed in its domain (EOPNOTSUPP). ENODEV: the
            # cgroup was removed before or after cgroup_file_open(), kernel/cgroup/cgroup.c.
            if error.errno == errno.EOPNOTSUPP or is_gone(error):
                return []
            raise


def subdirectories(directory: str, most: int | None = None) -> list[str]:
    """Return the directories in a directory, `most` at most; none if it is gone."""
    try:
        with os.scandir(directory) as entries:
            found = (entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
            return list(itertools.islice(found, most))
    except OSError as error:
        if not is_gone(error):
            raise
        return []


def status_of(path: str) -> os.stat_result | None:
    """Return the status of a file; None if it is gone."""
    try:
        return os.stat(path)
    except OSError as error:
        if not is_gone(error):
            raise
        return None


def is_directory(path: str) -> bool:
    """Return True for a directory. Raises OSError if the error is transient."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if is_transient(error):
            raise
        return False


class SubtreeTracker:
    """A tracker of an existing cgroup, with its nested cgroups and its processes.

    `most_cgroups`: the largest number of them, itself included; None: all.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        processes: Processes,
        directory: str,
        *,
        most_cgroups: int | None = None,
    ) -> None:
        self._hierarchy = hierarchy
        self._processes = processes
        self._directory = directory
        self._most_cgroups = most_cgroups
        self._is_cut = False
        self._inode: int | None = None
        self._directories: dict[str, os.stat_result] = {}
        self._netns: frozenset[int] = frozenset()
        self._polls = 0

    def poll(self) -> TargetFacts:
        """Return the current facts of the cgroup; GONE once its directory is removed."""
        if self._polls % _POLLS_PER_WALK == 0 or self._has_changed():
            self._walk()
        self._polls += 1
        here = self._directories.get(self._directory)
        if here is None or (self._inode is not None and here.st_ino != self._inode):
            return TargetFacts(
                TargetState.GONE,
                "the cgroup has been removed",
                cgroup=self._hierarchy.relative(self._directory),
            )
        self._inode = here.st_ino
        return self._describe()

    def _walk(self) -> None:
        most = self._most_cgroups
        one_more = None if most is None else most + 1
        found = list(self._hierarchy.walk(self._directory, one_more))
        self._is_cut = most is not None and len(found) > most
        self._directories = dict(found[:most])

    def _has_changed(self) -> bool:
        for directory, known in self._directories.items():
            try:
                now = os.stat(directory)
            except OSError as error:
                if not is_gone(error):
                    raise
                return True
            if (now.st_ino, now.st_nlink) != (known.st_ino, known.st_nlink):
                return True
        return False

    def _describe(self) -> TargetFacts:
        listed = [pid for path in self._directories for pid in self._hierarchy.pids(path)]
        pids = tuple(sorted({pid for pid in listed if pid}))
        namespaces = self._processes.netns(pids)
        if namespaces.inodes - self._netns:
            # A runtime joins the container's cgroup before its network namespace.
            pids = tuple(pid for pid in pids if not self._processes.is_runtime(pid))
            namespaces = self._processes.netns(pids)
        if namespaces.inodes:
            self._netns = namespaces.inodes
        state, message = self._judge(pids, hidden=0 in listed, refused=namespaces.refused)
        facts = TargetFacts(
            state,
            message,
            cgroup=self._hierarchy.relative(self._directory),
            pids=pids,
            cgroup_ids=frozenset(status.st_ino for status in self._directories.values()),
            cgroup_directories=frozenset(self._directories),
            netns=self._netns,
        )
        return facts.partial(self._cut) if self._is_cut else facts

    @property
    def _cut(self) -> str:
        return (
            f"it has more than {self._most_cgroups} cgroups: processes in the others that have "
            "network namespaces of their own are not measured"
        )

    def _judge(
        self, pids: tuple[int, ...], *, hidden: bool, refused: tuple[int, ...]
    ) -> tuple[TargetState, str]:
        """Return state and message. Namespaces that were seen stay valid for later processes."""
        outside = (
            "processes of this cgroup are outside the agent's PID namespace; "
            "run the agent with hostPID: true"
        )
        if self._netns:
            message = outside if hidden else refusal_message(refused)
            return TargetState.ATTACHED, message or (
                "" if pids else "the cgroup has no processes now"
            )
        if hidden:
            return TargetState.FAILED, outside
        if refused:
            return TargetState.FAILED, refusal_message(refused)
        return TargetState.PENDING, "the cgroup has no processes yet"


class CgroupTracker:
    """A tracker of the cgroup at a path from a person."""

    def __init__(
        self,
        hierarchy: Hierarchy | None,
        mounts: tuple[Mount, ...],
        processes: Processes,
        path: str,
    ) -> None:
        self._hierarchy = hierarchy
        self._mounts = mounts
        self._processes = processes
        self._path = path
        self._subtree: SubtreeTracker | None = None

    def poll(self) -> TargetFacts:
        """Return the current facts of the cgroup."""
        if self._subtree is None:
            directory = os.path.realpath(self._path)
            refusal = self._refuse(directory)
            if refusal is not None:
                return failed(refusal)
            mount = mount_of(directory, self._mounts)
            assert mount is not None
            self._subtree = SubtreeTracker(Hierarchy(mount.point), self._processes, directory)
        return self._subtree.poll()

    def _refuse(self, directory: str) -> str | None:
        """Return the reason why the directory is not a measurable cgroup; None if it is one."""
        if not is_directory(directory):
            what = "is not a directory" if os.path.exists(directory) else "does not exist"
            return f"{self._path} {what}; {self._what_is_right()}"
        mount = mount_of(directory, self._mounts)
        if mount is not None and mount.fstype == "cgroup2":
            return None
        if mount is not None and mount.fstype == "cgroup":
            return (
                f"{self._path} is in a cgroup v1 hierarchy, {self._counterpart(directory, mount)}"
            )
        return f"{self._path} is a directory but not a cgroup; {self._what_is_right()}"

    def _what_is_right(self) -> str:
        if self._hierarchy is None:
            return "no cgroup v2 hierarchy is mounted; choose a PID or a network namespace"
        return f"cgroups are directories below {self._hierarchy.root}"

    def _counterpart(self, directory: str, mount: Mount) -> str:
        """Return advice with the same directory in the v2 hierarchy, to which sockets belong."""
        if self._hierarchy is None:
            return "and " + self._what_is_right()
        below = os.path.relpath(directory, mount.point)
        counterpart = os.path.normpath(os.path.join(self._hierarchy.root, below))
        if os.path.isdir(counterpart):
            return f"but sockets belong to v2 cgroups; give {counterpart}"
        return (
            f"but sockets belong to v2 cgroups, and {counterpart} does not exist; line `0::` of "
            "/proc/PID/cgroup has the v2 cgroup of a process"
        )
