"""The API server's own count of status writes, of one probe at a time: it names no object."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families as read_text

from devcluster.environment import Cluster
from devcluster.waiting import wait_until
from tests.cluster import manifests
from tests.cluster.shop import LIVE, Shop
from tests.cluster.watching import Watched, watching

Json = dict[str, Any]

REQUESTS_TOTAL = "apiserver_request_total"
READY = '.status.conditions[?(@.type=="Ready")].reason'
INTERVAL_S = 5
# Without news, lastReportTime is written this often.
SIGN_OF_LIFE_S = 60


def status_writes(cluster: Cluster) -> int:
    """The number of writes of LatencyProbes' statuses that the API server has been asked for."""
    page = cluster.kubectl("get", "--raw=/metrics")
    lines = [line for line in page.splitlines() if line.startswith(f"{REQUESTS_TOTAL}{{")]
    samples = [sample for family in read_text("\n".join(lines)) for sample in family.samples]
    assert samples
    return round(
        sum(
            sample.value
            for sample in samples
            if sample.labels["resource"] == "latencyprobes"
            and sample.labels["subresource"] == "status"
            and sample.labels["verb"] in ("PATCH", "APPLY", "PUT")
        )
    )


@dataclass
class Counted:
    """The writes of one probe's status within some seconds."""

    writes: int
    seconds: float
    turns: int
    """The number of changes of its phase and of the reason of Ready."""


def counted(cluster: Cluster, namespace: str, name: str, *, seconds: float) -> Counted:
    """Count for this long the writes of a probe that is the only one to be measured."""
    with watching(cluster, "latencyprobe", name, namespace, ".status.phase", READY) as statuses:
        _wait_for_a_line(statuses)
        before, began = status_writes(cluster), time.monotonic()
        time.sleep(seconds)  # the time that is counted
        writes, ended = status_writes(cluster) - before, time.monotonic()
        seen = [line.fields for line in statuses.lines]
    turns = sum(earlier != later for earlier, later in itertools.pairwise(seen))
    return Counted(writes, ended - began, turns)


def _wait_for_a_line(statuses: Watched) -> None:
    wait_until("the watch", lambda: None if statuses.lines else "no line yet", seconds=60)


def probe(name: str, namespace: str, *, interval_s: int, window_s: int) -> Json:
    """A probe of all pods of a namespace."""
    return {
        "apiVersion": "latencyprobe.io/v1alpha1",
        "kind": "LatencyProbe",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {},
            "interval": f"{interval_s}s",
            "window": f"{window_s}s",
            "overhead": {"maxCPUPercent": 0},
        },
    }


def _is_measured(status: Json) -> bool:
    """Whether every node measures, and figures were written: what comes first has been written."""
    targets = status.get("targets", {})
    return bool(
        targets.get("nodes")
        and targets["readyNodes"] == targets["nodes"]
        and status.get("pods")
        and status.get("lastReportTime")
    )


@contextmanager
def _suspended(shop: Shop) -> Iterator[None]:
    """Have the shop's own probe suspended, and every other probe gone, until the end of the block.

    Namespaces of other tests, and the probes in these, may be about to go.
    """

    def patch(*, suspend: bool) -> None:
        merge = json.dumps({"spec": {"suspend": suspend}})
        shop.kubectl("patch", "latencyprobe", LIVE, "--type=merge", f"--patch={merge}")

    def unmet() -> str | None:
        found = shop.cluster.get("latencyprobes", "--all-namespaces")["items"]
        names = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in found}
        return None if names == {(shop.namespace, LIVE)} else f"there are {sorted(names)}"

    patch(suspend=True)
    try:
        shop.wait("suspension", lambda status: status.get("phase") == "Suspended")
        wait_until("other probes to be gone", unmet, seconds=180)
        yield
    finally:
        patch(suspend=False)
        shop.wait_until_both_nodes_report()


@pytest.fixture
def only_shop(shop: Shop) -> Iterator[Shop]:
    """The shop, whose own probe writes no status."""
    shop.wait_until_both_nodes_report()
    with _suspended(shop):
        yield shop


def test_the_status_of_busy_pods_is_written_once_an_interval_at_most(only_shop: Shop) -> None:
    shop, name = only_shop, f"busy-{uuid4().hex[:8]}"
    # Nearly all figures of a short window are others in the next interval.
    shop.cluster.apply(probe(name, shop.namespace, interval_s=INTERVAL_S, window_s=INTERVAL_S))
    try:
        shop.wait("figures of the busy pods", _is_measured, probe=name)
        found = counted(shop.cluster, shop.namespace, name, seconds=8 * INTERVAL_S)
    finally:
        shop.kubectl("delete", "latencyprobe", name, "--timeout=60s")

    assert 0 < found.writes <= found.seconds / INTERVAL_S + 1 + found.turns, found


@pytest.mark.thorough
def test_the_status_of_quiet_pods_is_written_once_a_minute_at_most(
    only_shop: Shop, namespace: str
) -> None:
    shop, quiet = only_shop, Shop(only_shop.release, namespace)
    node = shop.cluster.nodes[0].name
    shop.cluster.apply(
        manifests.server_pod("unasked", namespace=namespace, node=node),
        probe("quiet", namespace, interval_s=1, window_s=2),
    )
    shop.cluster.wait_for_pods(namespace, "app=server", count=1)
    try:
        quiet.wait("readiness of the quiet pod", _is_measured, probe="quiet")
        found = counted(shop.cluster, namespace, "quiet", seconds=2 * SIGN_OF_LIFE_S)
    finally:
        quiet.kubectl("delete", "latencyprobe", "quiet", "--timeout=60s")

    assert found.turns == 0
    assert 0 < found.writes <= found.seconds / SIGN_OF_LIFE_S + 1, found
