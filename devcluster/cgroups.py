"""Cgroups by name, in every hierarchy of this machine: v2 alone, or v1 beside v2 ("hybrid")."""

import errno
import os
from pathlib import Path

from .errors import ClusterError
from .waiting import wait_until


class NoUnifiedHierarchyError(ClusterError):
    """No cgroup v2 is mounted on this machine; processes are found and killed by it."""

    def __init__(self) -> None:
        super().__init__("no cgroup2 file system is mounted: the test cluster needs one")


def _mounted(file_system: str) -> list[Path]:
    """Return the mount points of a type. /proc/mounts: device, mount point, type, options."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] == file_system]


def unified_hierarchy() -> Path:
    """Return the mount point of cgroup v2."""
    mounted = _mounted("cgroup2")
    if not mounted:
        raise NoUnifiedHierarchyError
    return mounted[0]


def hierarchies() -> list[Path]:
    """Return the mount points of every v1 controller and of v2: runc puts containers into all."""
    return [*_mounted("cgroup"), unified_hierarchy()]


def create_everywhere(name: str) -> list[Path]:
    """Make the cgroup in every hierarchy, fit to hold processes; return its directories."""
    made = []
    for hierarchy in hierarchies():
        directory = hierarchy
        for part in Path(name).parts:
            parent, directory = directory, directory / part
            directory.mkdir(exist_ok=True)
            _inherit_cpuset(parent, directory)
        made.append(directory)
    return made


def move(pid: int, name: str) -> None:
    """Put a process into the cgroup, in every hierarchy."""
    for directory in create_everywhere(name):
        (directory / "cgroup.procs").write_text(str(pid))


def pass_on_controllers(name: str) -> None:
    """Give the cgroup and those in it all controllers, on a machine with v2 alone.

    No cgroup above it may hold processes (cgroups(7): no internal processes).
    """
    if _mounted("cgroup"):
        return
    directory = unified_hierarchy()
    for part in ("", *Path(name).parts):
        directory = directory / part
        available = (directory / "cgroup.controllers").read_text().split()
        wanted = " ".join(f"+{controller}" for controller in available)
        (directory / "cgroup.subtree_control").write_text(wanted)


def _inherit_cpuset(parent: Path, directory: Path) -> None:
    """Give a new v1 cpuset the CPUs and memory nodes of the one above.

    It is empty at first, and takes no process until it has one of each (cpuset_can_attach(),
    kernel/cgroup/cpuset.c). In v2 an empty one is as the one above.
    """
    if (directory / "cgroup.controllers").exists():
        return
    for setting in ("cpuset.cpus", "cpuset.mems"):
        inherited = parent / setting
        if inherited.exists() and not (directory / setting).read_text().strip():
            (directory / setting).write_text(inherited.read_text())


def remount_commands() -> list[str]:
    """Return commands by which a new cgroup and mount namespace sees its own cgroups alone."""
    known = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()}
    commands = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, file_system, options, *_ = line.split()
        if file_system not in ("cgroup", "cgroup2"):
            continue
        # As in cgroups(7): the hierarchy is named by its controllers, or by `none` and its name.
        wanted = [
            f"none,{option}" if option.startswith("name=") else option
            for option in options.split(",")
            if option in known or option.startswith("name=")
        ]
        chosen = f" -o {','.join(wanted)}" if wanted else ""
        commands.append(f"umount -n -l {point}")
        commands.append(f"mount -n -t {file_system}{chosen} {file_system} {point}")
    return commands


def exists_anywhere(name: str) -> bool:
    """Return True if a cgroup of this name is in some hierarchy."""
    return any((hierarchy / name).exists() for hierarchy in hierarchies())


def _unmet_empty(cgroup: Path) -> str | None:
    events = (cgroup / "cgroup.events").read_text()
    if "populated 1" not in events:
        return None
    holders = [str(path) for path in cgroup.rglob("cgroup.procs") if path.read_text()]
    return f"there are still processes in {', '.join(holders) or cgroup}"


def kill_all_in(name: str) -> None:
    """Kill every process in the v2 cgroup and below it, and wait until they are gone.

    A process is in the v2 hierarchy whichever v1 hierarchies there are, so this finds them all.
    """
    cgroup = unified_hierarchy() / name
    if not cgroup.exists():
        return
    (cgroup / "cgroup.kill").write_text("1")  # Linux 5.14; forks during the kill die as well
    wait_until(f"the end of the processes in {cgroup}", lambda: _unmet_empty(cgroup), seconds=30)


def remove_everywhere(name: str) -> None:
    """Remove the cgroup and those below it, which must be empty, from every hierarchy."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name, topdown=False):
            _remove(Path(directory))


def _remove(cgroup: Path) -> None:
    """Remove a cgroup. A killed process stays in v1 ones a moment longer than in the v2 one."""

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

    wait_until(f"removal of {cgroup}", unmet, seconds=10, interval_s=0.02)
