"""Packages of a release of Debian, on any system.

apt fetches them, from the mirror that this machine is configured with, through configuration and
package lists of our own: nothing of the machine's changes. Signatures are checked against Debian's
archive keys.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIRROR_VARIABLE = "LATENCYPROBE_DEBIAN_MIRROR"
SECURITY_MIRROR_VARIABLE = "LATENCYPROBE_DEBIAN_SECURITY_MIRROR"
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_DOWNLOAD_S = 1200


class DebianError(Exception):
    """A package that cannot be downloaded. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class AptSource:
    """A line of sources.list(5): a suite and its mirror."""

    mirror: str
    suite: str


def release(suite: str) -> tuple[AptSource]:
    """Return the sources of the release as published, with its point releases."""
    return (AptSource(configured_mirror(), suite),)


def release_with_updates(suite: str) -> tuple[AptSource, ...]:
    """Return the sources of the release with its updates, security included."""
    return (
        *release(suite),
        AptSource(configured_mirror(), f"{suite}-updates"),
        AptSource(configured_security_mirror(), f"{suite}-security"),
    )


class Apt:
    """An apt with configuration, lists and cache of its own, in the empty folder `scratch`.

    `architecture` is Debian's name of it, not necessarily this machine's.
    """

    def __init__(self, scratch: Path, sources: Sequence[AptSource], architecture: str) -> None:
        self._suites = ", ".join(source.suite for source in sources)
        self._downloads = scratch / "downloads"
        for folder in ("downloads", "lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        list_file, status = scratch / "sources.list", scratch / "status"
        options = f"target=Packages arch={architecture} signed-by={_keyring()}"
        lines = [f"deb [{options}] {source.mirror} {source.suite} main\n" for source in sources]
        list_file.write_text("".join(lines))
        status.touch()
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "Dir::Etc::SourceList": list_file,
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": scratch / "lists",
            "Dir::State::Status": status,
            "Dir::Cache": scratch / "cache",
            "APT::Sandbox::User": "root",  # the folder is ours alone
            "Acquire::Languages": "none",
        }
        self._options = [f"--option={name}={value}" for name, value in settings.items()]

    def update(self) -> None:
        """Fetch the package lists."""
        self._run("apt-get", "update", "--error-on=any")

    def download(self, packages: Iterable[str]) -> list[Path]:
        """Download the packages without dependencies; return their files in order of name."""
        self._run("apt-get", "download", *packages)
        return sorted(self._downloads.glob("*.deb"))

    def needs(self, package: str) -> list[str]:
        """Return the dependencies of a package."""
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
            timeout=_DOWNLOAD_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        if done.returncode:
            raise DebianError(
                f"{program} {' '.join(arguments)} for Debian {self._suites}: "
                f"{done.stderr.strip()}\n({MIRROR_VARIABLE} names another mirror of Debian.)"
            )
        return done.stdout


def configured_mirror() -> str:
    """Return the mirror of Debian that this machine's own apt uses."""
    if chosen := os.environ.get(MIRROR_VARIABLE):
        return chosen
    found = _mirror_ending("/debian")
    if found is None:
        raise DebianError(
            f"this machine's apt has no mirror of Debian; set {MIRROR_VARIABLE} to its address"
        )
    return found


def configured_security_mirror() -> str:
    """Return the mirror of security updates, by default beside the other one."""
    if chosen := os.environ.get(SECURITY_MIRROR_VARIABLE):
        return chosen
    if not os.environ.get(MIRROR_VARIABLE) and (found := _mirror_ending("/debian-security")):
        return found
    return f"{configured_mirror().rstrip('/')}-security"


def _mirror_ending(ending: str) -> str | None:
    if shutil.which("apt-get") is None:
        raise DebianError("apt-get is not installed: it is needed to download Debian's packages")
    printed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for component, uri in (line.split() for line in printed.splitlines()):
        if component == "main" and uri.rstrip("/").endswith(ending):
            return uri
    return None


def _keyring() -> Path:
    for keyring in _KEYRINGS:
        if keyring.exists():
            return keyring
    raise DebianError("Debian's archive keys are missing; install debian-archive-keyring")
