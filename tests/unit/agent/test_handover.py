"""The hand-over of an object's descriptors."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from latencyprobe.process import interpreter
from latencyprobe.process.memory_cgroup import MemoryCgroup
from latencyprobe.process.mounts import parse_mountinfo
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.load.handover import COMPILER_MODULE, Handover, request_object
from latencyprobe_agent.kernel.request import Answer, Request


def test_the_compiler_process_is_started_with_a_module_that_exists() -> None:
    assert find_spec(COMPILER_MODULE) is not None


def test_a_closed_hand_over_has_no_descriptors_and_may_be_closed_again() -> None:
    ends = os.pipe()
    handover = Handover(Answer(), list(ends), "")
    handover.close()
    handover.close()
    assert handover.descriptors == []
    assert not any(os.path.exists(f"/proc/self/fd/{descriptor}") for descriptor in ends)


REQUEST = Request(("rx",), 1)
MEBIBYTE = 1 << 20


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a shell command the compiler process."""

    def make(command: str) -> None:
        words = ("/bin/sh", "-c", command)
        monkeypatch.setattr(interpreter, "python_module", lambda *_: words)

    return make


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of our memory cgroup, in which two processes were killed before."""
    (tmp_path / "agent").mkdir()
    mounts = parse_mountinfo(f"1 2 0:3 / {tmp_path} rw - cgroup2 none rw")
    made = MemoryCgroup.of_this_process(mounts, "0::/agent")
    monkeypatch.setattr(MemoryCgroup, "of_this_process", lambda: made)
    (tmp_path / "agent/memory.events").write_text("oom 9\noom_kill 2\n")
    return tmp_path / "agent"


async def _failure() -> str:
    with pytest.raises(EngineError) as failed:
        await request_object(REQUEST)
    return str(failed.value)


async def test_a_compiler_that_is_killed_for_memory_names_the_limit(
    compiler: Callable[[str], None], memory: Path
) -> None:
    (memory / "memory.max").write_text(f"{64 * MEBIBYTE}\n")
    compiler(f"echo oom_kill 3 > {memory}/memory.events; kill -9 $$")
    assert await _failure() == (
        "the compiler process was killed (SIGKILL): out of memory, the limit of cgroup /agent is "
        "64 MiB: raise it to at least 320 MiB"
    )


async def test_a_compiler_that_is_killed_without_a_count_was_probably_out_of_memory(
    compiler: Callable[[str], None], memory: Path
) -> None:
    (memory / "memory.max").write_text(f"{512 * MEBIBYTE}\n")
    compiler("kill -9 $$")
    assert await _failure() == (
        "the compiler process was killed (SIGKILL): probably out of memory, the limit of cgroup "
        "/agent is 512 MiB: raise it"
    )


@pytest.mark.usefixtures("memory")
async def test_a_compiler_that_is_killed_without_a_limit_blames_the_machine(
    compiler: Callable[[str], None],
) -> None:
    compiler("kill -9 $$")
    assert await _failure() == (
        "the compiler process was killed (SIGKILL): probably out of memory, without a limit of its "
        "cgroup: free memory on this machine"
    )


async def test_another_signal_is_named(compiler: Callable[[str], None]) -> None:
    compiler("echo words of it >&2; kill -SEGV $$")
    assert await _failure() == "the compiler process was killed by SIGSEGV: words of it"
