"""What one cluster calls its things: paths, names and addresses.

Everything that a cluster leaves on the machine while it runs is named here after the cluster, so
that it can be found again by name, and so that two clusters do not meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from tools.cache import cache_directory

NODE_INTERFACE = "eth0"
API_PORT = 443  # the port of the Service `kubernetes` too: see node.py


@dataclass(frozen=True)
class Layout:
    """One cluster's paths, names and addresses."""

    name: str
    subnets: IPv4Network
    """A /22 of private addresses: one /24 for the nodes, one for Services, one for each node's pods
    (so there are two nodes at most)."""

    @property
    def state_directory(self) -> Path:
        """Exists exactly while there is something to stop."""
        return cache_directory() / f"cluster-{self.name}"

    @property
    def lock_file(self) -> Path:
        return cache_directory() / f"cluster-{self.name}.lock"

    @property
    def logs_directory(self) -> Path:
        """Kept after a stop or a failed start, until the next start."""
        return cache_directory() / f"cluster-{self.name}-logs"

    @property
    def pids_directory(self) -> Path:
        return self.state_directory / "pids"

    @property
    def certificates_directory(self) -> Path:
        return self.state_directory / "certificates"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.state_directory / "admin.kubeconfig"

    @property
    def cgroup(self) -> str:
        """In every hierarchy, the cgroup above all that the cluster runs."""
        return f"latencyprobe-{self.name}"

    @property
    def bridge(self) -> str:
        """The machine's device that joins the nodes. The kernel allows 15 characters."""
        return f"lpc-{self.name}"

    @property
    def _networks(self) -> list[IPv4Network]:
        return list(self.subnets.subnets(new_prefix=24))

    @property
    def link_network(self) -> IPv4Network:
        return self._networks[0]

    @property
    def service_network(self) -> IPv4Network:
        return self._networks[1]

    @property
    def pod_networks(self) -> list[IPv4Network]:
        """Of each node that there may be."""
        return self._networks[2:]

    @property
    def nodes(self) -> list[NodeLayout]:
        """All that there may be, of which the first runs the control plane too."""
        return [NodeLayout(self, place + 1) for place in range(len(self.pod_networks))]

    @property
    def host_ip(self) -> IPv4Address:
        return self.link_network[1]

    @property
    def api_service_ip(self) -> IPv4Address:
        """The API server gives the Service `kubernetes` the first address of the range."""
        return self.service_network[1]

    @property
    def api_url(self) -> str:
        return f"https://{self.nodes[0].ip}:{API_PORT}"


@dataclass(frozen=True)
class NodeLayout:
    """One node's paths, names and addresses."""

    cluster: Layout
    number: int
    """From 1."""

    @property
    def name(self) -> str:
        return f"latencyprobe-{self.cluster.name}-{self.number}"

    @property
    def state_directory(self) -> Path:
        return self.cluster.state_directory / f"node-{self.number}"

    @property
    def static_pods_directory(self) -> Path:
        """The kubelet runs the pods whose manifests are here: a file is one pod."""
        return self.state_directory / "static-pods"

    @property
    def ip(self) -> IPv4Address:
        return self.cluster.link_network[1 + self.number]

    @property
    def pod_network(self) -> IPv4Network:
        return self.cluster.pod_networks[self.number - 1]

    @property
    def host_interface(self) -> str:
        """The machine's end of the node's link, a port of the bridge."""
        return f"{self.cluster.bridge}-{self.number}"

    @property
    def cgroup(self) -> str:
        """In every hierarchy, what the node sees as the top."""
        return f"{self.cluster.cgroup}/node-{self.number}"

    @property
    def components_cgroup(self) -> str:
        """Of the node's components and of all they start, containers aside."""
        return f"{self.cgroup}/components"

    @property
    def kubepods_cgroup(self) -> str:
        """The cgroup above the node's containers. On the node it is /kubepods, as on most nodes."""
        return f"{self.cgroup}/kubepods"

    def process(self, component: str) -> str:
        """What the node's own instance of a component is called, by its PID file and its log."""
        return f"{component}-{self.number}"


FOR_TESTS = Layout("test", IPv4Network("10.253.4.0/22"))
FOR_PEOPLE = Layout("dev", IPv4Network("10.253.0.0/22"))
