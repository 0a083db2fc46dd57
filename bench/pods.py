"""Pods of our own: network namespaces behind a bridge, which is in the namespace of a node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.network import Namespace, ip, namespaces

# For benchmarks of network devices, RFC 2544; it is used inside our namespaces alone.
CLIENT_ADDRESS = "198.18.0.2"
SERVER_ADDRESS = "198.18.0.3"
_IDLE_ADDRESS = "198.18.0.4"


@dataclass(frozen=True, slots=True)
class Node:
    """A node with three pods. Its own namespace has the bridge, and no program."""

    host: Namespace
    client: Namespace
    server: Namespace
    idle: Namespace

    @property
    def busy(self) -> frozenset[int]:
        """The inode numbers of the namespaces whose programs talk to each other."""
        return frozenset({self.client.inode, self.server.inode})


@contextmanager
def node() -> Iterator[Node]:
    """Make a node with its pods for the time of the `with` block."""
    with namespaces("host", "clientpod", "serverpod", "idlepod") as made:
        found = Node(*made)
        _join(found)
        yield found


def _join(found: Node) -> None:
    host = found.host.name
    ip("-n", host, "link", "add", "bridge0", "type", "bridge")
    ip("-n", host, "link", "set", "bridge0", "up")
    pods = (
        (found.client, CLIENT_ADDRESS),
        (found.server, SERVER_ADDRESS),
        (found.idle, _IDLE_ADDRESS),
    )
    for number, (pod, address) in enumerate(pods):
        outer, inner = f"veth{number}", ("name", "eth0", "netns", pod.name)
        ip("-n", host, "link", "add", outer, "type", "veth", "peer", *inner)
        ip("-n", host, "link", "set", outer, "master", "bridge0", "up")
        # No IPv6 housekeeping between our packets.
        ip("-n", pod.name, "link", "set", "eth0", "addrgenmode", "none")
        ip("-n", pod.name, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", pod.name, "link", "set", "eth0", "up")
