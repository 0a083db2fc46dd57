"""Real agents report addresses, and the operator has the names of the pods behind them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.cluster.release import Json
from tests.cluster.shop import Shop, counts

SERVERS = ("checkout-1", "checkout-2")


@contextmanager
def halted(shop: Shop, *names: str) -> Iterator[None]:
    """The processes of these pods stand still: the kernel takes requests, and nobody answers."""
    pids = [
        pid
        for name in names
        for pid in shop.release.pids_of(
            shop.cluster.get("pod", name, f"--namespace={shop.namespace}")
        )
    ]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def row_of(status: Json, name: str) -> Json:
    return next((pod for pod in status.get("pods", ()) if pod["name"] == name), {})


@pytest.fixture
def asking(shop: Shop) -> Iterator[str]:
    """A pod that asks the servers of both nodes."""
    servers = [
        shop.cluster.get("pod", name, f"--namespace={shop.namespace}")["status"]["podIP"]
        for name in SERVERS
    ]
    try:
        shop.add_client("asking", shop.cluster.nodes[0].name, servers)
        shop.wait("packets", lambda status: counts(status, "rx.total").get("asking"), seconds=180)
        yield "asking"
    finally:
        shop.kubectl("delete", "pod", "asking", "--grace-period=1", "--ignore-not-found")


def test_peers_that_hang_are_named_by_their_pods(shop: Shop, asking: str) -> None:
    named = {f"pod {shop.namespace}/{server}" for server in SERVERS}

    def is_accused(status: Json) -> bool:
        row = row_of(status, asking)
        names = {peer.get("name") for peer in row.get("peers", ())}
        return names == named and row["verdict"]["bottleneck"] == "Peer"

    with halted(shop, *SERVERS):
        status = shop.wait("the verdict and the names of the peers", is_accused, seconds=180)
    row = row_of(status, asking)
    assert {peer["kind"] for peer in row["peers"]} == {"missingAnswers"}
    culprit = row["verdict"]["culprit"]
    assert culprit in {f"{peer['name']} ({peer['address']})" for peer in row["peers"]}
    assert f"the longest for {culprit}" in row["verdict"]["evidence"]


def test_a_server_that_hangs_is_a_slow_reader(shop: Shop) -> None:
    server = SERVERS[1]

    def is_accused(status: Json) -> bool:
        row = row_of(status, server)
        return bool(row) and row["verdict"]["bottleneck"] == "SlowReader"

    shop.wait(
        "a row of a server that reads",
        lambda status: row_of(status, server) and not is_accused(status),
        seconds=180,
    )
    with halted(shop, server):
        shop.wait("the server's own verdict", is_accused, seconds=180)
    shop.wait_until_both_nodes_report()


def test_the_column_of_a_probe_names_the_cause_of_a_pod_that_hangs(shop: Shop) -> None:
    def is_named(status: Json) -> bool:
        summary = status.get("summary", {})
        accused = {pod["verdict"]["bottleneck"] for pod in status.get("pods", ())}
        by_pods = summary.get("message", "").startswith("pods with this verdict: ")
        # Its client waits, too. Before the halt, the summary may name any other cause.
        return by_pods and summary["bottleneck"] in accused & {"SlowReader", "Peer"}

    with halted(shop, SERVERS[1]):
        shop.wait("the verdict of the pod that hangs in the summary", is_named, seconds=180)
    shop.wait_until_both_nodes_report()
