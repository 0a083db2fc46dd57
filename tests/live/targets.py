"""Real cgroups, processes and network namespaces, which are gone after the test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from latencyprobe.process.mounts import read_mounts
from latencyprobe_agent.desired import Selector
from latencyprobe_agent.targets.cgroups import find_hierarchy
from latencyprobe_agent.targets.facts import TargetFacts
from latencyprobe_agent.targets.resolver import Resolver


def until(condition: Callable[[], object], what: str, *, seconds: float = 20) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def follow(
    resolver: Resolver, selector: Selector, condition: Callable[[TargetFacts], object], what: str
) -> TargetFacts:
    """Have the resolver look, at its own pace, until its facts are these."""

    def look() -> bool:
        resolver.refresh()
        return bool(condition(resolver.facts_of(selector)))

    try:
        until(look, what)
    except AssertionError as error:
        raise AssertionError(f"{error}; last seen {resolver.facts_of(selector)}") from None
    return resolver.facts_of(selector)


def hierarchy_root() -> Path:
    """Where this machine's v2 hierarchy is."""
    root = find_hierarchy(read_mounts())
    assert root is not None, "no cgroup v2 hierarchy is mounted on this machine"
    return Path(root)


@contextlib.contextmanager
def made_cgroup(name: str = "") -> Iterator[Path]:
    """A cgroup of our own, removed with all below it."""
    top = hierarchy_root() / f"latencyprobe-test-{uuid.uuid4()}"
    directory = top / name
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        for path in [*sorted(top.rglob("*/"), reverse=True), top]:
            _remove_cgroup(path)


def _remove_cgroup(path: Path) -> None:
    until(lambda: not (path / "cgroup.procs").read_text(), f"{path} empty")
    path.rmdir()


@contextlib.contextmanager
def sleeper(*command: str, cgroup: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing, in a cgroup if one is given; killed with its children."""

    words = command or ("sleep", "300")
    if cgroup is not None:
        # The shell joins the cgroup, and then becomes the command.
        words = ("sh", "-c", 'echo $$ > "$0"; exec "$@"', f"{cgroup}/cgroup.procs", *words)
    process = subprocess.Popen(words, process_group=0)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def python(code: str) -> tuple[str, ...]:
    """The command that runs this code."""
    return (sys.executable, "-c", code)


def netns_of(pid: int) -> int:
    """The inode number of a process's network namespace."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino
