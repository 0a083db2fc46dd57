"""Long-running processes, each known by a PID file and a log file, all below one cgroup.

They outlive the process that starts them, and another may stop them. A PID file holds the PID and
the process's start time, which together never name a stranger that the PID was given to later.

Who enters a PID namespace is not in it, but its children are (pid_namespaces(7)). So nsenter and
unshare stay, wait for the program that they start, and end as it does: the program is their child.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import cgroups
from .errors import ClusterError
from .waiting import NotInTimeError, Unmet, wait_until

LOG_TAIL_LINES = 25

# Generous: on two cores that others use too, a start that takes 10 s may take a minute.
START_S = 120

# A process enters its cgroup, in every hierarchy, before it becomes the program: so all that it
# ever starts is in it. The arguments: how many hierarchies, their directories, the program.
ENTER_CGROUP = """
count=$1; shift
while [ "$count" -gt 0 ]; do echo 0 > "$1"/cgroup.procs; shift; count=$((count - 1)); done
exec "$@"
"""


class ClusterStartError(ClusterError):
    """A component did not come up."""

    def __init__(self, reason: Exception, component: str, log: Path) -> None:
        super().__init__(f"{reason}\nThe end of {log}:\n{tail(log)}\nAll logs: {log.parent}")
        self.component = component
        self.log = log


class ComponentDiedError(ClusterError):
    """A process that should run does not."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(f"{name} has stopped. The end of {log}:\n{tail(log)}")
        self.name = name
        self.log = log


def tail(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "(there is no log)"
    return "\n".join(lines[-LOG_TAIL_LINES:]) or "(the log is empty)"


def _start_time(pid: int) -> str | None:
    """Return the clock ticks from boot to its start; None for a zombie or no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the second field, in parentheses, may hold anything; then state (3) ... start (22).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


class ProcessTable:
    """The processes of one cluster, by name."""

    def __init__(self, *, pids: Path, logs: Path, cgroup: str) -> None:
        self._pids = pids
        self._logs = logs
        self._cgroup = cgroup
        # Those that this very process started: it has to collect them when they end.
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, cgroup: str
    ) -> None:
        """Start it, in a session of its own: Ctrl-C in a terminal is not for it.

        The command is one of nsenter or unshare, which forks. `cgroup` is one below all others'.
        """
        homes = [str(directory) for directory in cgroups.create_everywhere(cgroup)]
        for directory in (self._pids, self._logs):
            directory.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            log.write(f"\n=== {shlex.join(command)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                ["sh", "-ec", ENTER_CGROUP, "sh", str(len(homes)), *homes, *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[name] = child
        pid = self._wait_for_fork(name, child)
        self._pid_file(name).write_text(f"{pid} {_start_time(pid)}")

    def _wait_for_fork(self, name: str, starter: subprocess.Popen[bytes]) -> int:
        """Return the PID of the program that nsenter or unshare started."""
        found: list[int] = []

        def unmet() -> str | None:
            if starter.poll() is not None:
                raise ComponentDiedError(name, self.log(name))
            children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text()
            found[:] = map(int, children.split())
            return None if found else "it is being started"

        wait_until(f"the start of {name}", unmet, seconds=10, interval_s=0.01)
        return found[0]

    def log(self, name: str) -> Path:
        """Return the path of its log."""
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int | None:
        """Return its PID while it runs."""
        try:
            pid, started = self._pid_file(name).read_text().split()
        except (FileNotFoundError, ValueError):  # a starter that was killed may leave it empty
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def require_running(self, name: str) -> int:
        """Return its PID; raises ComponentDiedError."""
        if (pid := self.pid(name)) is None:
            raise ComponentDiedError(name, self.log(name))
        return pid

    def wait_for(self, what: str, name: str, unmet: Unmet) -> None:
        """Wait while the process runs, and show its log if that was in vain."""

        def unmet_while_running() -> str | None:
            self.require_running(name)
            return unmet()

        try:
            wait_until(what, unmet_while_running, seconds=START_S)
        except NotInTimeError as error:
            raise ClusterStartError(error, name, self.log(name)) from error

    def terminate(self, name: str, *, grace_s: float = 5) -> None:
        """Ask it to end, and kill it if it has not within its time."""
        if (pid := self.pid(name)) is not None:
            os.kill(pid, signal.SIGTERM)
            try:
                self._wait_for_end(name, grace_s)
            except NotInTimeError:
                self.kill(name)
        self._forget(name)

    def kill(self, name: str) -> None:
        """End it without asking."""
        if (pid := self.pid(name)) is not None:
            os.kill(pid, signal.SIGKILL)
            self._wait_for_end(name, 10)
        self._forget(name)

    def kill_all(self) -> None:
        """Kill them all and all they started, whether or not there is a PID file."""
        cgroups.kill_all_in(self._cgroup)
        # PID 1 of a namespace ends some time after it has left its cgroup: when all others have.
        for file in self._pids.glob("*"):
            self._wait_for_end(file.name, 10)
        cgroups.remove_everywhere(self._cgroup)
        for name in list(self._children):
            self._forget(name)

    def _wait_for_end(self, name: str, seconds: float) -> None:
        def unmet() -> str | None:
            return None if (pid := self.pid(name)) is None else f"PID {pid} runs"

        wait_until(f"the end of {name}", unmet, seconds=seconds, interval_s=0.05)

    def _forget(self, name: str) -> None:
        if child := self._children.pop(name, None):
            child.wait()
        self._pid_file(name).unlink(missing_ok=True)

    def _pid_file(self, name: str) -> Path:
        return self._pids / name
