"""Listening sockets whose next connections cannot be accepted, for want of descriptors."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

REASON = f"[Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)}"


def fail_to_accept(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[OSError]:
    """Have the next accepts of this loop fail; return the failures that are left."""
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE)) for _ in range(times)]
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept

    async def fail_first(listener: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", fail_first)
    return failures
