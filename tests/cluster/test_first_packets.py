"""Pods that live for two seconds: each has a row, all its connects and its packets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from devcluster.images import WORKLOAD_IMAGE
from devcluster.waiting import NotInTimeError, wait_until
from tests.cluster import manifests
from tests.cluster.product import INTERVAL_SECONDS, Product, is_ready, stage

REQUESTS = 200
RATE = 100
WINDOW_SECONDS = 300
# The names of pods that are measured, the second only if the first came too early.
TURNS = ("first", "second")
JOB = {"kind": "job"}
UNTIL_DONE = "--exit-when-done"
NO_ROW, NO_END = "no row", "its end"

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


def client(server: str, name: str = "client") -> Json:
    """A container that connects in its first millisecond, asks for two seconds, and ends."""
    options = ["--rate", str(RATE), "--count", str(REQUESTS), UNTIL_DONE]
    return {
        "name": name,
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
                "metadata": {"labels": {"app": name, **JOB}},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }


def pods_of(product: Product, app: str) -> list[str]:
    """The names of the pods of an application."""
    return product.cluster.kubectl(
        *("get", "pods", f"--selector=app={app}", f"--namespace={product.namespace}"),
        "--output=jsonpath={.items[*].metadata.name}",
    ).split()


def accounts(product: Product, app: str) -> dict[str, Json]:
    """What each pod says that it has sent, by its name, once all have ended."""
    names = pods_of(product, app)
    reports = {name: product.cluster.last_report(product.namespace, name) for name in names}
    return {name: next(iter(report["servers"].values())) for name, report in reports.items()}


def rows(status: Json, names: set[str]) -> dict[str, Json]:
    return {pod["name"]: pod for pod in status.get("pods", []) if pod["name"] in names}


def missing(row: Json, sent: Json) -> list[str]:
    """What a pod's row lacks after its end, of what the pod says that it has sent and received."""
    lacks = [] if row.get("ended") else [NO_END]
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


class LateError(AssertionError):
    """Rows are there, and lack packets or connects: the first ones, if the agent came late."""


def wait_for_all(product: Product, sent: dict[str, Json], probe: str = "checkout") -> Json:
    """Wait until each pod has its row with all that it has sent; return the status."""
    last: Json = {}

    def lacking() -> dict[str, list[str]]:
        nonlocal last
        last = product.status(probe)
        found = rows(last, set(sent))
        lacks = {
            name: missing(found[name], account) if name in found else [NO_ROW]
            for name, account in sent.items()
        }
        return {name: each for name, each in lacks.items() if each}

    def unmet() -> str | None:
        lacks = lacking()
        return f"{json.dumps(lacks)}\n{product.logs()}" if lacks else None

    try:
        wait_until("the rows of all pods", unmet, seconds=20 * INTERVAL_SECONDS)
    except NotInTimeError as error:
        if {NO_ROW, NO_END} & {lack for each in lacking().values() for lack in each}:
            raise
        raise LateError(str(error)) from None
    return last


def in_time(measure: Callable[[str], None]) -> None:
    """Measure pods that the agent knows before their first packet.

    A pod sends some 0.1 s after it is bound. A process that this machine halts for longer, on the
    way from the API server to the agent, has the agent come late; so it may be another pod's turn.
    """
    *firsts, last = TURNS
    for turn in firsts:
        try:
            return measure(turn)
        except LateError as late:
            print(f"{turn}: {late}")
    return measure(last)


def run_job(product: Product, name: str, pods: int, server: str) -> dict[str, Json]:
    """Run a Job of clients to its end; return what each says that it has sent, by pod."""
    run_to_its_end(product, job(name, product.namespace, pods, client(server)))
    return accounts(product, name)


def run_to_its_end(product: Product, job: Json) -> None:
    product.cluster.apply(job)
    name = job["metadata"]["name"]
    product.cluster.kubectl(
        *("wait", "--for=condition=Complete", f"job/{name}", f"--namespace={product.namespace}"),
        "--timeout=180s",
        seconds=200,
    )


@JOBS
def test_jobs_of_two_seconds_are_measured_from_their_first_packet(
    product: Product, server: str, jobs: int
) -> None:
    def measure(turn: str) -> None:
        sent = run_job(product, turn, jobs, server)
        assert len(sent) == jobs
        assert {each["connects"] for each in sent.values()} == {1}
        found = rows(wait_for_all(product, sent), set(sent))
        print(json.dumps(found, indent=1))
        assert {tuple(row["containers"]) for row in found.values()} == {("client",)}

    in_time(measure)


# The kubelet waits for ten seconds before the second.
@pytest.mark.parametrize("restarts", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_container_that_restarts_is_measured_from_its_first_packet(
    product: Product, server: str, restarts: int
) -> None:
    """The pod's first container, and those that the kubelet starts after it."""
    times = restarts + 1
    sent = {"connects": times, "requests": times * REQUESTS, "responses": times * REQUESTS}

    def measure(turn: str) -> None:
        restart(product, turn, client(server), restarts)
        wait_for_all(product, {turn: sent})

    in_time(measure)


def test_an_init_container_is_measured_from_its_first_packet(product: Product, server: str) -> None:
    """It ends before the pod's own container begins; the pod has a row for both."""
    sent = {"connects": 2, "requests": 2 * REQUESTS, "responses": 2 * REQUESTS}

    def measure(turn: str) -> None:
        made = job(turn, product.namespace, 1, client(server))
        made["spec"]["template"]["spec"]["initContainers"] = [client(server, "migration")]
        run_to_its_end(product, made)
        (name,) = pods_of(product, turn)
        wait_for_all(product, {name: sent})

    in_time(measure)


def test_a_sidecar_is_measured_from_its_first_packet(product: Product, server: str) -> None:
    """It begins before the pod's own container, stays beside it, and ends after it."""
    sent = {"connects": 2, "requests": 2 * REQUESTS, "responses": 2 * REQUESTS}

    def measure(turn: str) -> None:
        sidecar = {**client(server, "sidecar"), "restartPolicy": "Always"}
        sidecar["args"] = [each for each in sidecar["args"] if each != UNTIL_DONE]
        made = job(turn, product.namespace, 1, client(server))
        made["spec"]["template"]["spec"] |= {
            "initContainers": [sidecar],
            "terminationGracePeriodSeconds": 1,
        }
        run_to_its_end(product, made)
        (name,) = pods_of(product, turn)
        row = rows(wait_for_all(product, {name: sent}), {name})[name]
        assert row["containers"] == ["client", "sidecar"]

    in_time(measure)


def restart(product: Product, name: str, container: Json, restarts: int) -> None:
    """Run a pod until its container was started again so often; then delete it."""
    product.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": product.namespace, "labels": {"app": name}},
            "spec": {"restartPolicy": "Always", "containers": [container]},
        }
    )

    def unmet() -> str | None:
        pod = product.cluster.get("pod", name, f"--namespace={product.namespace}")
        (state,) = pod["status"].get("containerStatuses") or [{}]
        starts, now = state.get("restartCount", 0), state.get("state", {})
        return None if starts >= restarts and "running" not in now else f"{starts} restarts: {now}"

    wait_until(f"{restarts} restarts", unmet, seconds=180)
    product.cluster.kubectl(
        *("delete", "pod", name, f"--namespace={product.namespace}", "--wait=false")
    )


def test_a_probe_whose_pods_have_all_ended_has_their_rows(product: Product, server: str) -> None:
    product.apply_sample(
        "jobs",
        selector={"matchLabels": JOB},
        window=f"{WINDOW_SECONDS}s",
        overhead={"maxCPUPercent": 0},
    )
    wait_until(
        "the operator to follow the probe",
        lambda: None if product.status("jobs").get("phase") else product.logs(),
        seconds=20 * INTERVAL_SECONDS,
    )

    def measure(turn: str) -> None:
        wait_for_all(product, run_job(product, turn, 3, server), "jobs")

    in_time(measure)
