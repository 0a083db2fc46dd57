"""Identities get the names of pods that a reader may see. No agent can make a name up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import MISSING_ANSWERS, Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.report import TargetReport, report_on
from latencyprobe.domain.stages import Module
from latencyprobe.domain.verdict import Verdict
from latencyprobe_operator.kube.pods import PodWatches
from latencyprobe_operator.kube.selector import read_selector
from latencyprobe_operator.probes.naming import Naming
from tests.unit.operator_.waiting import until
from tools.fakes.api import FakeApi
from tools.fakes.samples import pod_body

HERE = "a pod of another namespace on this node"
ELSEWHERE = "a pod of another namespace in this cluster"
CONTAINER = "0123456789abcdef" * 4
DATABASE, CART = "10.0.0.7", "10.0.0.8"


@pytest.fixture
async def pods() -> AsyncIterator[PodWatches]:
    """Pods of two namespaces on two nodes, and one in the network of its node."""
    api = FakeApi()
    server = pod_body("db-0", ips=(DATABASE,))
    server["status"]["containerStatuses"][0]["containerID"] = f"containerd://{CONTAINER}"
    api.set(server)
    api.set(pod_body("cart-0", namespace="cart", ips=(CART,)))
    api.set(pod_body("host", host_network=True, ips=("192.0.2.1",)))
    async with api.serve() as cluster:
        watches = PodWatches(cluster, linger_s=0)
        found = watches.subscribe("shop", read_selector({}), lambda _: None)
        await until(lambda: found.listed, what=lambda: found)
        yield watches
        await watches.close()


def waiting_for(*addresses: str) -> TargetReport:
    """The report on a pod with requests to hung peers, the worst first."""
    peers = tuple(
        Peer(Endpoint(ip_address(text), 5432), MISSING_ANSWERS, 9 - index, 6 * 10**9, 50 * 10**9)
        for index, text in enumerate(addresses)
    )
    pending = {MISSING_ANSWERS: Pending(15, 15, oldest_ns=6 * 10**9, waiting_ns=80 * 10**9)}
    return report_on(Measurement(pending=pending, peers=peers), Module)


def names(report: TargetReport) -> list[str]:
    return [peer.name for peer in report.peers]


async def test_a_peer_of_the_own_namespace_has_the_name_of_its_pod(pods: PodWatches) -> None:
    report = waiting_for(DATABASE)
    assert report.verdict.bottleneck is Bottleneck.PEER
    assert report.verdict.culprit == "10.0.0.7:5432"

    found = Naming(pods, "shop", sees_others=False).named(report, "node-a")

    assert names(found) == ["pod shop/db-0"]
    assert found.verdict.culprit == "pod shop/db-0 (10.0.0.7:5432)"
    assert "the longest for pod shop/db-0 (10.0.0.7:5432)" in found.verdict.evidence
    assert "the longest for 10.0.0.7:5432" not in found.verdict.evidence


@pytest.mark.parametrize(
    ("node", "sees_others", "name"),
    [
        ("node-a", False, HERE),
        ("node-b", False, ELSEWHERE),
        ("node-a", True, "pod cart/cart-0"),
        ("node-b", True, "pod cart/cart-0"),
    ],
)
async def test_a_peer_of_another_namespace_has_a_name_only_with_figures_of_nodes(
    pods: PodWatches, node: str, name: str, *, sees_others: bool
) -> None:
    found = Naming(pods, "shop", sees_others=sees_others).named(waiting_for(CART), node)

    assert names(found) == [name]
    assert found.verdict.culprit == f"{name} (10.0.0.8:5432)"
    assert sees_others or "cart" not in str(found)


@pytest.mark.parametrize("address", ["192.0.2.1", "198.51.100.9"])
async def test_an_address_of_a_node_or_of_no_pod_stays_as_it_is(
    pods: PodWatches, address: str
) -> None:
    report = waiting_for(address)

    assert Naming(pods, "shop", sees_others=True).named(report, "node-a") == report


def behind(*cgroups: Cgroup, culprit: str = "cgroup 4711") -> TargetReport:
    """The report on a pod that waits for these cgroups, as its agent has made it."""
    counters = {f"waitedForCgroup.{each.id}": 10**9 for each in cgroups}
    verdict = Verdict(
        Bottleneck.NOISY_NEIGHBOUR, 90, (f"the longest for {culprit}", "x"), "y", culprit=culprit
    )
    return TargetReport((), counters, {}, verdict, cgroups=cgroups)


@pytest.mark.parametrize(
    ("namespace", "sees_others", "node", "cgroup", "name"),
    [
        ("shop", False, "node-a", Cgroup(4711, pod_uid="uid-db-0"), "pod shop/db-0"),
        (
            "shop",
            False,
            "node-a",
            Cgroup(4711, pod_uid="uid-db-0", container_id=CONTAINER),
            "pod shop/db-0, container server",
        ),
        (
            "shop",
            False,
            "node-a",
            Cgroup(4711, pod_uid="uid-db-0", container_id="f" * 64),
            "pod shop/db-0",
        ),
        ("cart", False, "node-a", Cgroup(4711, pod_uid="uid-db-0", container_id=CONTAINER), HERE),
        ("cart", True, "node-a", Cgroup(4711, pod_uid="uid-db-0"), "pod shop/db-0"),
        # an agent of another node
        ("shop", True, "node-b", Cgroup(4711, pod_uid="uid-db-0"), ""),
        ("shop", True, "node-a", Cgroup(4711, pod_uid="uid-nobody"), ""),
        (
            "shop",
            True,
            "node-a",
            Cgroup(4711, path="/system.slice/ssh.service"),
            "cgroup /system.slice/ssh.service",
        ),
        ("shop", False, "node-a", Cgroup(4711, path="/system.slice/ssh.service"), ""),
        # no path
        ("shop", True, "node-a", Cgroup(4711, path="pod kube-system/etcd"), ""),
        ("shop", True, "node-a", Cgroup(4711, name="pod kube-system/etcd"), ""),
    ],
)
async def test_a_cgroup_is_named_by_a_pod_of_its_own_node(
    pods: PodWatches, namespace: str, node: str, cgroup: Cgroup, name: str, *, sees_others: bool
) -> None:
    report = behind(cgroup)

    found = Naming(pods, namespace, sees_others=sees_others).named(report, node)

    assert [each.name for each in found.cgroups] == [name]
    assert found.verdict.culprit == (name or "cgroup 4711")
    assert found.verdict.evidence == (f"the longest for {name or 'cgroup 4711'}", "x")
    assert found.counters == report.counters


@pytest.mark.parametrize(
    "culprit", ["pod kube-system/etcd", "cgroup 12", "10.0.0.7:5432", "cgroup 4711 of pod shop/a"]
)
async def test_a_text_of_an_agent_is_no_culprit(pods: PodWatches, culprit: str) -> None:
    report = behind(Cgroup(4711), culprit=culprit)

    found = Naming(pods, "shop", sees_others=True).named(report, "node-a")

    assert found.verdict == replace(report.verdict, culprit="", evidence=("x",))


async def test_a_culprit_without_a_name_stays_and_another_one_cannot_stand_beside_it(
    pods: PodWatches,
) -> None:
    report = behind(Cgroup(4711, pod_uid="uid-db-0"))
    forged = (*report.verdict.evidence, "the longest for pod kube-system/etcd")
    report = replace(report, verdict=replace(report.verdict, evidence=forged))

    found = Naming(pods, "shop", sees_others=False).named(report, "node-a")

    assert found.verdict.evidence == ("the longest for pod shop/db-0", "x")
