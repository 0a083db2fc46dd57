"""Another node, and a tunnel that leads from it to the host's bridge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.live.pods import Namespace, Pod, made_pod, namespace, run

NIC_ADDRESS, FAR_ADDRESS = "192.0.2.1", "192.0.2.2"
VXLAN_PORT = 4789


@contextmanager
def vxlan(host: Namespace) -> Iterator[Pod]:
    """What is at the far end of a VXLAN: in the pods' network, behind a device of the host's."""
    with ExitStack() as stack:
        far = stack.enter_context(namespace("far"))
        run(
            *("ip", "-n", host.name, "link", "add", "uplink", "type", "veth"),
            *("peer", "name", "uplink", "netns", far.name),
        )
        for node, address in ((host, NIC_ADDRESS), (far, FAR_ADDRESS)):
            node.ip("link", "set", "uplink", "up")
            node.ip("address", "add", f"{address}/24", "dev", "uplink")
        host.ip("route", "add", "default", "via", FAR_ADDRESS)
        for node, other in ((host, FAR_ADDRESS), (far, NIC_ADDRESS)):
            node.ip(
                *("link", "add", "vxlan0", "type", "vxlan", "id", "7"),
                *("dstport", str(VXLAN_PORT), "remote", other, "dev", "uplink"),
            )
            node.ip("link", "set", "vxlan0", "up")
        host.ip("link", "set", "vxlan0", "master", "br0")
        yield made_pod(stack, far, 199, device="vxlan0")
