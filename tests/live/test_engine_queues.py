"""What waits in a socket to be read: a few segments, or more than a socket's queue holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import TRIES
from tests.live.measuring import SERVER, account_for, watch
from tests.live.pods import Pod
from tests.live.sockets import (
    Connection,
    connection,
    drain,
    read_all,
    send_unread,
    udp_socket,
    wait_for_bytes,
)

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
PORT = 7000
# Around FEW_SEGMENTS and SEGMENTS, bpf/include/sockets.h; the first twice in one connection.
AMOUNTS = (3, 4, 5, 1, 64, 4, 63, 9)
# One that a softirq receives which interrupts a thread hidden from tracers is hidden too.

pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_as_many_unread_segments_as_are_remembered_are_all_samples(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server, typed=typed)
    with connection(client.namespace, server.namespace, server.address) as both:

        def account_for_segments(amount: int) -> tuple[int, int]:
            send_before_any_is_read(both, amount)
            return account_for(engine.read()[SERVER], "rx.socket")

        for amount in AMOUNTS:
            assert any(account_for_segments(amount) == (amount, 0) for _ in TRIES)


def send_before_any_is_read(both: Connection, amount: int) -> None:
    """So many segments, then read them all."""
    for sent in range(1, amount + 1):
        both.client.sendall(b"q" * 100)
        wait_for_bytes(both.server, 100 * sent)
    read_all(both.server, 100 * amount)


@pytest.mark.every_kernel
async def test_segments_beyond_those_that_are_remembered_are_lost(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)

    def samples_lost_and_unmatched() -> tuple[int, int, int]:
        with connection(client.namespace, server.namespace, server.address) as both:
            send_before_any_is_read(both, 100)
        measured = engine.read()[SERVER].stage("rx.socket")
        return measured.histogram.count, measured.lost, measured.unmatched

    assert any(samples_lost_and_unmatched() == (64, 36, 0) for _ in TRIES)


@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_as_many_unread_datagrams_as_are_remembered_are_all_samples(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server, typed=typed)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):

        def account_for_datagrams(amount: int) -> tuple[int, int]:
            send_unread(sending, reading, b"d", amount)
            assert drain(reading) == amount
            return account_for(engine.read()[SERVER], "rx.socket")

        for amount in (2, 3, 4, 1, 63, 5):
            assert any(account_for_datagrams(amount) == (amount, 0) for _ in TRIES)
