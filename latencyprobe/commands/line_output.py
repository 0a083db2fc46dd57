"""Output of lines to standard output or a file while an event loop runs.

The reader of a pipe may be slow, or exit. A slow one does not block the loop: lines are written
when there is room. An exit is noticed at once, not with the next line.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat

# A pipe that polls writable takes this much without blocking: pipe_poll(), fs/pipe.c.
_PIECE_BYTES = select.PIPE_BUF


class LineOutput:
    """The open file behind a descriptor. Use it with `async with`, inside the event loop.

    `is_gone` is set when the reader has exited; all later writes are dropped.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        mode = os.fstat(descriptor).st_mode
        self._is_pipe = stat.S_ISFIFO(mode)
        # Files are always ready, and epoll refuses them.
        self._may_block = self._is_pipe or stat.S_ISSOCK(mode) or os.isatty(descriptor)
        self.is_gone = asyncio.Event()

    async def __aenter__(self) -> LineOutput:
        if self._is_pipe:
            # The writing end of a pipe has nothing to read but the news that its reader is gone.
            asyncio.get_running_loop().add_reader(self._descriptor, self._reader_gone)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._is_pipe:
            asyncio.get_running_loop().remove_reader(self._descriptor)

    async def write(self, text: str) -> bool:
        """Write all of it; return False if the reader has exited. Raise OSError on a full disk."""
        content = text.encode()
        while content and not self.is_gone.is_set():
            if self._may_block:
                await self._room()
            try:
                content = content[os.write(self._descriptor, content[:_PIECE_BYTES]) :]
            except BrokenPipeError:
                self._reader_gone()
        return not content

    def _reader_gone(self) -> None:
        self.is_gone.set()
        if self._is_pipe:
            asyncio.get_running_loop().remove_reader(self._descriptor)

    async def _room(self) -> None:
        """Wait until a piece can be written without blocking, or the reader has exited."""
        loop = asyncio.get_running_loop()
        is_ready = asyncio.Event()
        loop.add_writer(self._descriptor, is_ready.set)
        try:
            await is_ready.wait()
        finally:
            loop.remove_writer(self._descriptor)
