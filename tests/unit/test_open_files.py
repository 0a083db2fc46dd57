"""The limit of open files, which operator and agents raise when they start."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from latencyprobe.process.open_files import raise_open_files_limit

LOW = 512
SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)

# The rest of the start is left out.
OPERATOR = """
from latencyprobe_operator import main

async def operate(_options):
    show()

main.operate = operate
main.run(None)
"""
AGENT = """
from latencyprobe_agent import cli

async def run(_settings):
    show()

cli.run, cli.check_capabilities = run, lambda: None
cli._start(None, parent=None)
"""
SHOW = f"""
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, ({LOW}, hard))

def show():
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.fixture
def low_limit() -> Iterator[None]:
    """A process with a low soft limit."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (LOW, HARD))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))


@pytest.mark.usefixtures("low_limit")
def test_the_soft_limit_becomes_the_hard_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        raise_open_files_limit()
        raise_open_files_limit()

    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (HARD, HARD)
    assert caplog.messages == [f"raised the limit of open files from {LOW} to {HARD}"]


@pytest.mark.usefixtures("low_limit")
def test_a_limit_that_cannot_be_raised_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_resource: int, _limits: tuple[int, int]) -> None:
        raise PermissionError(1, os.strerror(1))

    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG):
        patch.setattr(resource, "setrlimit", refuse)
        raise_open_files_limit()

    assert "cannot raise the limit of open files" in caplog.text


@pytest.mark.parametrize("start", [OPERATOR, AGENT], ids=["operator", "agent"])
def test_a_process_raises_it_when_it_starts(start: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", SHOW + start],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert shown.stdout.split() == [str(HARD), str(HARD)]
