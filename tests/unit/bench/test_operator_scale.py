"""The simulated cluster of the operator's benchmark, and its figures."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.operator_scale import received_bytes
from bench.simulated_cluster import Scenario


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP server on this host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_each_pod_has_an_address_of_its_own() -> None:
    scenario = Scenario(nodes=60, probes=2, nodes_of_a_probe=30)

    addresses = {body["status"]["podIP"] for body in scenario.pod_bodies()}

    assert len(addresses) == scenario.pods


def test_bytes_are_counted_of_all_connections_to_an_address(listener: socket.socket) -> None:
    address = listener.getsockname()
    with ExitStack() as opened:
        for size in (1000, 20):
            client = opened.enter_context(socket.create_connection(address))
            own = opened.enter_context(listener.accept()[0])
            own.sendall(b"x" * size)
            client.recv(size, socket.MSG_WAITALL)
            client.sendall(b"not counted")
            own.recv(100)

        assert received_bytes(f"127.0.0.1:{address[1]}") == 1020
        assert received_bytes("127.0.0.1:1") == 0
