"""Kinds of devices that only guests have: ipvlan, IPIP, Geneve, WireGuard, Open vSwitch, netkit.

Every segment is counted once, in the right stages.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from latencyprobe.domain.measurement import Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.kernels.inside.openvswitch import switch
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


ENDS = ((NIC_ADDRESS, FAR_ADDRESS), (FAR_ADDRESS, NIC_ADDRESS))
AddTunnel = Callable[[ExitStack, Namespace, Namespace], None]


def add_tunnel(stack: ExitStack, host: Namespace, far: Namespace, *kind: str) -> None:
    """A device `tunnel` at both ends; the guest's own would stay after the test."""
    for node, (here, there) in zip((host, far), ENDS, strict=True):
        local = ("local", here) if kind[0] == "ipip" else ()
        remote = () if kind[0] == "wireguard" else ("remote", there)
        node.ip("link", "add", "tunnel", "type", *kind, *local, *remote)
        node.ip("link", "set", "tunnel", "up")
    stack.callback(host.ip, "link", "delete", "tunnel")


@contextmanager
def through_tunnel(add: AddTunnel) -> Iterator[SetUp]:
    """A pod of a routed host, and one at the other end of a tunnel."""
    with ExitStack() as stack:
        host, (pod,) = stack.enter_context(pods.pods_on_routes(1))
        far = stack.enter_context(other_node(host))
        add(stack, host, far)
        far.ip("address", "add", f"{BEYOND}/24", "dev", "tunnel")
        host.ip("route", "add", f"{BEYOND}/32", "dev", "tunnel")
        directory = stack.enter_context(cgroup(far.name))
        yield host, pod, Pod(far, directory, BEYOND, "")


@contextmanager
def behind_ipip() -> Iterator[SetUp]:
    """As Calico has them."""
    load("ipip")
    with through_tunnel(lambda *nodes: add_tunnel(*nodes, "ipip")) as set_up:
        yield set_up


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


class _Key:
    """A key of WireGuard, as `wg` reads it."""

    def __init__(self) -> None:
        private = X25519PrivateKey.generate()
        self.private = base64.b64encode(private.private_bytes_raw()).decode()
        self.public = base64.b64encode(private.public_key().public_bytes_raw()).decode()


def add_wireguard(stack: ExitStack, host: Namespace, far: Namespace) -> None:
    """A device `tunnel` at both ends, whose packets each end encrypts for the other."""
    add_tunnel(stack, host, far, "wireguard")
    nodes, keys = (host, far), (_Key(), _Key())
    for node, own, other, (_, there) in zip(nodes, keys, keys[::-1], ENDS, strict=True):
        with tempfile.NamedTemporaryFile("w", suffix=".key") as private:
            private.write(own.private)
            private.flush()
            node.execute(
                *("wg", "set", "tunnel", "private-key", private.name, "listen-port", "51820"),
                *("peer", other.public, "allowed-ips", "0.0.0.0/0"),
                *("endpoint", f"{there}:51820"),
            )


@contextmanager
def behind_wireguard() -> Iterator[SetUp]:
    """As Cilium has them."""
    load("wireguard")
    with through_tunnel(add_wireguard) as set_up:
        _, pod, other = set_up
        with connection(other.namespace, pod.namespace, pod.address):
            pass  # the handshake of WireGuard
        yield set_up


@contextmanager
def on_openvswitch() -> Iterator[SetUp]:
    """Two pods whose devices are ports of a switch, which has a flow for each pair of ports."""
    load("openvswitch")
    with ExitStack() as stack:
        host = stack.enter_context(pods.host_namespace())
        there = [stack.enter_context(namespace(f"pod{index}")) for index in range(2)]
        made = stack.enter_context(switch("switch"))
        for index, inside in enumerate(there):
            host.ip_in_turn(
                f"link add veth{index} type veth peer name eth0 netns {inside.name}",
                f"link set veth{index} up",
            )
            made.add_port(index + 1, f"veth{index}")
        made.connect(1, 2)
        made.connect(2, 1)
        pod, other_pod = (made_pod(stack, inside, index) for index, inside in enumerate(there))
        yield host, pod, other_pod


def has_netkit() -> bool:
    """Since 6.7."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor.split("-")[0])) >= (6, 7)


@contextmanager
def behind_netkit() -> Iterator[SetUp]:
    """Two pods of a routed host, each behind a netkit pair, as Cilium has them."""
    with ExitStack() as stack:
        host = stack.enter_context(pods.host_namespace())
        there = [stack.enter_context(namespace(f"pod{index}")) for index in range(2)]
        host.execute("sysctl", "-qw", "net.ipv4.ip_forward=1")
        made = []
        for index, inside in enumerate(there):
            known = netkits()
            host.ip("link", "add", "type", "netkit")  # iproute2 names the ends since 6.7
            here, peer = sorted(netkits() - known)
            host.ip_in_turn(
                f"link set {peer} netns {inside.name} name eth0",
                f"link set {here} up",
            )
            made.append(made_pod(stack, inside, index))
            host.ip("route", "add", f"{made[-1].address}/32", "dev", here)
        yield host, made[0], made[1]


def netkits() -> set[str]:
    """The guest's devices that the kernel named nk0, nk1 and so on; the guest is the host."""
    return {path.name for path in Path("/sys/class/net").glob("nk*")}


async def exchanged(start: Start, set_up: SetUp) -> tuple[Measurement, int]:
    """What the pod measures of MANY requests to it, and the segments that it sent once more."""
    host, pod, other = set_up
    engine = await watch_on_host(start, host, pod)
    with connection(other.namespace, pod.namespace, pod.address) as both:
        exchange(both, MANY)
    return engine.read()[CLIENT], sent_again(pod.namespace)


async def assert_followed_in_both_directions(start: Start, set_up: SetUp) -> None:
    measured, again = await exchanged(start, set_up)
    for stage in ("rx.host", "rx.total"):
        assert account_for(measured, stage) == (MANY, 0), stage
    for stage in ("tx.host", "tx.total"):
        assert_all_left(measured, stage, MANY, again)
    assert_parts_add_up(measured, "rx", "tx")


@pytest.mark.parametrize(
    "behind",
    [behind_ipip, behind_geneve, behind_wireguard],
    ids=["ipip", "geneve", "wireguard"],
)
async def test_segments_of_a_tunnel_of_another_kind_are_followed_in_both_directions(
    start_engine: Start, behind: Callable[[], AbstractContextManager[SetUp]]
) -> None:
    with behind() as set_up:
        await assert_followed_in_both_directions(start_engine, set_up)


async def test_segments_through_open_vswitch_are_followed_in_both_directions(
    start_engine: Start,
) -> None:
    with on_openvswitch() as set_up:
        await assert_followed_in_both_directions(start_engine, set_up)


async def test_segments_of_a_netkit_pod_are_followed_in_both_directions(
    start_engine: Start,
) -> None:
    if not has_netkit():
        with pytest.raises(RuntimeError, match="Unknown device type"), behind_netkit():
            pass
        return
    with behind_netkit() as set_up:
        await assert_followed_in_both_directions(start_engine, set_up)


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
