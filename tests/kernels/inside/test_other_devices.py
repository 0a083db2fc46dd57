"""Kinds of devices that only guests have modules for: ipvlan, IPIP and Geneve.

Every segment is counted once, in the right stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live import pods
from tests.live.measuring import (
    CLIENT,
    account_for,
    assert_all_left,
    assert_parts_add_up,
    watch_on_host,
)
from tests.live.pods import Namespace, Pod, cgroup, made_pod, namespace, run
from tests.live.sockets import connection, exchange, sent_again
from tests.live.tunnels import FAR_ADDRESS, NIC_ADDRESS

Start = Callable[..., KernelEngine]
SetUp = tuple[Namespace, Pod, Pod]
MANY = 100
BEYOND = "198.51.100.200"


def load(module: str) -> None:
    """The guest ends with its tests, so it stays; a tunnel's brings no device of its own."""
    run("sysctl", "-qw", "net.core.fb_tunnels_only_for_init_net=1")
    run("modprobe", module)


@contextmanager
def other_node(host: Namespace) -> Iterator[Namespace]:
    """A namespace that is reached by the host's device `uplink`."""
    with namespace("far") as far:
        run(
            *("ip", "-n", host.name, "link", "add", "uplink", "type", "veth"),
            *("peer", "name", "uplink", "netns", far.name),
        )
        for node, address in ((host, NIC_ADDRESS), (far, FAR_ADDRESS)):
            node.ip("link", "set", "uplink", "up")
            node.ip("address", "add", f"{address}/24", "dev", "uplink")
        yield far


def add_tunnel(stack: ExitStack, host: Namespace, far: Namespace, *kind: str) -> None:
    """A device `tunnel` at both ends; the guest's own would stay after the test."""
    for node, here, there in ((host, NIC_ADDRESS, FAR_ADDRESS), (far, FAR_ADDRESS, NIC_ADDRESS)):
        local = ("local", here) if kind[0] == "ipip" else ()
        node.ip("link", "add", "tunnel", "type", *kind, *local, "remote", there)
        node.ip("link", "set", "tunnel", "up")
    stack.callback(host.ip, "link", "delete", "tunnel")


@contextmanager
def behind_ipip() -> Iterator[SetUp]:
    """A pod of a routed host, and one at the other end of an IPIP tunnel, as Calico has them."""
    load("ipip")
    with ExitStack() as stack:
        host, (pod,) = stack.enter_context(pods.pods_on_routes(1))
        far = stack.enter_context(other_node(host))
        add_tunnel(stack, host, far, "ipip")
        far.ip("address", "add", f"{BEYOND}/24", "dev", "tunnel")
        host.ip("route", "add", f"{BEYOND}/32", "dev", "tunnel")
        directory = stack.enter_context(cgroup(far.name))
        yield host, pod, Pod(far, directory, BEYOND, "")


@contextmanager
def behind_geneve() -> Iterator[SetUp]:
    """A pod on a host's bridge, and one at the other end of a Geneve tunnel, as OVN has them."""
    load("geneve")
    with ExitStack() as stack:
        host, (pod,) = stack.enter_context(pods.pods_on_bridge(1))
        far = stack.enter_context(other_node(host))
        add_tunnel(stack, host, far, "geneve", "id", "7")
        host.ip("link", "set", "tunnel", "master", "br0")
        yield host, pod, made_pod(stack, far, 199, device="tunnel")


@contextmanager
def behind_ipvlan() -> Iterator[SetUp]:
    """A pod with an ipvlan device on one of the host's, and a pod behind that."""
    load("ipvlan")
    with ExitStack() as stack:
        host = stack.enter_context(pods.host_namespace())
        inside, beyond = (stack.enter_context(namespace(role)) for role in ("pod", "beyond"))
        run(
            *("ip", "-n", host.name, "link", "add", "parent", "type", "veth"),
            *("peer", "name", "eth0", "netns", beyond.name),
        )
        host.ip("link", "set", "parent", "up")
        host.ip("link", "add", "link", "parent", "name", "child", "type", "ipvlan", "mode", "l2")
        host.ip("link", "set", "child", "netns", inside.name, "name", "eth0")
        pod, other = (made_pod(stack, each, index) for index, each in enumerate((inside, beyond)))
        yield host, pod, other


async def exchanged(start: Start, set_up: SetUp) -> tuple[Measurement, int]:
    """What the pod measures of MANY requests to it, and the segments that it sent once more."""
    host, pod, other = set_up
    engine = await watch_on_host(start, host, pod)
    with connection(other.namespace, pod.namespace, pod.address) as both:
        exchange(both, MANY)
    return engine.read()[CLIENT], sent_again(pod.namespace)


@pytest.mark.parametrize("behind", [behind_ipip, behind_geneve], ids=["ipip", "geneve"])
async def test_segments_of_a_tunnel_of_another_kind_are_followed_in_both_directions(
    start_engine: Start, behind: Callable[[], AbstractContextManager[SetUp]]
) -> None:
    with behind() as set_up:
        measured, again = await exchanged(start_engine, set_up)
    for stage in ("rx.host", "rx.total"):
        assert account_for(measured, stage) == (MANY, 0), stage
    for stage in ("tx.host", "tx.total"):
        assert_all_left(measured, stage, MANY, again)
    assert_parts_add_up(measured, "rx", "tx")


async def test_segments_of_an_ipvlan_pod_are_followed_to_the_device_under_it(
    start_engine: Start,
) -> None:
    with behind_ipvlan() as set_up:
        measured, again = await exchanged(start_engine, set_up)
    assert account_for(measured, "rx.total") == (MANY, 0)
    assert "rx.host" not in measured.stages
    for stage in ("tx.host", "tx.total"):
        assert_all_left(measured, stage, MANY, again)
    assert_parts_add_up(measured, "rx", "tx")
