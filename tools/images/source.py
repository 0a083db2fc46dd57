"""The checkout that is built: its version, its commit, and its wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tools.images.components import ROOT
from tools.images.errors import ImageError

WHEEL_FOLDERS = ("latencyprobe", "node_agent", "operator", "bpf", "proto")
WHEEL_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")

_EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"  # reproducible-builds.org/specs/source-date-epoch
# Of the files in a wheel, which is the same as long as they are; ZIP knows no earlier time.
_WHEEL_EPOCH = "315532800"  # 1980-01-01


class SourceError(ImageError):
    """A checkout that cannot be built."""


@dataclass(frozen=True, slots=True)
class Source:
    """The facts on the checkout for labels."""

    version: str
    revision: str
    created: datetime


def describe() -> Source:
    """Return the checkout's version, commit, and the commit's time. Raises SourceError."""
    from latencyprobe import __version__  # noqa: PLC0415  (not there in a Containerfile's build)

    return Source(__version__, _revision(), _created())


def copy_sources(folder: Path) -> Path:
    """Copy the sources of a wheel without generated files: a build writes into its tree."""
    generated = shutil.ignore_patterns("__pycache__", "*.egg-info", "*_pb2*")
    for name in WHEEL_FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=generated)
    for name in WHEEL_FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def build_wheel(folder: Path) -> Path:
    """Build the wheel into `folder`, with the installed packages. Raises SourceError."""
    build = [sys.executable, "-I", "-m", "pip", "wheel"]
    build += ["--quiet", "--no-deps", "--no-build-isolation"]
    with tempfile.TemporaryDirectory() as scratch:
        source = copy_sources(Path(scratch, "source"))
        answer = subprocess.run(
            [*build, "--wheel-dir", folder, source],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, _EPOCH_VARIABLE: _WHEEL_EPOCH},
        )
    if answer.returncode:
        raise SourceError(f"cannot build the wheel:\n{answer.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _revision() -> str:
    """Return the commit, marked if files differ from it; "unknown" outside of git."""
    try:
        return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except _GitError:
        return "unknown"


def _created() -> datetime:
    seconds = os.environ.get(_EPOCH_VARIABLE)
    try:
        seconds = seconds or _git("log", "-1", "--format=%ct")
    except _GitError as error:
        raise SourceError(
            f"cannot get the time of the commit from git ({error}); set {_EPOCH_VARIABLE} to the "
            "build time in seconds since 1970"
        ) from None
    if not seconds.isdecimal():
        raise SourceError(f"invalid {_EPOCH_VARIABLE} {seconds!r}: it must be seconds since 1970")
    return datetime.fromtimestamp(int(seconds), UTC)


class _GitError(Exception):
    """A failure of git, with its own message."""


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise _GitError("git is not installed") from None
    if answer.returncode:
        raise _GitError(answer.stderr.strip().splitlines()[0])
    return answer.stdout.strip()
