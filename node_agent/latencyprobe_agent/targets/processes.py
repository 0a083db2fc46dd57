"""Processes from /proc.

`proc_root` is where the host's /proc is (for a DaemonSet with `hostPID` it is the pod's own). A
process is a *thread group*; its id is the tgid. Process ids are reused, so a process that is
remembered is remembered with its start time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latencyprobe.domain.targets import TargetState
from latencyprobe.process.os_errors import is_gone
from latencyprobe_agent.targets.facts import TargetFacts, failed

_PF_KTHREAD = 0x0020_0000  # include/linux/sched.h
# The names of runc and crun until they execute the container's program: `runc:[2:INIT]`.
_RUNTIME = re.compile(r"(?:runc|crun|youki)\b")
_PROC_PID_INIT_INO = 0xEFFFFFFC  # include/linux/proc_ns.h: the initial PID namespace


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The used fields of /proc/PID/stat."""

    name: str
    state: str
    flags: int
    start_time: int

    @property
    def is_kernel_thread(self) -> bool:
        """True if it runs kernel code only, and so has no sockets of its own."""
        return bool(self.flags & _PF_KTHREAD)

    @property
    def has_exited(self) -> bool:
        """True if only its exit status is left (zombie, dead)."""
        return self.state in "ZX"


def parse_stat(text: str) -> ProcessStat:
    """Parse /proc/PID/stat; the name is in parentheses and may itself contain some."""
    end_of_name = text.rindex(")")
    fields = text[end_of_name + 2 :].split()
    return ProcessStat(
        name=text[text.index("(") + 1 : end_of_name],
        state=fields[0],
        flags=int(fields[6]),
        start_time=int(fields[19]),
    )


@dataclass(frozen=True, slots=True)
class NetworkNamespaces:
    """Inode numbers of the namespaces of some processes, and the processes without permission."""

    inodes: frozenset[int]
    refused: tuple[int, ...] = ()


class Processes:
    """The processes of this machine."""

    def __init__(self, proc_root: Path = Path("/proc")) -> None:
        self._root = str(proc_root)

    def in_initial_namespace(self) -> bool:
        """Return True if our process ids are the kernel's own."""
        try:
            return os.stat(f"{self._root}/self/ns/pid").st_ino == _PROC_PID_INIT_INO
        except OSError as error:
            if not is_gone(error):
                raise
            return False

    def stat(self, pid: int) -> ProcessStat | None:
        """Return the state of a process or thread; None if it does not exist."""
        text = self._read(pid, "stat")
        return parse_stat(text) if text else None

    def tgid(self, pid: int) -> int | None:
        """Return the process of a thread; None if it does not exist."""
        for line in self._read(pid, "status").split("\n"):
            if line.startswith("Tgid:"):
                return int(line.split()[1])
        return None

    def is_runtime(self, pid: int) -> bool:
        """Return True if it is a container's runtime, which is about to become the container."""
        return _RUNTIME.match(self._read(pid, "comm")) is not None

    def children(self, pid: int) -> Iterator[int]:
        """Yield the processes that the threads of a process have forked and that still exist."""
        try:
            threads = os.listdir(f"{self._root}/{pid}/task")
        except OSError as error:
            if not is_gone(error):
                raise
            return
        for thread in threads:
            yield from map(int, self._read(pid, f"task/{thread}/children").split())

    def netns(self, pids: Iterable[int]) -> NetworkNamespaces:
        """Return the network namespaces of these processes; ignore those that exited."""
        inodes, refused = set(), []
        for pid in pids:
            try:
                inodes.add(os.stat(f"{self._root}/{pid}/ns/net").st_ino)
            except PermissionError:
                refused.append(pid)
            except OSError as error:
                if not is_gone(error):
                    raise
        return NetworkNamespaces(frozenset(inodes), tuple(refused))

    def _read(self, pid: int, name: str) -> str:
        """Return the file's text; empty if the process is gone."""
        try:
            descriptor = os.open(f"{self._root}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, 1 << 16).decode("utf-8", "replace")
            finally:
                os.close(descriptor)
        except OSError as error:
            if not is_gone(error):
                raise
            return ""


def refusal_message(refused: tuple[int, ...]) -> str:
    """Return the message for processes whose namespaces cannot be read; empty without any."""
    if not refused:
        return ""
    some = ", ".join(map(str, refused[:3])) + (" …" if len(refused) > 3 else "")
    return (
        f"cannot read the network namespace of {len(refused)} process(es) (PID {some}): "
        "the agent needs CAP_SYS_PTRACE and all capabilities of these processes"
    )


class ProcessTracker:
    """A tracker of a process and its descendants, orphaned ones too.

    A process id without a measurable process is not looked up again. The next process with this id
    is another one, which the client has not named.
    """

    def __init__(self, processes: Processes, pid: int) -> None:
        self._processes = processes
        self._pid = pid
        self._known: dict[int, int] = {}
        self._end: TargetFacts | None = None

    def poll(self) -> TargetFacts:
        """Return the current facts of the processes."""
        if self._end is None and not self._known:
            self._end = self._refuse()
        if self._end is not None:
            return self._end
        self._follow()
        facts = self._describe()
        if facts.state is TargetState.GONE:
            self._end = facts
        return facts

    def _refuse(self) -> TargetFacts | None:
        """Return the refusal of an unmeasurable process; else remember it and return None."""
        stat = self._processes.stat(self._pid)
        if stat is None or stat.has_exited:
            return failed(f"no such process: {self._pid}")
        tgid = self._processes.tgid(self._pid)
        if tgid is None:
            return failed(f"process {self._pid} has exited")
        if tgid != self._pid:
            return failed(
                f"{self._pid} is a thread of process {tgid} ({stat.name}); "
                f"give {tgid} to measure all its threads"
            )
        if stat.is_kernel_thread:
            return failed(f"{self._pid} ({stat.name}) is a kernel thread and has no sockets")
        if not self._processes.in_initial_namespace():
            return failed(
                "the agent is not in the host's PID namespace, so process ids are ambiguous; "
                "run it with hostPID: true, or choose a cgroup"
            )
        self._known[self._pid] = stat.start_time
        return None

    def _follow(self) -> None:
        """Forget processes that exited; add those that were forked."""
        self._known = {p: t for p, t in self._known.items() if self._is_alive(p, t)}
        unvisited = list(self._known)
        while unvisited:
            for child in self._processes.children(unvisited.pop()):
                if child in self._known:
                    continue
                stat = self._processes.stat(child)
                if stat is not None and not stat.has_exited:
                    self._known[child] = stat.start_time
                    unvisited.append(child)

    def _is_alive(self, pid: int, start_time: int) -> bool:
        stat = self._processes.stat(pid)
        return stat is not None and stat.start_time == start_time and not stat.has_exited

    def _describe(self) -> TargetFacts:
        pids = tuple(sorted(self._known))
        namespaces = self._processes.netns(pids)
        if not namespaces.inodes and namespaces.refused:
            return failed(refusal_message(namespaces.refused))
        if not namespaces.inodes:
            return TargetFacts(
                TargetState.GONE, f"process {self._pid} and its descendants have exited"
            )
        return TargetFacts(
            TargetState.ATTACHED,
            refusal_message(namespaces.refused),
            pids=pids,
            tgids=frozenset(pids),
            netns=namespaces.inodes,
        )
