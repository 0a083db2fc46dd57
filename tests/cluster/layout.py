"""What one cluster calls its things: paths, names and addresses.

Everything that a cluster leaves on the machine while it runs is named here after the cluster, so
that it can be found again by name, and so that two clusters do not meet.
"""

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
    """A /22 of private addresses: the link to the machine, the pods, the services, one unused."""

    cgroup_parent: str
    """Where in each cgroup hierarchy the kubelet makes `kubepods`; "" is the top, its default."""

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
    def components_cgroup(self) -> str:
        """The v2 cgroup of the components and of all they start, containers aside."""
        return f"latencyprobe-cluster-{self.name}"

    @property
    def kubepods_cgroup(self) -> str:
        """The cgroup above all containers, in every hierarchy."""
        return f"{self.cgroup_parent}/kubepods".removeprefix("/")

    @property
    def host_interface(self) -> str:
        """The machine's end of the link to the node. The kernel allows 15 characters."""
        return f"lpc-{self.name}"

    @property
    def node_name(self) -> str:
        return f"latencyprobe-{self.name}"

    @property
    def _networks(self) -> list[IPv4Network]:
        return list(self.subnets.subnets(new_prefix=24))

    @property
    def link_network(self) -> IPv4Network:
        return self._networks[0]

    @property
    def pod_network(self) -> IPv4Network:
        return self._networks[1]

    @property
    def service_network(self) -> IPv4Network:
        return self._networks[2]

    @property
    def host_ip(self) -> IPv4Address:
        return self.link_network[1]

    @property
    def node_ip(self) -> IPv4Address:
        return self.link_network[2]

    @property
    def api_service_ip(self) -> IPv4Address:
        """The API server gives the Service `kubernetes` the first address of the range."""
        return self.service_network[1]

    @property
    def api_url(self) -> str:
        return f"https://{self.node_ip}:{API_PORT}"


# The pods' cgroups lie where they do on most nodes: /kubepods/<QoS class>/pod<UID>/<container>.
FOR_TESTS = Layout("test", IPv4Network("10.253.4.0/22"), cgroup_parent="")

# Below a directory of its own, as in kind, so that a cluster which `make cluster` left running
# and the tests' cluster do not remove each other's pods.
FOR_PEOPLE = Layout("dev", IPv4Network("10.253.0.0/22"), cgroup_parent="/latencyprobe-dev")
