"""Programs that are compiled from Go modules, once, into the cache.

A *module directory* holds a go.mod of ours and its go.sum, which pin what is compiled.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tools import cache
from tools.cache import cache_directory
from tools.progress import Say

PROGRESS_S = 15


class MissingProgramsError(Exception):
    """A program cannot be found or built; the message says what to do, without a traceback."""


@dataclass(frozen=True)
class GoModule:
    """One pinned module, and the place of the programs in it."""

    name: str
    directory: Path
    path: str
    """The module's path, as in k8s.io/kubernetes."""

    package_prefix: str = ""
    """The part of a package's path before the program's name."""

    tags: str = ""
    """Build tags, separated by commas."""

    @property
    def version(self) -> str:
        """The pinned version, as in v1.36.3."""
        go_mod = (self.directory / "go.mod").read_text()
        pinned = re.search(rf"\b{re.escape(self.path)} (v\S+)", go_mod)
        if not pinned:
            raise MissingProgramsError(f"{self.directory}/go.mod does not pin {self.path}")
        return pinned[1]

    @property
    def cache(self) -> Path:
        """The folder of its programs, by version."""
        return cache_directory() / f"{self.name}-{self.version}" / "bin"

    def source(self) -> Path:
        """Return the folder of the pinned module's source; raise MissingProgramsError."""
        if not shutil.which("go"):
            raise MissingProgramsError(
                f"cannot fetch {self.path} {self.version}: go is not installed"
            )
        answer = subprocess.run(
            ["go", "mod", "download", "-json", self.path],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode:
            raise MissingProgramsError(
                f"cannot fetch {self.path} {self.version}: {answer.stdout}{answer.stderr}"
            )
        return Path(json.loads(answer.stdout)["Dir"])

    def build(self, names: Sequence[str], link_flags: str, say: Say) -> None:
        """Compile these programs into the cache; raise MissingProgramsError."""
        if not shutil.which("go"):
            raise MissingProgramsError(
                f"cannot find {', '.join(names)} {self.version} in {self.cache} or $PATH; install"
                " go (1.26 or newer) to build them"
            )
        self.cache.mkdir(parents=True, exist_ok=True)
        packages = [f"{self.package_prefix}{name}" for name in names]
        with tempfile.TemporaryDirectory(dir=self.cache) as unfinished:
            self._run_go_build(packages, Path(unfinished), link_flags, say)
            for name in names:
                (Path(unfinished) / name).rename(self.cache / name)

    def _run_go_build(
        self, packages: Sequence[str], output: Path, link_flags: str, say: Say
    ) -> None:
        command = ["go", "build", "-v", "-trimpath", "-ldflags", f"-s -w {link_flags}"]
        if self.tags:
            command.append(f"-tags={self.tags}")
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as log:
            build = subprocess.Popen(
                [*command, "-o", f"{output}/", *packages],
                cwd=self.directory,
                env={**os.environ, "CGO_ENABLED": "0"},
                stdout=log,
                stderr=log,
            )
            try:
                while not _has_ended(build):
                    _say_progress(log.fileno(), time.monotonic() - started, say)
            finally:
                build.kill()  # if interrupted; else it has ended
                build.wait()
            log.seek(0)
            lines = log.read().splitlines()
        if build.returncode:
            raise MissingProgramsError("go build failed:\n" + "\n".join(lines[-20:]))
        say(f"Built in {time.monotonic() - started:.0f} s.")


def _has_ended(build: subprocess.Popen[bytes]) -> bool:
    try:
        build.wait(timeout=PROGRESS_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _say_progress(log: int, seconds: float, say: Say) -> None:
    """Report the package that `go build -v` named last; it does not name cached packages."""
    lines = os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace").splitlines()
    latest = f"{len(lines)} packages, now {lines[-1]}" if lines else "nothing to compile so far"
    say(f"  {seconds:4.0f} s: {latest}")


def one_at_a_time() -> AbstractContextManager[None]:
    """Lock the cache, since two processes must not build into it."""
    return cache.one_at_a_time(cache_directory() / "programs.lock")
