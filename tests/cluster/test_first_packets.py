"""Pods that live for two seconds: each has a row, all its connects and its packets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from devcluster.images import WORKLOAD_IMAGE
from devcluster.waiting import wait_until
from tests.cluster import manifests
from tests.cluster.product import INTERVAL_SECONDS, Product, is_ready, stage

REQUESTS = 200
RATE = 100
WINDOW_SECONDS = 300

Json = dict[str, Any]
JOBS = pytest.mark.parametrize("jobs", [5, pytest.param(20, marks=pytest.mark.thorough)])


@pytest.fixture
def server(product: Product) -> str:
    """The address of a server that is measured, so that the node's programs are loaded."""
    product.cluster.apply(
        manifests.server_deployment("server", namespace=product.namespace, replicas=1)
    )
    (pod,) = product.cluster.wait_for_pods(product.namespace, "app=server", count=1)
    product.apply_sample(
        selector={},
        window=f"{WINDOW_SECONDS}s",
        overhead={"maxCPUPercent": 0},
        report={"maxPods": 50},
    )
    product.wait_for_status("the probe to be ready", is_ready)
    return str(pod["status"]["podIP"])


def client(server: str) -> Json:
    """A container that connects in its first millisecond, asks for two seconds, and ends."""
    options = ["--rate", str(RATE), "--count", str(REQUESTS), "--exit-when-done"]
    return {
        "name": "client",
        "image": WORKLOAD_IMAGE,
        "args": ["client", *manifests.PORT, *options, server],
    }


def job(name: str, namespace: str, pods: int, container: Json) -> Json:
    """A Job of pods that all start at once."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "parallelism": pods,
            "completions": pods,
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }


def accounts(product: Product, app: str) -> dict[str, Json]:
    """What each pod says that it has sent, by its name, once all have ended."""
    names = product.cluster.kubectl(
        *("get", "pods", f"--selector=app={app}", f"--namespace={product.namespace}"),
        "--output=jsonpath={.items[*].metadata.name}",
    ).split()
    reports = {name: product.cluster.last_report(product.namespace, name) for name in names}
    return {name: next(iter(report["servers"].values())) for name, report in reports.items()}


def rows(status: Json, names: set[str]) -> dict[str, Json]:
    return {pod["name"]: pod for pod in status.get("pods", []) if pod["name"] in names}


def missing(row: Json, sent: Json) -> list[str]:
    """What a pod's row lacks after its end, of what the pod says that it has sent and received."""
    lacks = [] if row.get("ended") else ["its end"]
    connects = stage(row, "tcp.connect").get("count", 0)
    if connects != sent["connects"]:
        lacks.append(f"{connects} of {sent['connects']} connects")
    for name, packets in (("tx.total", sent["requests"]), ("rx.total", sent["responses"])):
        measured = stage(row, name)
        count = measured.get("count", 0)
        known = count + measured.get("lost", 0) + measured.get("unmatched", 0)
        if count < 0.95 * packets or known < 0.99 * packets:
            lacks.append(f"{name}: {count} measured and {known} known of {packets}")
    return lacks


def wait_for_all(product: Product, sent: dict[str, Json]) -> Json:
    """Wait until each pod has its row with all that it has sent; return the status."""
    last: Json = {}

    def unmet() -> str | None:
        nonlocal last
        last = product.status()
        found = rows(last, set(sent))
        lacks = {
            name: missing(found[name], account) if name in found else ["no row"]
            for name, account in sent.items()
        }
        lacks = {name: each for name, each in lacks.items() if each}
        return f"{json.dumps(lacks)}\n{product.logs()}" if lacks else None

    wait_until("the rows of all pods", unmet, seconds=20 * INTERVAL_SECONDS)
    return last


@JOBS
def test_jobs_of_two_seconds_are_measured_from_their_first_packet(
    product: Product, server: str, jobs: int
) -> None:
    product.cluster.apply(job("short", product.namespace, jobs, client(server)))
    product.cluster.kubectl(
        *("wait", "--for=condition=Complete", "job/short", f"--namespace={product.namespace}"),
        "--timeout=180s",
        seconds=200,
    )
    sent = accounts(product, "short")
    assert len(sent) == jobs
    assert {each["connects"] for each in sent.values()} == {1}
    status = wait_for_all(product, sent)
    found = rows(status, set(sent))
    print(json.dumps(found, indent=1))
    assert {tuple(row["containers"]) for row in found.values()} == {("client",)}


# The kubelet waits for ten seconds before the second.
@pytest.mark.parametrize("restarts", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_container_that_restarts_is_measured_from_its_first_packet(
    product: Product, server: str, restarts: int
) -> None:
    """The pod's first container, and those that the kubelet starts after it."""
    restarting = {**client(server), "name": "client"}
    product.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "restarting",
                "namespace": product.namespace,
                "labels": {"app": "restarting"},
            },
            "spec": {"restartPolicy": "Always", "containers": [restarting]},
        }
    )

    def unmet() -> str | None:
        pod = product.cluster.get("pod", "restarting", f"--namespace={product.namespace}")
        (container,) = pod["status"].get("containerStatuses") or [{}]
        starts, state = container.get("restartCount", 0), container.get("state", {})
        done = starts >= restarts and "running" not in state
        return None if done else f"{starts} restarts: {state}"

    wait_until(f"{restarts} restarts", unmet, seconds=180)
    product.cluster.kubectl(
        *("delete", "pod", "restarting", f"--namespace={product.namespace}", "--wait=false")
    )
    times = restarts + 1
    sent = {"connects": times, "requests": times * REQUESTS, "responses": times * REQUESTS}
    wait_for_all(product, {"restarting": sent})


def test_a_probe_whose_pods_have_all_ended_has_their_rows(product: Product, server: str) -> None:
    product.apply_sample(
        "jobs",
        selector={"matchLabels": {"app": "alone"}},
        window=f"{WINDOW_SECONDS}s",
        overhead={"maxCPUPercent": 0},
    )
    wait_until(
        "the operator to follow the probe",
        lambda: None if product.status("jobs").get("phase") else product.logs(),
        seconds=20 * INTERVAL_SECONDS,
    )
    product.cluster.apply(job("alone", product.namespace, 3, client(server)))
    product.cluster.kubectl(
        *("wait", "--for=condition=Complete", "job/alone", f"--namespace={product.namespace}"),
        "--timeout=180s",
        seconds=200,
    )
    sent = accounts(product, "alone")

    def unmet() -> str | None:
        status = product.status("jobs")
        found = rows(status, set(sent))
        lacks = {name: missing(found.get(name, {"stages": []}), sent[name]) for name in sent}
        return f"{lacks}\n{json.dumps(status)}" if any(lacks.values()) else None

    wait_until("the rows of the ended pods", unmet, seconds=20 * INTERVAL_SECONDS)
