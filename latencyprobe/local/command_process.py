"""A command that is started stopped: it waits to exec until its measurement is attached.

So its first packet is measured. Like `strace` and `perf stat` we leave it our terminal, standard
streams and process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
from collections.abc import Sequence
from typing import NoReturn

TIME_TO_END_S = 5.0
# As shells answer.
STATUS_NOT_FOUND = 127
STATUS_NOT_EXECUTABLE = 126


class CommandError(RuntimeError):
    """A command that could not be executed. `status` is the exit status that a shell would have."""

    def __init__(self, argv: Sequence[str], error: OSError) -> None:
        self.argv = tuple(argv)
        not_found = error.errno in {errno.ENOENT, errno.ENOTDIR}
        self.status = STATUS_NOT_FOUND if not_found else STATUS_NOT_EXECUTABLE
        super().__init__(f"cannot execute {argv[0]!r}: {os.strerror(error.errno or 0)}")


class StoppedCommand:
    """A forked child that has not executed its command yet.

    Make it before the event loop and any thread exist: it forks.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = tuple(argv)
        go_read, self._go = os.pipe()
        self._failure, failure_write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            # Our copies of the parent's ends would hide that the parent is gone.
            os.close(self._go)
            os.close(self._failure)
            _wait_and_exec(self.argv, go_read, failure_write)
        os.close(go_read)
        os.close(failure_write)
        self._pidfd = os.pidfd_open(self.pid)
        self._status: int | None = None

    @property
    def released(self) -> bool:
        """True once it was released."""
        return self._go < 0

    def release(self) -> None:
        """Let it execute its command; raise CommandError if that fails."""
        os.write(self._go, b"g")
        self._close_go()
        # A successful exec closes it; after a failed one it holds the error number.
        with os.fdopen(self._failure, "rb") as failure:
            self._failure = -1
            answer = failure.read()
        if answer:
            self._reap()
            raise CommandError(self.argv, OSError(int(answer), ""))

    async def wait(self) -> int:
        """Wait for its end; return its exit status as a shell does: 128 + n for signal n."""
        if self._status is None:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(self._pidfd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(self._pidfd)
            self._reap()
        assert self._status is not None
        return self._status

    def poll(self) -> int | None:
        """Return its exit status, or None if it still runs."""
        if self._status is None and select.select([self._pidfd], [], [], 0)[0]:
            self._reap()
        return self._status

    def send(self, signal_number: int) -> None:
        """Send it a signal, if it still runs."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal_number)

    async def end(self) -> int:
        """End it with SIGTERM, then with SIGKILL; return its exit status."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(TIME_TO_END_S):
                return await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            return await self.wait()

    def close(self) -> None:
        """End a command that was not released, and close all descriptors. Idempotent."""
        if self._go >= 0:
            # At the end of the pipe the child exits without executing anything.
            self._close_go()
            self._reap()
        for descriptor in (self._failure, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._failure = self._pidfd = -1

    def _close_go(self) -> None:
        os.close(self._go)
        self._go = -1

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._status = code if code >= 0 else 128 - code


def _wait_and_exec(argv: tuple[str, ...], go: int, failure: int) -> NoReturn:
    """Run as the child: restore signals that Python changed, wait for release, exec the command."""
    try:
        # Python ignores these two, and ignored signals survive an exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if os.read(go, 1):
            try:
                os.execvp(argv[0], argv)  # noqa: S606 (the user's own command)
            except OSError as error:
                os.write(failure, str(error.errno).encode())
    finally:
        os._exit(STATUS_NOT_FOUND)
