"""Uncaught exceptions reach a terminal as text, wherever they were raised."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from latencyprobe.process import tracebacks
from tests.unit.hostile_text import HOSTILE, VISIBLE, unprintable

RAISE = f"raise OSError({HOSTILE!r})"
FUNCTION = f"def fail(*_):\n    {RAISE}\n"
THREAD = "import threading\nthread = threading.Thread(target=fail)\nthread.start()\nthread.join()\n"
FINALIZER = "type('Object', (), {'__del__': fail})()\n"
TASK = """\
import asyncio, gc
async def never_awaited():
    asyncio.create_task(asyncio.to_thread(fail))
    await asyncio.sleep(0.1)
    gc.collect()
asyncio.run(never_awaited())
"""
COMMAND = """\
import click
from latencyprobe.commands.cli import main
main.add_command(click.Command("fail", callback=fail))
main(["fail"])
"""
LOGGED = (
    "from latencyprobe.process import logs\nlogs.configure(form='json', level='info')\nfail()\n"
)
BEGIN = "from latencyprobe.process import tracebacks\ntracebacks.make_printable()\n"


@pytest.mark.parametrize(
    ("code", "head"),
    [
        (COMMAND, "Traceback (most recent call last):"),
        (LOGGED, "Traceback (most recent call last):"),
        (BEGIN + "fail()", "Traceback (most recent call last):"),
        (BEGIN + THREAD, "Exception in thread Thread-1 (fail):"),
        (BEGIN + FINALIZER, "Exception ignored in: <function fail at 0x"),
        (BEGIN + TASK, "Task exception was never retrieved"),
    ],
    ids=["command", "after the log is configured", "main", "thread", "finalizer", "task"],
)
def test_an_uncaught_exception_is_printable(code: str, head: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FUNCTION + code],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=60,
    )
    written = ended.stderr.decode()

    assert written.startswith(head)
    assert unprintable(written) == set()
    assert "OSError: " + VISIBLE.partition(r"\n")[0] in written
    assert "in fail\n" in written
    assert written.endswith("\n")


def test_the_hook_of_someone_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*_: object) -> None:
        pass

    monkeypatch.setattr(sys, "excepthook", theirs)
    tracebacks.make_printable()
    assert sys.excepthook is theirs
