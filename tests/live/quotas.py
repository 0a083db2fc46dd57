"""Quotas of CPU time, where this machine has the controller: in v1's hierarchy or in v2's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.live.pods import kill_all
from tests.live.targets import until

V1_CPU = Path("/sys/fs/cgroup/cpu")


@dataclass(frozen=True, slots=True)
class Account:
    """A cgroup's cpu.stat."""

    periods: int
    throttled: int
    throttled_ns: int

    @classmethod
    def of(cls, directory: Path) -> Account:
        fields = dict(line.split() for line in (directory / "cpu.stat").read_text().splitlines())
        in_v2 = "throttled_usec" in fields
        ns = int(fields["throttled_usec"]) * 1000 if in_v2 else int(fields["throttled_time"])
        return cls(int(fields["nr_periods"]), int(fields["nr_throttled"]), ns)

    def __sub__(self, before: Account) -> Account:
        return Account(
            self.periods - before.periods,
            self.throttled - before.throttled,
            self.throttled_ns - before.throttled_ns,
        )


@contextmanager
def quota(cgroup: Path, percent: int) -> Iterator[Path]:
    """The cgroup that limits the processes of a v2 cgroup: itself, or one of v1 by its name.

    They have so much of a CPU, in periods of 100 ms. A process joins both.
    """
    if not (V1_CPU / "cpu.stat").exists():
        _enable_cpu(cgroup)
        (cgroup / "cpu.max").write_text(f"{percent * 1000} 100000")
        yield cgroup
        return
    directory = V1_CPU / cgroup.name
    directory.mkdir()
    try:
        (directory / "cpu.cfs_period_us").write_text("100000")
        (directory / "cpu.cfs_quota_us").write_text(str(percent * 1000))
        yield directory
    finally:
        kill_all(directory)
        _remove(directory)


def _enable_cpu(cgroup: Path) -> None:
    """Let the v2 hierarchy control CPUs from its root down to this cgroup."""
    above = [each for each in cgroup.parents if (each / "cgroup.subtree_control").exists()]
    for each in reversed(above):
        (each / "cgroup.subtree_control").write_text("+cpu")


def _remove(directory: Path) -> None:
    """As soon as the kernel has seen the last process off."""

    def is_removed() -> bool:
        try:
            directory.rmdir()
        except OSError:
            return False
        return True

    until(is_removed, f"{directory} removed")
