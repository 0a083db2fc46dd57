"""The paths, names and addresses of one cluster.

Everything that a cluster leaves on the machine while it runs is named here after the cluster. So it
can be found again by name, and two clusters do not meet.
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
        """The folder that exists exactly while there is something to stop."""
        return cache_directory() / f"cluster-{self.name}"

    @property
    def lock_file(self) -> Path:
        """The lock file of the process that uses the cluster."""
        return cache_directory() / f"cluster-{self.name}.lock"

    @property
    def logs_directory(self) -> Path:
        """The folder of logs, kept after a stop or a failed start until the next start."""
        return cache_directory() / f"cluster-{self.name}-logs"

    @property
    def pids_directory(self) -> Path:
        """The folder of PID files."""
        return self.state_directory / "pids"

    @property
    def certificates_directory(self) -> Path:
        """The folder of certificates."""
        return self.state_directory / "certificates"

    @property
    def admin_kubeconfig(self) -> Path:
        """The kubeconfig of a user who may do everything."""
        return self.state_directory / "admin.kubeconfig"

    @property
    def cgroup(self) -> str:
        """The cgroup above all that the cluster runs, in every hierarchy."""
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
        """The network of the nodes and this machine."""
        return self._networks[0]

    @property
    def service_network(self) -> IPv4Network:
        """The network of Services."""
        return self._networks[1]

    @property
    def pod_networks(self) -> list[IPv4Network]:
        """The network of pods of each node that there may be."""
        return self._networks[2:]

    @property
    def nodes(self) -> list[NodeLayout]:
        """All nodes that there may be, of which the first runs the control plane too."""
        return [NodeLayout(self, place + 1) for place in range(len(self.pod_networks))]

    @property
    def host_ip(self) -> IPv4Address:
        """The address of this machine."""
        return self.link_network[1]

    @property
    def api_service_ip(self) -> IPv4Address:
        """The address of the Service `kubernetes`: the API server takes the first of the range."""
        return self.service_network[1]

    @property
    def api_url(self) -> str:
        """The URL of the API server."""
        return f"https://{self.nodes[0].ip}:{API_PORT}"


@dataclass(frozen=True)
class NodeLayout:
    """One node's paths, names and addresses."""

    cluster: Layout
    number: int
    """From 1."""

    @property
    def name(self) -> str:
        """The node's name."""
        return f"latencyprobe-{self.cluster.name}-{self.number}"

    @property
    def state_directory(self) -> Path:
        """The folder of the node's files."""
        return self.cluster.state_directory / f"node-{self.number}"

    @property
    def static_pods_directory(self) -> Path:
        """The folder of the manifests of pods that the kubelet runs: a file is one pod."""
        return self.state_directory / "static-pods"

    @property
    def ip(self) -> IPv4Address:
        """The node's address."""
        return self.cluster.link_network[1 + self.number]

    @property
    def pod_network(self) -> IPv4Network:
        """The network of the node's pods."""
        return self.cluster.pod_networks[self.number - 1]

    @property
    def host_interface(self) -> str:
        """The machine's end of the node's link, a port of the bridge."""
        return f"{self.cluster.bridge}-{self.number}"

    @property
    def cgroup(self) -> str:
        """The cgroup that the node sees as the top, in every hierarchy."""
        return f"{self.cluster.cgroup}/node-{self.number}"

    @property
    def components_cgroup(self) -> str:
        """The cgroup of the node's components and of all they start, containers aside."""
        return f"{self.cgroup}/components"

    @property
    def kubepods_cgroup(self) -> str:
        """The cgroup above the node's containers. On the node it is /kubepods, as on most nodes."""
        return f"{self.cgroup}/kubepods"

    def process(self, component: str) -> str:
        """Return the name of the node's instance of a component, of its PID file and its log."""
        return f"{component}-{self.number}"


FOR_TESTS = Layout("test", IPv4Network("10.253.4.0/22"))
FOR_PEOPLE = Layout("dev", IPv4Network("10.253.0.0/22"))
