"""The agent as a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.live.targets import until

AGENT = (sys.executable, "-P", "-m", "latencyprobe.commands.cli", "agent")


@contextlib.contextmanager
def running_agent(*options: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run it until the end of the block."""
    with log.open("wb") as stderr, subprocess.Popen([*AGENT, *options], stderr=stderr) as process:
        try:
            until(lambda: process.poll() is not None or "serving on" in log.read_text(), "serving")
            yield process
        finally:
            process.kill()
