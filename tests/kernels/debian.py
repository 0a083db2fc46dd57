"""Debian's kernels, unpacked into the cache: nothing of the machine's own changes.

Each kernel comes from a release of Debian by apt, from the mirror that this machine is configured
with, through package lists of our own. Signatures are checked against Debian's archive keys. What
is in the cache is not fetched again; `rm -r` of its folder has the newest fetched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.layout import cache_directory
from tests.kernels.errors import KernelError

MIRROR_VARIABLE = "LATENCYPROBE_DEBIAN_MIRROR"
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_DOWNLOAD_SECONDS = 1200


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
    cache.mkdir(parents=True, exist_ok=True)
    kernel = Kernel(release, cache / release.series)
    with _locked(cache / "lock"):
        if not kernel.folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
                _fetch(release, Path(scratch)).rename(kernel.folder)
    return kernel


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(release: Release, scratch: Path) -> Path:
    """Download and unpack; returns the folder."""
    apt = _Apt(scratch, release.suite, configured_mirror())
    apt.update()
    packages = apt.with_dependencies(release.packages)
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    for package in apt.download(packages):
        subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
        package.unlink()
    return unpacked


class _Apt:
    """apt with configuration, package lists and cache of its own, for one release of Debian."""

    def __init__(self, scratch: Path, suite: str, mirror: str) -> None:
        self._suite = suite
        self._downloads = scratch / "downloads"
        for folder in ("downloads", "lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        sources, status = scratch / "sources.list", scratch / "status"
        options = f"target=Packages arch=amd64 signed-by={_keyring()}"
        sources.write_text(f"deb [{options}] {mirror} {suite} main\n")
        status.touch()
        settings = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": scratch / "lists",
            "Dir::State::Status": status,
            "Dir::Cache": scratch / "cache",
            "APT::Sandbox::User": "root",  # the folder is ours alone
            "Acquire::Languages": "none",
        }
        self._options = [f"--option={name}={value}" for name, value in settings.items()]

    def update(self) -> None:
        self._run("apt-get", "update", "--error-on=any")

    def with_dependencies(self, packages: Iterable[str]) -> list[str]:
        """These and what they depend on, of the packages that hold the kernel's own files."""
        wanted: list[str] = []
        ahead = list(packages)
        while ahead:
            package = ahead.pop()
            if package not in wanted:
                wanted.append(package)
                ahead += [name for name in self._needs(package) if name.startswith("linux-")]
        return wanted

    def download(self, packages: Sequence[str]) -> list[Path]:
        self._run("apt-get", "download", *packages)
        return sorted(self._downloads.glob("*.deb"))

    def _needs(self, package: str) -> list[str]:
        printed = self._run("apt-cache", "depends", "--important", package)
        needs = [line.split(": ", 1)[1] for line in printed.splitlines() if "Depends: " in line]
        return [name.removesuffix(":any") for name in needs if not name.startswith("<")]

    def _run(self, program: str, *arguments: str) -> str:
        command = [program, "--quiet", *self._options, *arguments]
        done = subprocess.run(
            command,
            cwd=self._downloads,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        if done.returncode:
            raise KernelError(
                f"{program} {' '.join(arguments)} for Debian {self._suite}: {done.stderr.strip()}\n"
                f"({MIRROR_VARIABLE} names another mirror of Debian.)"
            )
        return done.stdout


def configured_mirror() -> str:
    """The mirror of Debian that this machine's own apt uses."""
    if chosen := os.environ.get(MIRROR_VARIABLE):
        return chosen
    if shutil.which("apt-get") is None:
        raise KernelError("there is no apt-get here, which brings the kernels")
    printed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for component, uri in (line.split() for line in printed.splitlines()):
        if component == "main" and uri.rstrip("/").endswith("/debian"):
            return uri
    raise KernelError(
        f"this machine's apt knows no mirror of Debian: set {MIRROR_VARIABLE} to the address of one"
    )


def _keyring() -> Path:
    for keyring in _KEYRINGS:
        if keyring.exists():
            return keyring
    raise KernelError("Debian's archive keys are missing: install debian-archive-keyring")
