"""Lines into pipes and files whose other end is slow, gone or full."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from latencyprobe.commands.line_output import LineOutput


async def test_all_written_lines_arrive(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with path.open("wb") as file:
        async with LineOutput(file.fileno()) as output:
            assert await output.write("a\n" * 10_000)
            assert await output.write("ü\n")
    assert path.read_text() == "a\n" * 10_000 + "ü\n"


async def test_a_slow_reader_is_waited_for_without_blocking_the_loop() -> None:
    reading, writing = os.pipe()
    try:
        async with LineOutput(writing) as output:
            text = "x" * (1 << 20)  # more than a pipe takes
            pending = asyncio.create_task(output.write(text))
            os.set_blocking(reading, False)
            read = 0
            async with asyncio.timeout(30):
                while read < len(text):
                    await asyncio.sleep(0)
                    with contextlib.suppress(BlockingIOError):
                        read += os.read(reading, 4096).count(b"x")
            assert await pending
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_reader_that_goes_is_noticed_before_anything_is_written() -> None:
    reading, writing = os.pipe()
    try:
        async with LineOutput(writing) as output:
            os.close(reading)
            await asyncio.wait_for(output.is_gone.wait(), 10)
            assert not await output.write("too late")
    finally:
        os.close(writing)


async def test_a_reader_that_goes_while_we_wait_for_it_is_no_error() -> None:
    reading, writing = os.pipe()
    try:
        async with LineOutput(writing) as output:
            pending = asyncio.create_task(output.write("x" * (1 << 20)))
            await asyncio.sleep(0.01)
            assert not pending.done()
            os.close(reading)
            assert not await asyncio.wait_for(pending, 10)
    finally:
        os.close(writing)


async def test_a_full_disk_is_an_error() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        async with LineOutput(descriptor) as output:
            with pytest.raises(OSError, match="No space left"):
                await output.write("x")
    finally:
        os.close(descriptor)
