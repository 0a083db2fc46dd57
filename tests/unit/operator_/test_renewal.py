"""When certificates count as renewed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from latencyprobe_operator.agents.renewal import Renewal
from tests.unit.operator_.waiting import until


class Files:
    """What is in the files at each look; the last for ever. None: they can't be read."""

    def __init__(self, *contents: str | None) -> None:
        self._contents = list(contents)
        self._made: dict[str, grpc.ChannelCredentials] = {}
        self.looks = 0

    def read(self) -> grpc.ChannelCredentials:
        """As ClientTlsFiles.credentials."""
        self.looks += 1
        content = self._contents.pop(0) if len(self._contents) > 1 else self._contents[0]
        if content is None:
            raise FileNotFoundError("tls.crt")
        return self._made.setdefault(content, grpc.ssl_channel_credentials())


@asynccontextmanager
async def waiting(files: Files) -> AsyncIterator[asyncio.Future[None]]:
    """Somebody who waits for a renewal."""
    renewal = Renewal(files.read, poll_s=0.005, patience_s=0, spread_s=0)
    waiter = asyncio.ensure_future(renewal.wait())
    renewal.start()
    yield waiter
    waiter.cancel()
    await renewal.close()


@pytest.mark.parametrize(
    "contents",
    [
        ("old", "new"),
        ("old", None, None, "new"),  # away for a while
        ("old", "half", "new"),  # looked at while it was being written
    ],
)
async def test_new_contents_are_a_renewal(contents: tuple[str | None, ...]) -> None:
    files = Files(*contents)
    async with waiting(files) as waiter:
        await until(waiter.done, what=lambda: files.looks)


@pytest.mark.parametrize(
    "contents",
    [
        ("old",),
        ("old", None, "old"),  # the same again
        ("old", "half", "old"),
        ("old", None),  # never again
        (None, "first"),  # nobody can have connected before
    ],
)
async def test_anything_else_is_none(contents: tuple[str | None, ...]) -> None:
    files = Files(*contents)
    async with waiting(files) as waiter:
        await until(lambda: files.looks > len(contents) + 5, what=lambda: files.looks)
        assert not waiter.done()


async def test_each_renewal_is_reported_once() -> None:
    files = Files("old", "new")
    renewal = Renewal(files.read, poll_s=0.005, patience_s=0, spread_s=0)
    renewal.start()
    await renewal.wait()
    second = asyncio.ensure_future(renewal.wait())
    looks = files.looks
    await until(lambda: files.looks > looks + 5, what=lambda: files.looks)
    assert not second.done()
    second.cancel()
    await renewal.close()
