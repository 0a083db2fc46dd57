"""The network on this machine's side: a bridge that all nodes of a cluster are plugged into.

this machine             lpc-NAME, a bridge (host_ip)
                          |                  |
its ports                lpc-NAME-1         lpc-NAME-2
                          | veth             | veth
the nodes' namespaces    eth0 (node's ip)   eth0
"""

import json
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Network

from .errors import ClusterError
from .layout import Layout

# A broader route, such as a VPN's to 10.0.0.0/8, loses no more than the cluster's own addresses.
NEAR_PREFIX = 16


class AddressInUseError(ClusterError):
    """A route of this machine leads to addresses that the cluster would use."""

    def __init__(self, network: IPv4Network, route: str) -> None:
        super().__init__(f"{network} is for the test cluster, but this machine routes {route}")
        self.network = network
        self.route = route


class Network:
    """The bridge of one cluster."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def start(self) -> None:
        """Make the bridge; raises AddressInUseError."""
        self._require_free_addresses()
        layout = self._layout
        ip(
            f"link add {layout.bridge} type bridge",
            f"address add {layout.host_ip}/{layout.link_network.prefixlen} dev {layout.bridge}",
            f"link set {layout.bridge} up",
        )

    def remove(self) -> None:
        """Remove the bridge and its ports; by itself the kernel removes the nodes' ends later."""
        ports = [node.host_interface for node in self._layout.nodes]
        for device in (*ports, self._layout.bridge):
            subprocess.run(
                ["ip", "link", "delete", device],
                capture_output=True,
                check=False,  # it may be gone
            )

    def _require_free_addresses(self) -> None:
        listing = subprocess.run(
            ["ip", "-json", "-4", "route"], capture_output=True, text=True, check=True
        )
        for route in json.loads(listing.stdout):
            network = IPv4Network(route["dst"].replace("default", "0.0.0.0/0"))
            if network.prefixlen >= NEAR_PREFIX and network.overlaps(self._layout.subnets):
                raise AddressInUseError(self._layout.subnets, route["dst"])


def ip(*commands: str, inside: Sequence[str] = ()) -> None:
    """Run commands of iproute2. `inside`: the start of a command that enters a namespace."""
    subprocess.run([*inside, "ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)
