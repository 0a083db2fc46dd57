"""Pods are found by their addresses and by the UIDs in their cgroups, as long as they are meant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.kube.directory import PodIndex
from latencyprobe_operator.kube.pods import PodWatches
from latencyprobe_operator.kube.selector import read_selector
from latencyprobe_operator.model import Pod, packed_addresses, split_addresses
from tests.unit.operator_.waiting import until
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, pod, pod_body

STATIC = {"kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "0" * 32}


def annotated(name: str, namespace: str) -> Json:
    """A pod that claims to be a static one."""
    body = pod_body(name, namespace=namespace, host_network=True)
    body["metadata"]["annotations"] = STATIC
    return body


@pytest.fixture
def api() -> FakeApi:
    """An API server with some pods."""
    api = FakeApi()
    api.set(pod_body("a", ips=("10.0.0.7", "fd00::7")))
    api.set(pod_body("b", namespace="cart", node="node-b", ips=("fd00::8",)))
    api.set(pod_body("host", host_network=True, ips=("192.0.2.1",)))
    api.set(annotated("etcd", "kube-system"))
    api.set(annotated("forged", "shop"))
    return api


@pytest.fixture
async def pods(api: FakeApi) -> AsyncIterator[PodWatches]:
    """The pods of that server, as they are after its first list."""
    async with api.serve() as cluster:
        watches = PodWatches(cluster, linger_s=0)
        found = watches.subscribe("shop", read_selector({}), lambda _: None)
        await until(lambda: found.listed and api.watching, what=lambda: found)
        yield watches
        await watches.close()


def name_at(pods: PodWatches, address: str) -> str | None:
    """The name of the pod with this address."""
    found = pods.at(ip_address(address).packed)
    return f"{found.namespace}/{found.name}" if found else None


async def test_a_pod_of_any_namespace_is_found_by_each_of_its_addresses(pods: PodWatches) -> None:
    assert name_at(pods, "10.0.0.7") == name_at(pods, "fd00::7") == "shop/a"
    assert name_at(pods, "fd00::8") == "cart/b"
    assert name_at(pods, "10.0.0.8") is None


async def test_a_pod_in_the_network_of_its_node_has_no_address_of_its_own(pods: PodWatches) -> None:
    assert name_at(pods, "192.0.2.1") is None


async def test_an_address_moves_with_its_pods(api: FakeApi, pods: PodWatches) -> None:
    api.remove("uid-a")
    api.set(pod_body("c", ips=("10.0.0.7",)))
    await until(lambda: name_at(pods, "10.0.0.7") == "shop/c", what=lambda: pods)
    assert name_at(pods, "fd00::7") is None


async def test_an_address_of_two_pods_is_the_name_of_neither_until_one_has_ended(
    api: FakeApi, pods: PodWatches
) -> None:
    api.set(pod_body("c", ips=("10.0.0.7",)))
    await until(lambda: name_at(pods, "10.0.0.7") is None, what=lambda: pods)
    ended = pod_body("a", ips=("10.0.0.7", "fd00::7"))
    ended["status"]["phase"] = "Succeeded"
    api.set(ended)
    await until(lambda: name_at(pods, "10.0.0.7") == "shop/c", what=lambda: pods)


async def test_a_cgroup_is_that_of_a_pod_of_the_same_node_alone(pods: PodWatches) -> None:
    found = pods.of_cgroup("node-a", "uid-a")
    assert found
    assert found.name == "a"
    assert pods.of_cgroup("node-b", "uid-a") is None
    assert pods.of_cgroup("node-a", "uid-nobody") is None


async def test_a_static_pod_is_found_by_the_uid_of_its_kubelet(pods: PodWatches) -> None:
    found = pods.of_cgroup("node-a", "0" * 32)
    assert found
    assert found.name == "etcd"
    assert pods.of_cgroup("node-a", "uid-etcd") is None


async def test_a_static_pod_is_found_after_a_list_that_has_another_mirror_of_it(
    api: FakeApi, pods: PodWatches
) -> None:
    api.remove("uid-etcd", quietly=True)
    mirror = annotated("etcd", "kube-system")
    mirror["metadata"]["uid"] = "uid-again"
    api.set(mirror, quietly=True)
    api.expire()

    def found() -> str:
        pod = pods.of_cgroup("node-a", "0" * 32)
        return pod.uid if pod else ""

    await until(lambda: found() == "uid-again", what=found)


@pytest.mark.parametrize(
    ("texts", "packed"),
    [
        ([], b""),
        (["10.0.0.1"], b"\x0a\0\0\1"),
        (["fd00::1", "10.0.0.1"], b"\x0a\0\0\1\xfd" + b"\0" * 14 + b"\1"),
        (["10.0.0.1", "10.0.0.2"], b"\x0a\0\0\1"),
        (["here", "10.0.0.1"], b"\x0a\0\0\1"),
    ],
)
def test_addresses_are_packed_and_malformed_ones_left_out(texts: list[str], packed: bytes) -> None:
    assert packed_addresses(texts) == packed
    assert b"".join(split_addresses(packed)) == packed


ADDRESSES = ("10.0.0.1", "10.0.0.2", "fd00::1")
steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.one_of(st.none(), st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=2)),
    )
)


@given(steps)
def test_after_any_changes_the_index_has_what_its_pods_have(
    steps: list[tuple[str, list[str] | None]],
) -> None:
    index, known = PodIndex(), dict[str, Pod]()
    for name, ips in steps:
        before = known.pop(name, None)
        after = pod(name, ips=tuple(ips)) if ips else None
        index.update(before, after)
        if after:
            known[name] = after
        for address in (ip_address(text).packed for text in ADDRESSES):
            owners = [each for each in known.values() if address in split_addresses(each.addresses)]
            assert index.at(address) == (owners[0] if len(owners) == 1 else None)
