"""The hand-over: the compiler process builds an object, this process gets its encoding."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from dataclasses import asdict, dataclass
from typing import BinaryIO

from latencyprobe.process import interpreter
from latencyprobe.process.temporary import temporary_folder
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.load.compiler_memory import CompilerMemory
from latencyprobe_agent.kernel.request import MESSAGE_BYTES, Answer, Request

log = logging.getLogger(__name__)

COMPILER_MODULE = "latencyprobe_agent.kernel.build.compiler"
# A second or two with BTF; kernel headers on a slow, loaded machine take a minute.
_COMPILE_TIMEOUT_S = 180


@dataclass(frozen=True, slots=True)
class Handover:
    """The object that the compiler process built, as object_file.py encodes it.

    `diagnostics`: the standard error of the process.
    """

    content: bytes
    diagnostics: str


async def request_object(request: Request) -> Handover:
    """Have the compiler process build an object.

    Raises EngineError with its message if it fails or takes too long, and OSError if it cannot be
    started.
    """
    # A kernel that kills the whole container for memory (memory.oom.group) leaves this line alone.
    log.info("compiling modules %s", ", ".join(request.modules))
    memory = CompilerMemory()
    bound = memory.bound_bytes
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Its temporary files go with ours: killed, it would leave them. What it reports is in memory,
    # since the disk may be full, and has what LLVM wrote before it ended the process.
    with (
        ours,
        theirs,
        temporary_folder("build") as temporary,
        _file_in_memory() as diagnostics,
    ):
        ours.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *interpreter.python_module(
                COMPILER_MODULE, str(theirs.fileno()), *((str(bound),) if bound is not None else ())
            ),
            pass_fds=(theirs.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=diagnostics,
            env=interpreter.environment(TMPDIR=str(temporary)),
            cwd=interpreter.DIRECTORY,
        )
        theirs.close()
        try:
            async with asyncio.timeout(_COMPILE_TIMEOUT_S):
                with contextlib.suppress(ConnectionError):  # it has ended: its status says more
                    await asyncio.get_running_loop().sock_sendall(
                        ours, json.dumps(asdict(request)).encode()
                    )
                await process.wait()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                raise EngineError(
                    f"compiling took longer than {_COMPILE_TIMEOUT_S} s and was stopped"
                ) from error
            raise
        if process.returncode == -signal.SIGKILL:
            raise EngineError(memory.killed_message())
        diagnostics.seek(0)
        report = diagnostics.read().decode(errors="replace")
        return _receive(ours, process.returncode, report, memory)


def _file_in_memory() -> BinaryIO:
    return open(os.memfd_create("diagnostics"), "w+b", buffering=0)


def _receive(
    channel: socket.socket, status: int | None, stderr: str, memory: CompilerMemory
) -> Handover:
    try:
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 1)
    except (BlockingIOError, ConnectionError):
        message, descriptors = b"", []
    if not message:
        memory.check(stderr)
        raise EngineError(f"the compiler process {_end(status)}: {stderr.strip()}")
    content = b"".join(map(_content, descriptors))
    answer = Answer(**json.loads(message))
    if answer.error:
        memory.check(answer.error)
        raise EngineError(answer.error)
    if not descriptors:  # the kernel drops it without an error
        raise EngineError(
            "received no file from the compiler process: the limit of open files is too low; raise "
            "it (ulimit -n)"
        )
    return Handover(content, stderr)


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _end(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
