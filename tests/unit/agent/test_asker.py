"""A driver that takes its time, or fails, holds nobody up."""

from __future__ import annotations

import threading

import pytest

from latencyprobe_agent.evidence.asker import Asker
from tests.unit.agent.running import until


def test_an_answer_that_comes_soon_is_passed_on() -> None:
    asker = Asker(patience_s=10)
    assert [asker.ask(lambda: 1), asker.ask(lambda: 2)] == [1, 2]


def test_a_question_that_fails_has_no_answer() -> None:
    def refuse() -> int:
        raise PermissionError

    assert Asker(patience_s=10).ask(refuse) is None


async def test_a_driver_that_hangs_is_not_waited_for_and_asked_nothing_more() -> None:
    answered = threading.Event()
    asker = Asker(patience_s=0.05)
    assert asker.ask(lambda: answered.wait(60)) is None
    assert asker.is_busy  # so there was no answer yet
    assert asker.ask(lambda: pytest.fail("asked beside the other")) is None
    answered.set()
    await until(lambda: not asker.is_busy, "the late answer")
    assert Asker(patience_s=10).ask(lambda: "again") == "again"


def test_without_room_for_one_more_thread_there_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    asker = Asker(patience_s=10)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert asker.ask(lambda: 1) is None
    assert asker.ask(lambda: 2) == 2
