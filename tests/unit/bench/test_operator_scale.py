"""The simulated cluster of the operator's benchmark, and its figures."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from io import StringIO

import pytest
from rich.console import Console

from bench.operator_scale import (
    _COUNTED,
    Attaching,
    Figures,
    Memory,
    OperatorScrape,
    OperatorTraffic,
    Processor,
    Target,
    _table,
    received_bytes,
)
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


def test_the_table_has_each_figure() -> None:
    figures = Figures(
        cluster="large",
        nodes=101,
        probes=3,
        pods=103,
        interval_s=10,
        load=1.04,
        attaching=Attaching(seconds=105, cpu_s=106, blocked_cpu_ms=107),
        processor=Processor(
            cpu_ms=108, cpu_percent=109, blocked_ms=110, blocked_cpu_ms=111, collecting_ms=112
        ),
        memory=Memory(rss_mib=113, peak_rss_mib=114, idle_channels_mib=115),
        traffic=OperatorTraffic(
            status_writes=116,
            status_kib=117,
            expected_reports=118,
            reports=119,
            reports_kib=120,
            network_kib=121,
            pods_in_full=122,
            all_bad_pods_in_full=123,
        ),
        scrape=OperatorScrape(series=124, kib=125),
    )
    console = Console(width=200, file=StringIO(), record=True)
    console.print(_table(figures, Target(126, 127)))
    shown = re.findall(r"\d+", console.export_text())
    assert [number for number in range(105, 128) if str(number) not in shown] == []
    assert {"101", "103", "180"} <= set(shown)


def test_counters_are_figures_of_the_traffic() -> None:
    assert {key for key, _, _ in _COUNTED} < {each.name for each in fields(OperatorTraffic)}
