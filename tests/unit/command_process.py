"""The command `latencyprobe` as a process, with an agent that plays a scenario."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND_LINE = Path(__file__).with_name("command_line.py")
DEADLINE_S = 30.0
OWN_PID = str(os.getpid())


def start(temporary: Path, scenario: str, *arguments: str, **options: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(COMMAND_LINE), scenario, *arguments],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=options.get("stdout", subprocess.PIPE),
        stderr=options.get("stderr", subprocess.PIPE),
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} never came: {seen}")


def read_all(controller: int) -> str:
    """Until the last process that has the terminal closes it, which is an error on Linux."""
    text = b""
    while True:
        try:
            text += os.read(controller, 65536)
        except OSError:
            os.close(controller)
            return text.decode(errors="replace")


CLOSING = re.compile(
    r"(?P<seen>[\d,]+) packets of (?P<limit>\S+) or more in (?P<stages>.*): "
    r"(?P<printed>[\d,]+) printed, (?P<limited>[\d,]+) over the rate limit, (?P<lost>[\d,]+) lost"
    r"(, (?P<unprinted>[\d,]+) not printed)?"
)


def closing(stderr: str) -> dict[str, int]:
    """The figures of the closing line, which add up."""
    found = CLOSING.search(stderr)
    assert found, stderr
    figures = {
        name: int((found[name] or "0").replace(",", ""))
        for name in ("seen", "printed", "limited", "lost", "unprinted")
    }
    assert figures["seen"] == sum(n for name, n in figures.items() if name != "seen")
    return figures
