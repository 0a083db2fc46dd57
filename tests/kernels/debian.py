"""Debian's kernels, unpacked into the cache: nothing of the machine's own changes.

Each kernel comes from a release of Debian by apt (tools/debian.py). What is in the cache is not
fetched again; `rm -r` of its folder has the newest fetched.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.errors import KernelError
from tools import debian
from tools.cache import cache_directory, one_at_a_time


@dataclass(frozen=True, slots=True)
class Release:
    """A kernel that people run, by its series and the release of Debian that has it.

    `with_headers`: the tests that need the kernel's headers run on it.
    """

    series: str
    suite: str
    with_headers: bool = False

    @property
    def packages(self) -> tuple[str, ...]:
        headers = ("linux-headers-amd64",) if self.with_headers else ()
        return ("linux-image-amd64", *headers)


RELEASES = (
    Release("5.10", "bullseye"),
    Release("6.1", "bookworm", with_headers=True),
    Release("6.12", "trixie"),
    Release("7", "sid"),
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel. `folder` is laid out as the root of a Debian system."""

    release: Release
    folder: Path

    @property
    def image(self) -> Path:
        """/boot/vmlinuz-VERSION, or beside its modules (since trixie)."""
        found = [
            *self.folder.glob("boot/vmlinuz-*"),
            *self.folder.glob("usr/lib/modules/*/vmlinuz"),
        ]
        if len(found) != 1:
            raise KernelError(f"{self.folder} holds {len(found)} kernels: remove it, try again")
        return found[0]

    @property
    def version(self) -> str:
        """As `uname -r` has it."""
        (modules,) = [
            *self.folder.glob("lib/modules/*"),
            *self.folder.glob("usr/lib/modules/*"),
        ]
        return modules.name


def obtain(release: Release) -> Kernel:
    """The kernel, from the cache or from Debian. Raises KernelError with what to do."""
    cache = cache_directory() / "kernels"
    kernel = Kernel(release, cache / release.series)
    with one_at_a_time(cache / "lock"):
        if not kernel.folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
                _fetch(release, Path(scratch)).rename(kernel.folder)
    return kernel


def _fetch(release: Release, scratch: Path) -> Path:
    """Download and unpack; returns the folder."""
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    for package in _download(release, scratch):
        subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
        package.unlink()
    return unpacked


def _download(release: Release, scratch: Path) -> list[Path]:
    try:
        apt = debian.Apt(scratch, debian.release(release.suite), "amd64")
        apt.update()
        return apt.download(_with_dependencies(apt, release.packages))
    except debian.DebianError as error:
        raise KernelError(str(error)) from None


def _with_dependencies(apt: debian.Apt, packages: Iterable[str]) -> list[str]:
    """These and what they depend on, of the packages that hold the kernel's own files."""
    wanted: list[str] = []
    ahead = list(packages)
    while ahead:
        package = ahead.pop()
        if package not in wanted:
            wanted.append(package)
            ahead += [name for name in apt.needs(package) if name.startswith("linux-")]
    return wanted
