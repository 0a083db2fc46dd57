"""Real agents report addresses, and the operator has the names of the pods behind them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.release import Json
from tests.cluster.shop import Shop


@contextmanager
def halted(shop: Shop, name: str) -> Iterator[None]:
    """The processes of a pod stand still: its kernel takes requests, and nobody answers."""
    pod = shop.cluster.get("pod", name, f"--namespace={shop.namespace}")
    pids = shop.release.pids_of(pod)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def row_of(status: Json, name: str) -> Json:
    return next((pod for pod in status.get("pods", ()) if pod["name"] == name), {})


def test_a_peer_that_hangs_is_named_by_its_pod(shop: Shop) -> None:
    shop.wait_until_both_nodes_report()
    asking, hanging = (
        f"load-{shop.cluster.nodes[0].number}",
        f"checkout-{shop.cluster.nodes[1].number}",
    )
    named = f"pod {shop.namespace}/{hanging}"
    with halted(shop, hanging):
        status = shop.wait(
            "the name of the peer",
            lambda status: (
                [peer.get("name") for peer in row_of(status, asking).get("peers", ())] == [named]
                and row_of(status, asking)["verdict"]["bottleneck"] == "Peer"
            ),
            seconds=180,
        )
    (peer,) = row_of(status, asking)["peers"]
    verdict = row_of(status, asking)["verdict"]
    assert peer["kind"] == "missingAnswers"
    assert verdict["culprit"] == f"{named} ({peer['address']})"
    assert f"the longest for {verdict['culprit']}" in verdict["evidence"]
    shop.wait_until_both_nodes_report()
