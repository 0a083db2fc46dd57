"""The hand-over of an object's descriptors."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from latencyprobe.process import interpreter
from latencyprobe.process.memory_cgroup import MemoryCgroup
from latencyprobe.process.mounts import parse_mountinfo
from latencyprobe_agent.kernel.build import compiler as compiling
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.load.handover import COMPILER_MODULE, request_object
from latencyprobe_agent.kernel.load.loading import LoadedPrograms
from latencyprobe_agent.kernel.request import MESSAGE_BYTES, Request
from latencyprobe_agent.kernel.runtime.loaded import build


def test_the_compiler_process_is_started_with_a_module_that_exists() -> None:
    assert find_spec(COMPILER_MODULE) is not None


def test_closed_programs_have_no_descriptors_and_may_be_closed_again() -> None:
    ends, link = os.pipe(), os.dup(0)
    programs = LoadedPrograms({"map": ends[0]}, {"program": ends[1]}, {"program": link}, {}, {})
    programs.close()
    programs.close()
    assert (programs.maps, programs.programs, programs.links) == ({}, {}, {})
    assert not any(os.path.exists(f"/proc/self/fd/{descriptor}") for descriptor in (*ends, link))


REQUEST = Request(("rx",), 1)
MEBIBYTE = 1 << 20


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a shell command the compiler process."""

    def make(command: str) -> None:
        words = ("/bin/sh", "-c", command)
        monkeypatch.setattr(interpreter, "python_module", lambda *given: (*words, *given))

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


async def test_the_log_has_the_compilation_before_a_kernel_may_kill_all_for_it(
    compiler: Callable[[str], None], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    compiler(f"cp {tmp_path}/log {tmp_path}/then; kill -9 $$")
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger().addHandler(handler)
    try:
        await _failure()
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert (tmp_path / "then").read_text().splitlines()[-1] == "compiling modules rx"


@pytest.mark.parametrize(
    "report",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "LLVM ERROR: out of memory",
        "MemoryError",
        "OSError: libLLVM-14.so.1: cannot map zero-fill pages",
        "ImportError: _ctypes.so: failed to map segment from shared object",
        "fork: Cannot allocate memory",
    ],
)
@pytest.mark.parametrize("end", ["kill -ABRT $$", "exit 1"])
async def test_a_compiler_whose_allocation_fails_took_more_memory_than_is_left(
    compiler: Callable[[str], None], memory: Path, report: str, end: str
) -> None:
    _memory_in_use(memory, most=160, used=50)
    compiler(f'echo "a warning\n{report}" >&2; {end}')
    assert await _failure() == (
        "compiling took more memory than the 62 MiB that are left for it, the limit of cgroup "
        "/agent is 160 MiB: raise it to at least 320 MiB"
    )


async def test_a_compiler_that_answers_with_an_error_of_memory_took_more_than_is_left(
    compiler: Callable[[str], None], memory: Path
) -> None:
    _memory_in_use(memory, most=640, used=500)
    code = (
        "import json, socket, sys; channel = socket.socket(fileno=int(sys.argv[1])); "
        'channel.recv(1 << 18); channel.send(json.dumps({"error": "MemoryError: "}).encode())'
    )
    compiler(f"exec {sys.executable} -c '{code}' $1")
    assert await _failure() == (
        "compiling took more memory than the 92 MiB that are left for it, the limit of cgroup "
        "/agent is 640 MiB: raise it"
    )


async def test_a_compiler_with_too_little_memory_for_any_module_is_not_started(
    compiler: Callable[[str], None], memory: Path
) -> None:
    _memory_in_use(memory, most=120, used=50)
    compiler(f"touch {memory}/started")
    assert await _failure() == (
        "compiling takes more memory than the 22 MiB that are left for it, the limit of cgroup "
        "/agent is 120 MiB: raise it to at least 320 MiB"
    )
    assert not (memory / "started").exists()


async def test_without_a_limit_of_memory_a_failed_allocation_is_reported_as_it_is(
    compiler: Callable[[str], None], memory: Path
) -> None:
    (memory / "memory.max").write_text("max\n")
    compiler("echo std::bad_alloc >&2; kill -ABRT $$")
    assert await _failure() == "the compiler process was killed by SIGABRT: std::bad_alloc"


@pytest.mark.parametrize(("most", "argument"), [(640, f"{542 * MEBIBYTE}"), (None, "")])
async def test_the_compiler_gets_what_the_limit_leaves_to_it(
    compiler: Callable[[str], None], memory: Path, most: int | None, argument: str
) -> None:
    if most is not None:
        _memory_in_use(memory, most=most, used=50)
    compiler('echo "bound $2." >&2; exit 1')
    assert await _failure() == f"the compiler process ended with status 1: bound {argument}."


def _memory_in_use(folder: Path, *, most: int, used: int) -> None:
    """Give our memory cgroup a limit and memory in use, in MiB."""
    (folder / "memory.max").write_text(f"{most * MEBIBYTE}\n")
    (folder / "memory.current").write_text(f"{(used + 7) * MEBIBYTE}\n")
    (folder / "memory.stat").write_text(f"inactive_file {7 * MEBIBYTE}\nactive_file 0\n")


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


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            errno.EMFILE,
            "Too many open files (EMFILE); the limit of open files is too low: raise it (ulimit",
        ),
        (errno.ENOMEM, "Cannot allocate memory (ENOMEM); there is no free memory"),
        (errno.EPERM, "Operation not permitted (EPERM)"),
    ],
)
@pytest.mark.parametrize("call", ["socketpair", "mkdtemp", "create_subprocess_exec"])
async def test_a_compiler_that_cannot_start_is_an_error_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, code: int, message: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    places = {"socketpair": socket, "mkdtemp": tempfile, "create_subprocess_exec": asyncio}
    with monkeypatch.context() as patched:
        patched.setattr(places[call], call, fails)
        with pytest.raises(EngineError) as failed:
            await build(REQUEST)
    assert message in str(failed.value)
    assert str(failed.value).startswith("cannot build the eBPF programs: ")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_for_the_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(request: Request, *, processes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x/kernel_types.h")

    monkeypatch.setattr(compiling, "build", fails)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        monkeypatch.setattr(sys, "argv", ["compiler", str(os.dup(theirs.fileno()))])
        ours.send(json.dumps({"modules": ["rx"], "host_netns": 1}).encode())
        compiling.main()
        answer = json.loads(ours.recv(MESSAGE_BYTES))
    assert answer["error"] == (
        "cannot build the eBPF programs: /tmp/x/kernel_types.h: No space left on device (ENOSPC); "
        "the disk is full: free space or inodes there"
    )
