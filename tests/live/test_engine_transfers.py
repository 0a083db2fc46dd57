"""peer.transfer and app.transfer: from the first byte of an answer to its last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.long_paths import FAR, MS, NEAR, SEGMENT, Ends, long_path, watch_both_ends
from tests.live.measuring import CLIENT, SERVER, account_for, watch
from tests.live.pods import Pod
from tests.live.sockets import open_between, read_all
from tests.live.truth import BUCKET

Start = Callable[..., KernelEngine]
pytestmark = pytest.mark.shared_programs
Pair = tuple[Pod, Pod]
TIMES = 20
REQUEST, PIECE = b"q" * 64, b"p" * 500
LONG_REPLY = 60 * SEGMENT
typed_and_plain = pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])


@typed_and_plain
async def test_an_answer_in_pieces_is_timed_from_its_first_byte_to_its_last(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    engine = await watch(start_engine, *pair, typed=typed)
    waits_ns = []
    with open_between(*pair) as both:
        for _ in range(TIMES + 1):
            both.client.sendall(REQUEST)
            read_all(both.server, len(REQUEST))
            await asyncio.sleep(0.005)  # is of app.response and peer.response
            began_ns = time.monotonic_ns()
            both.server.sendall(PIECE)
            await asyncio.sleep(0.020)
            both.server.sendall(PIECE)
            read_all(both.client, 2 * len(PIECE))
            waits_ns.append(time.monotonic_ns() - began_ns)
        measured = engine.read()
    for end, stage in ((CLIENT, "peer.transfer"), (SERVER, "app.transfer")):
        found = measured[end].stage(stage).histogram
        assert account_for(measured[end], stage) == (TIMES, 0), stage
        assert found.min_ns > 20 * MS / BUCKET
        assert found.sum_ns < sum(waits_ns)
    assert "app.transfer" not in measured[CLIENT].stages
    assert "peer.transfer" not in measured[SERVER].stages


@typed_and_plain
async def test_a_long_answer_takes_round_trips_at_both_ends(
    start_engine: Start, typed: bool
) -> None:
    """More than the first window: the rest of it waits for ACKs."""
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = 0.020
        waits_ns = []
        for _ in range(3):
            with path.connection() as ends:
                waits_ns.append(_take(ends))
                ends.ask(REQUEST, PIECE)
        measured = engine.read()
    least_ns = 20 * MS / BUCKET
    for end, stage in ((NEAR, "peer.transfer"), (FAR, "app.transfer")):
        found = measured[end].stage(stage).histogram
        assert found.count >= 3, stage
        assert least_ns < found.max_ns < max(waits_ns), stage


def _take(ends: Ends) -> int:
    began_ns = time.monotonic_ns()
    ends.near.sendall(REQUEST)
    read_all(ends.far, len(REQUEST))
    ends.far.sendall(bytes(LONG_REPLY))
    read_all(ends.near, LONG_REPLY)
    return time.monotonic_ns() - began_ns


async def test_a_reply_that_ends_with_the_connection_is_measured(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    for is_closed_by_client in (True, False):
        with open_between(*pair) as both:
            both.client.sendall(REQUEST)
            read_all(both.server, len(REQUEST))
            both.server.sendall(PIECE)
            await asyncio.sleep(0.020)
            both.server.sendall(PIECE)
            read_all(both.client, 2 * len(PIECE))
            first, last = (both.client, both.server)[:: 1 if is_closed_by_client else -1]
            first.close()
            last.recv(1)
        measured = engine.read()[CLIENT]
        assert account_for(measured, "peer.transfer") == (1, 0), is_closed_by_client
        assert measured.stage("peer.transfer").histogram.min_ns > 20 * MS / BUCKET


async def test_a_message_after_a_long_pause_is_not_taken_for_the_end_of_the_reply(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    with open_between(*pair) as both:
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        both.server.sendall(PIECE)
        read_all(both.client, len(PIECE))
        await asyncio.sleep(1.5)
        both.server.sendall(PIECE)  # unasked
        read_all(both.client, len(PIECE))
        assert "peer.transfer" not in engine.read()[CLIENT].stages
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        both.server.sendall(PIECE)
        read_all(both.client, len(PIECE))
        measured = engine.read()[CLIENT]
    assert account_for(measured, "peer.transfer") == (0, 1)
