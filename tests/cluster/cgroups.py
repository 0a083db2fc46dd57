"""Cgroups by name, in every hierarchy of this machine: v2 alone, or v1 beside v2 ("hybrid")."""

import errno
import os
from pathlib import Path

from .errors import ClusterError
from .waiting import wait_until


class NoUnifiedHierarchyError(ClusterError):
    """This machine has no cgroup v2 mounted, which processes are found and killed by."""

    def __init__(self) -> None:
        super().__init__("no cgroup2 file system is mounted: the test cluster needs one")


def _mounted(file_system: str) -> list[Path]:
    """Mount points, as in /proc/mounts: device, mount point, type, options."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] == file_system]


def unified_hierarchy() -> Path:
    """Where cgroup v2 is mounted."""
    mounted = _mounted("cgroup2")
    if not mounted:
        raise NoUnifiedHierarchyError
    return mounted[0]


def hierarchies() -> list[Path]:
    """Where every v1 controller and v2 are mounted. runc puts a container into all of them."""
    return [*_mounted("cgroup"), unified_hierarchy()]


def create(name: str) -> Path:
    """Makes the v2 cgroup, and returns its directory."""
    directory = unified_hierarchy() / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def create_everywhere(name: str) -> None:
    """Makes the cgroup in every hierarchy, fit to hold processes."""
    for hierarchy in hierarchies():
        directory = hierarchy / name
        directory.mkdir(parents=True, exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # A new v1 cpuset is empty, and takes no process until it has a CPU and a memory node
            # (cpuset_can_attach(), kernel/cgroup/cpuset.c).
            inherited = hierarchy / setting
            if inherited.exists() and not (directory / setting).read_text().strip():
                (directory / setting).write_text(inherited.read_text())


def exists_anywhere(name: str) -> bool:
    return any((hierarchy / name).exists() for hierarchy in hierarchies())


def _unmet_empty(cgroup: Path) -> str | None:
    events = (cgroup / "cgroup.events").read_text()
    if "populated 1" not in events:
        return None
    holders = [str(path) for path in cgroup.rglob("cgroup.procs") if path.read_text()]
    return f"there are still processes in {', '.join(holders) or cgroup}"


def kill_all_in(name: str) -> None:
    """Kills every process in the v2 cgroup and below it, and waits until they are gone.

    A process is in the v2 hierarchy whichever v1 hierarchies there are, so this finds them all.
    """
    cgroup = unified_hierarchy() / name
    if not cgroup.exists():
        return
    (cgroup / "cgroup.kill").write_text("1")  # Linux 5.14; forks during the kill die as well
    wait_until(f"the end of the processes in {cgroup}", lambda: _unmet_empty(cgroup), seconds=30)


def remove_everywhere(name: str) -> None:
    """Removes the cgroup and those below it, which must be empty, from every hierarchy."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name, topdown=False):
            _remove(Path(directory))


def _remove(cgroup: Path) -> None:
    """A killed process stays in its v1 cgroups a moment longer than in the v2 one."""

    def unmet() -> str | None:
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return str(error)
        return None

    wait_until(f"removal of {cgroup}", unmet, seconds=10, interval_seconds=0.02)
