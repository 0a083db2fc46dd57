"""Records that the kernel decrypts: a parser takes the segments, in a softirq or in a read."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, account_for, assert_parts_add_up, watch
from tests.live.pods import Pod, run
from tests.live.sockets import open_between, read_all

Start = Callable[..., KernelEngine]
RECORDS = 50
# linux/tcp.h, linux/tls.h
TCP_ULP = 31
SOL_TLS, TLS_TX, TLS_RX = 282, 1, 2
TLS_1_2, AES_GCM_128 = 0x0303, 51
CRYPTO_INFO = struct.Struct("=HH8s16s4s8s")  # version, cipher, iv, key, salt, record's number


def encrypt(end: socket.socket, direction: int) -> None:
    """Have the kernel encrypt or decrypt, with a key that both ends know."""
    end.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    keys = CRYPTO_INFO.pack(TLS_1_2, AES_GCM_128, b"i" * 8, b"k" * 16, b"s" * 4, bytes(8))
    end.setsockopt(SOL_TLS, direction, keys)


async def test_segments_of_decrypted_records_count_once(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    run("modprobe", "tls")
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        encrypt(both.client, TLS_TX)
        encrypt(both.server, TLS_RX)
        for _ in range(RECORDS):
            both.client.sendall(b"q" * 100)
            read_all(both.server, 100)
    measured = engine.read()
    assert account_for(measured[CLIENT], "tx.total") == (RECORDS, 0)
    for stage in ("rx.stack", "rx.socket", "rx.total"):
        assert account_for(measured[SERVER], stage) == (RECORDS, 0), stage
    assert_parts_add_up(measured[SERVER], "rx")
