"""An agent of our own: a child process that serves gRPC on a Unix socket only we can reach.

The local command measures through the same agent as a cluster does, and the same protocol. The
agent lives as long as the command. The command ends it at its own end, and the agent ends by itself
if the command is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import grpc

from latencyprobe.printable import printable
from latencyprobe.process import interpreter
from latencyprobe.process.os_errors import explained
from latencyprobe.process.tasks import first_to_end
from latencyprobe.process.temporary import temporary_folder
from latencyprobe.protocol.measurements import MAX_MESSAGE_BYTES

AGENT_COMMAND = interpreter.python_module("latencyprobe.commands.cli", "agent")
LOG_LINES_KEPT = 12
TIME_TO_END_S = 5.0
# From the end of a call to the end of the process that cancelled it.
TIME_TO_DIE_S = 0.3
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The agent's socket is not there yet when we first try, and the default is to wait a second.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)

T = TypeVar("T")


class AgentError(RuntimeError):
    """A failure of the agent, or a refused request. `log` holds the last lines of its log."""

    def __init__(self, problem: str, log: Sequence[str] = ()) -> None:
        self.problem, self.log = problem, tuple(log)
        lines = "".join(f"\n  | {line}" for line in self.log)
        super().__init__(f"{problem}{'; end of its log:' if lines else ''}{lines}")


@contextlib.asynccontextmanager
async def private_agent(*, show_log: bool = False) -> AsyncIterator[AgentProcess]:
    """Run an agent for the time of the `async with` block; leave nothing behind."""
    with contextlib.ExitStack() as stack:
        try:
            # Private: no other user connects to an agent that runs as root.
            socket = stack.enter_context(temporary_folder("run")) / "agent.sock"
            agent = await AgentProcess.start(socket, show_log=show_log)
        except OSError as error:
            raise AgentError(f"cannot start the agent: {explained(error)}") from None
        try:
            yield agent
        finally:
            await agent.end()


class AgentProcess:
    """The child process and its socket. Made by `private_agent`."""

    def __init__(
        self, process: asyncio.subprocess.Process, socket: Path, *, show_log: bool
    ) -> None:
        self._process = process
        self._socket = socket
        self._log: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._reader = asyncio.create_task(self._read_log(show_log=show_log))

    @classmethod
    async def start(cls, socket: Path, *, show_log: bool) -> AgentProcess:
        """Start the child in a session of its own: a Ctrl-C in the terminal is for us alone."""
        process = await asyncio.create_subprocess_exec(
            *AGENT_COMMAND,
            *("--socket", str(socket)),
            f"--exit-with-parent={os.getpid()}",
            env=interpreter.environment(),
            cwd=interpreter.DIRECTORY,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(process, socket, show_log=show_log)

    def channel(self) -> grpc.aio.Channel:
        """Return a channel to the agent; calls should wait until it is ready."""
        return grpc.aio.insecure_channel(
            f"unix:{self._socket}",
            options=CHANNEL_OPTIONS,
        )

    async def while_alive(self, work: Callable[[], Coroutine[object, object, T]]) -> T:
        """Return the result of `work()`; raise AgentError if the agent exits or cancels it."""
        try:
            return await first_to_end(work(), self._death())
        except grpc.aio.AioRpcError as error:
            raise await self._explain(error) from None

    async def end(self) -> None:
        """End the child: with SIGTERM, then with SIGKILL."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(TIME_TO_END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read_log(self, *, show_log: bool) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = printable(line.decode(errors="replace").rstrip().expandtabs())
            self._log.append(text)
            if show_log:
                sys.stderr.write(text + "\n")

    async def _death(self) -> NoReturn:
        raise await self._obituary()

    async def _explain(self, error: grpc.aio.AioRpcError) -> AgentError:
        """Return the error of a failed call: either the agent exited, or it refused the call."""
        try:
            async with asyncio.timeout(TIME_TO_DIE_S):
                await self._process.wait()
        except TimeoutError:
            code = error.code().name
            details = printable(error.details() or "no details")
            return AgentError(f"the agent returned {code}: {details}", self._log)
        return await self._obituary()

    async def _obituary(self) -> AgentError:
        status = await self._process.wait()
        # Its last lines may still be in the pipe.
        await asyncio.wait({self._reader}, timeout=1.0)
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        return AgentError(f"the agent {how}", self._log)
