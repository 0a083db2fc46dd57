"""The command `latencyprobe` as a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATENCYPROBE = [sys.executable, "-P", "-m", "latencyprobe.commands.cli"]
DEADLINE_S = 60.0


def wait_until_it_measures(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "attached in" in line:
            return
    pytest.fail(f"it never measured: {seen}")
