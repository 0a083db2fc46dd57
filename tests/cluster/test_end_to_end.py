"""The main job, with every part real: apply a probe, attach eBPF, measure pods, read the status."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from devcluster.waiting import wait_until
from latencyprobe_operator.model import STATIC_POD_NAMESPACES
from tests.cluster import manifests
from tests.cluster.operator_process import Process
from tests.cluster.product import (
    INTERVAL_SECONDS,
    Product,
    all_sent,
    counts,
    is_ready,
    stage,
)
from tests.cluster.static_pods import StaticPod, hash_of, restarts, uid_of
from tests.live.leftovers import held_program_ids

REQUESTS = 400
HOSTS = "/hosts"


def bpftool(kind: str) -> list[dict[str, Any]]:
    """All `prog` or `link` of this machine."""
    listing = subprocess.run(
        ["bpftool", kind, "show", "-j"], check=True, capture_output=True, text=True
    )
    shown: list[dict[str, Any]] = json.loads(listing.stdout)
    return shown


def our_programs(agent: Process) -> set[int]:
    """Ids of the eBPF programs with names of ours that this agent holds, or nobody any more.

    Other engines may run on this machine.
    """
    named = {
        program["id"]
        for program in bpftool("prog")
        if program.get("type") == "tracing" and program.get("name", "").startswith("on_")
    }
    held = held_program_ids()
    by_agent = held_program_ids(agent.pid) if agent.pid else set()
    return named - held | named & by_agent


def attached_programs(agent: Process) -> set[int]:
    """Those of our_programs() that a link attaches: an agent that starts loads its programs too."""
    return our_programs(agent) & {link["prog_id"] for link in bpftool("link")}


def wait_until_nothing_is_attached(agent: Process, before: set[int]) -> None:
    """Wait until the kernel has freed what was attached since."""

    def unmet() -> str | None:
        left = our_programs(agent) - before
        return f"programs {sorted(left)} are still loaded" if left else None

    wait_until("all programs to be gone", unmet, seconds=180)


def client(name: str, namespace: str, *options: str) -> manifests.Manifest:
    """A client that knows no servers yet."""
    options = ("--hosts-file", HOSTS, "--rate", "200", *options)
    return manifests.client_pod(name, namespace=namespace, servers=[], options=options)


@pytest.fixture
def servers(product: Product) -> list[dict[str, Any]]:
    """Two server pods, and a client that knows none of them yet."""
    cluster, namespace = product.cluster, product.namespace
    cluster.apply(
        manifests.server_deployment("checkout", namespace=namespace, replicas=2),
        client("client", namespace, "--count", str(REQUESTS)),
    )
    cluster.wait_for_pods(namespace, "app=client", count=1)
    return cluster.wait_for_pods(namespace, "app=checkout", count=2)


@pytest.fixture
def system(product: Product) -> Iterator[Product]:
    """The product, for probes of the namespace in which pods may be static."""
    (namespace,) = STATIC_POD_NAMESPACES
    yield replace(product, namespace=namespace)
    product.cluster.kubectl(
        *("delete", "latencyprobes", "--all", f"--namespace={namespace}", "--timeout=100s")
    )


@pytest.fixture
def static_pod(system: Product, product: Product) -> Iterator[StaticPod]:
    """A server, which runs already, with clients of another namespace: counted and endless ones."""
    clients = product.namespace
    pod = StaticPod(system.cluster, system.namespace, app=f"static-{clients}")
    pod.write()
    try:
        product.cluster.apply(
            client("client", clients, "--count", str(REQUESTS)), client("endless", clients)
        )
        for name in ("client", "endless"):
            product.cluster.wait_for_pods(clients, f"app={name}", count=1)
        yield pod
    finally:
        pod.remove()
        pod.wait_until_gone()


def set_servers(product: Product, client: str, addresses: Iterable[str]) -> None:
    """Give the client these servers, in place of those before."""
    command = [*manifests.WRITE_HOSTS, HOSTS, *addresses]
    product.cluster.kubectl("exec", client, f"--namespace={product.namespace}", "--", *command)


def received(status: dict[str, Any], name: str, *, ended: bool) -> int:
    """The requests to the pod of this name that runs, or to those that have ended."""
    return sum(
        stage(row, "rx.total").get("count", 0)
        for row in status.get("pods", [])
        if row["name"] == name and row.get("ended", False) is ended
    )


def send_requests(product: Product, pods: list[dict[str, Any]]) -> dict[str, Any]:
    """Have the client send REQUESTS to each pod; returns its own account of it, by pod name."""
    addresses = {pod["status"]["podIP"]: pod["metadata"]["name"] for pod in pods}
    set_servers(product, "client", addresses)
    account: dict[str, Any] = {}

    def unmet() -> str | None:
        report = product.cluster.last_report(product.namespace, "client")
        for address, name in addresses.items():
            if address in report.get("servers", {}):
                account[name] = report["servers"][address]
        done = all(account.get(n, {}).get("responses", 0) >= REQUESTS for n in addresses.values())
        return None if done else f"the client reported {report}"

    wait_until("the client's requests to be answered", unmet, seconds=60)
    return account


def test_a_probe_is_applied_attached_measured_and_read(
    product: Product, servers: list[dict[str, Any]]
) -> None:
    before = our_programs(product.agent)
    product.apply_sample(overhead={"maxCPUPercent": 0})
    began = time.monotonic()
    product.wait_for_status("the probe to be ready", is_ready)
    attached_seconds = time.monotonic() - began
    account = send_requests(product, servers)
    sent = dict.fromkeys(account, REQUESTS)
    assert {name: of["requests"] for name, of in account.items()} == sent

    finished = time.monotonic()
    status = product.wait_for_status(
        "reports of every request",
        lambda status: counts(status, "rx.total") == sent and all_sent(status, "tx.total", sent),
        seconds=10 * INTERVAL_SECONDS,
    )
    report_seconds = time.monotonic() - finished
    print(f"attached after {attached_seconds:.1f} s, reported {report_seconds:.1f} s after the end")
    print(yaml.safe_dump(status, sort_keys=False))

    assert status["phase"] == "Running"
    assert status["targets"] == {"pods": 2, "containers": 2, "nodes": 1, "readyNodes": 1}
    for name in ("rx.softirq", "rx.host", "rx.stack", "rx.socket"):
        assert counts(status, name) == sent, name
    for name in ("tx.stack", "tx.host", "tx.qdisc", "tx.total"):
        assert all_sent(status, name, sent), name
    # A request acknowledges the answer before it; the last ACK may come after the report.
    assert min(counts(status, "tcp.rtt").values()) >= REQUESTS - 1
    connects = {name: of["connects"] for name, of in account.items()}
    assert counts(status, "tcp.handshake") == connects
    for pod in status["pods"]:
        assert stage(pod, "rx.total")["lost"] == stage(pod, "rx.total")["unmatched"] == 0
        assert pod["verdict"]["bottleneck"] != "InsufficientData"

    columns = product.cluster.kubectl(
        "get", "latencyprobe", "checkout", f"--namespace={product.namespace}"
    )
    assert columns.split("\n")[0].split() == [
        *("NAME", "PODS", "P50", "P99", "BOTTLENECK", "OBJECTIVESMET"),
        *("READY", "AGE"),
    ]
    assert columns.split("\n")[1].split()[:2] == ["checkout", "2"]

    product.cluster.kubectl(
        *("delete", "latencyprobe", "checkout", f"--namespace={product.namespace}"),
        "--timeout=15s",
    )
    wait_until_nothing_is_attached(product.agent, before)


def test_probe_follows_pods_agent_and_operator(
    product: Product, servers: list[dict[str, Any]]
) -> None:
    product.apply_sample(overhead={"maxCPUPercent": 0})
    product.wait_for_status("the probe to be ready", is_ready)
    for replicas in (3, 1):
        product.cluster.kubectl(
            *("scale", "deployment/checkout", f"--replicas={replicas}"),
            f"--namespace={product.namespace}",
        )
        product.wait_for_status(
            f"{replicas} pods to be targets",
            lambda status, replicas=replicas: (  # type: ignore[misc]
                status["targets"]["pods"] == replicas and is_ready(status)
            ),
        )
    (left,) = product.cluster.wait_for_pods(product.namespace, "app=checkout", count=1)
    name = left["metadata"]["name"]

    product.agent.stop(signal.SIGKILL)
    product.wait_for_status("the agent's absence to be told", lambda status: not is_ready(status))
    product.agent.start()
    product.wait_for_status("the agent's return", is_ready)

    product.operator.stop()
    applied = product.states_applied()
    product.operator.start()
    # What an agent reports of an older state is not counted.
    wait_until(
        "the state of the new operator",
        lambda: None if product.states_applied() > applied else product.logs(),
        seconds=180,
    )
    send_requests(product, [left])
    product.wait_for_status(
        "reports after the operator's restart",
        lambda status: counts(status, "rx.total").get(name, 0) == REQUESTS,
    )


def test_two_probes_on_one_pod_cost_one_measurement(
    product: Product, servers: list[dict[str, Any]]
) -> None:
    product.apply_sample(overhead={"maxCPUPercent": 0})
    product.wait_for_status("the probe to be ready", is_ready)
    one = our_programs(product.agent)
    product.apply_sample("second", modules=["rx"], overhead={"maxCPUPercent": 0})
    wait_until(
        "the second probe to be ready",
        lambda: None if is_ready(product.status("second")) else product.logs(),
        seconds=180,
    )
    assert our_programs(product.agent) == one
    account = send_requests(product, servers)
    sent = dict.fromkeys(account, REQUESTS)
    product.wait_for_status("the first", lambda status: counts(status, "rx.total") == sent)
    wait_until(
        "the second",
        lambda: None if counts(product.status("second"), "rx.total") == sent else product.logs(),
        seconds=180,
    )
    stages = {s["name"] for pod in product.status("second")["pods"] for s in pod["stages"]}
    assert {name.split(".")[0] for name in stages} == {"rx"}


def test_deletion_detaches_although_the_agent_was_away(
    product: Product, servers: list[dict[str, Any]]
) -> None:
    before = our_programs(product.agent)
    product.apply_sample(overhead={"maxCPUPercent": 0})
    product.wait_for_status("the probe to be ready", is_ready)
    assert attached_programs(product.agent)
    product.agent.stop()
    wait_until_nothing_is_attached(product.agent, before)
    product.cluster.kubectl(
        *("delete", "latencyprobe", "checkout", f"--namespace={product.namespace}"),
        "--timeout=20s",
    )
    product.agent.start()


# In place, the kubelet tries to start the new pod while the old one ends, and again ten seconds
# later at the earliest (allowPodStart(), pkg/kubelet/pod_workers.go).
@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_a_static_pod_is_followed_through_a_restart_another_mirror_and_another_file(
    product: Product, system: Product, static_pod: StaticPod, in_place: bool
) -> None:
    first = static_pod.wait_for_mirror("its mirror", lambda _: True)
    name = first["metadata"]["name"]
    assert name == f"{static_pod.app}-{product.cluster.node_name}"
    assert hash_of(first) != uid_of(first)
    system.apply_sample(
        selector={"matchLabels": {"app": static_pod.app}},
        window="1800s",  # longer than all waits of this test
        overhead={"maxCPUPercent": 0},
    )
    system.wait_for_status("the probe to be ready", is_ready)
    send_requests(product, [first])
    status = system.wait_for_status(
        "reports of every request", lambda status: counts(status, "rx.total") == {name: REQUESTS}
    )
    (row,) = status["pods"]
    assert (row["node"], row["containers"]) == (product.cluster.node_name, ["server"])

    def has_more_than(before: int) -> Callable[[dict[str, Any]], bool]:
        return lambda status: (
            received(status, name, ended=False) > before
            and not received(status, name, ended=True)
            and is_ready(status)
        )

    static_pod.kill(first)
    again = static_pod.wait_for_mirror("another container", lambda now: restarts(now) == 1)
    assert uid_of(again) == uid_of(first)
    set_servers(product, "endless", [again["status"]["podIP"]])
    system.wait_for_status("reports of the other container", has_more_than(REQUESTS))

    static_pod.delete(again)
    other = static_pod.wait_for_mirror("another mirror", lambda now: uid_of(now) != uid_of(again))
    assert hash_of(other) == hash_of(first)
    before = received(system.status(), name, ended=False)
    system.wait_for_status("reports that have another mirror's name", has_more_than(before))

    if not in_place:
        static_pod.remove()
        static_pod.wait_until_gone()
    static_pod.write("--delay-ms", "1")
    changed = static_pod.wait_for_mirror(
        "the mirror of another file", lambda now: hash_of(now) != hash_of(first)
    )
    set_servers(product, "endless", [changed["status"]["podIP"]])
    system.wait_for_status(
        "reports of the pod before and of the one now",
        lambda status: (
            min(received(status, name, ended=ended) for ended in (False, True)) > 0
            and status["targets"] == {"pods": 1, "containers": 1, "nodes": 1, "readyNodes": 1}
            and is_ready(status)
        ),
    )
