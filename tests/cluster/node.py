"""The node: a network and a mount namespace of its own, held open by one process.

All components run inside. What they bind, mount and route is therefore out of this machine's
sight, and goes when the last of them does. Only one end of the link is outside:

    this machine                     the node's network namespace
    lpc-NAME (host_ip) ──veth pair── eth0 (node_ip)   pods0, the pods' bridge
                                     lo (127.0.0.1, api_service_ip)

The PID namespace and the cgroup hierarchies are the machine's: a node agent that is started beside
the cluster sees the containers as it would on a node.
"""

import json
import subprocess
from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path

from .errors import ClusterError
from .layout import NODE_INTERFACE, Layout
from .processes import ProcessTable
from .waiting import wait_until

HOLDER = "node"

# Components write below these whatever their settings: /run/containerd (the shims' sockets),
# /var/lib/cni (libcni's cache), /var/log/containers (the kubelet's links). In the node's mount
# namespace an empty tmpfs lies over each.
MASKED_DIRECTORIES = ("/run", "/var/lib", "/var/log")

# The kubelet sets these (setupKernelTunables(), pkg/kubelet/cm/container_manager_linux.go), for
# the whole machine. In the node's mount namespace it meets plain files in their place, which have
# what it wants to see: so nothing changes, and nothing is to be restored.
SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}

# A broader route, such as a VPN's to 10.0.0.0/8, loses no more than the cluster's own addresses.
NEAR_PREFIX = 16


class AddressInUseError(ClusterError):
    """This machine has a route to addresses that the cluster would use."""

    def __init__(self, network: IPv4Network, route: str) -> None:
        super().__init__(f"{network} is for the test cluster, but this machine routes {route}")
        self.network = network
        self.route = route


class MaskedDirectoryError(ClusterError):
    """The node would not see its own state."""

    def __init__(self, directory: Path) -> None:
        masked = ", ".join(MASKED_DIRECTORIES)
        super().__init__(
            f"the node cannot use {directory}, since it has its own {masked}:"
            " set LATENCYPROBE_CACHE to a directory elsewhere"
        )


class Node:
    """The namespaces and the link to them."""

    def __init__(self, layout: Layout, processes: ProcessTable) -> None:
        self._layout = layout
        self._processes = processes

    def start(self, environment: Mapping[str, str]) -> None:
        self._require_visible_state()
        self._require_free_addresses()
        script = self._write_mount_script()
        namespaces = ["unshare", "--net", "--mount", "--propagation", "private"]
        self._processes.start(HOLDER, [*namespaces, "sh", "-e", str(script)], environment)
        wait_until("the node's namespaces", self._unmet_ready, seconds=10, interval_seconds=0.02)
        self._link()

    def remove_link(self) -> None:
        """It goes with the namespace, but the kernel takes that apart in its own time."""
        subprocess.run(
            ["ip", "link", "delete", self._layout.host_interface],
            capture_output=True,
            check=False,  # it may be gone
        )

    def enter_network(self) -> list[str]:
        """The start of a command that runs in the node's network namespace, and only in that."""
        return ["nsenter", f"--net={self._namespace('net')}", "--"]

    def enter(self) -> list[str]:
        """The start of a command that runs in both of the node's namespaces."""
        net, mnt = self._namespace("net"), self._namespace("mnt")
        return ["nsenter", f"--net={net}", f"--mount={mnt}", "--"]

    def has_socket(self, path: str) -> bool:
        """Whether there is a Unix socket at this path in the node's mount namespace."""
        holder = self._processes.require_running(HOLDER)
        return Path(f"/proc/{holder}/root{path}").is_socket()

    def is_listening(self, port: int) -> bool:
        """Whether a TCP socket listens at this port in the node's network namespace."""
        holder = self._processes.require_running(HOLDER)
        # proc_net_tcp.rst: local address, remote address, state; in hexadecimal, 0A is LISTEN.
        sockets = [
            line.split() for line in Path(f"/proc/{holder}/net/tcp").read_text().splitlines()
        ]
        return any(
            fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in sockets[1:]
        )

    def _namespace(self, kind: str) -> str:
        return f"/proc/{self._processes.require_running(HOLDER)}/ns/{kind}"

    @property
    def _ready_file(self) -> Path:
        return self._layout.state_directory / "node-ready"

    def _unmet_ready(self) -> str | None:
        self._processes.require_running(HOLDER)
        return None if self._ready_file.exists() else "the mounts are not done"

    def _require_visible_state(self) -> None:
        directory = self._layout.state_directory.resolve()
        if any(directory.is_relative_to(masked) for masked in MASKED_DIRECTORIES):
            raise MaskedDirectoryError(directory)

    def _require_free_addresses(self) -> None:
        listing = subprocess.run(
            ["ip", "-json", "-4", "route"], capture_output=True, text=True, check=True
        )
        for route in json.loads(listing.stdout):
            network = IPv4Network(route["dst"].replace("default", "0.0.0.0/0"))
            if network.prefixlen >= NEAR_PREFIX and network.overlaps(self._layout.subnets):
                raise AddressInUseError(self._layout.subnets, route["dst"])

    def _write_mount_script(self) -> Path:
        """What the holder does before it sleeps.

        The kubelet and runc need the mounts of the namespace to be shared: a volume that is
        mounted later is to appear in containers that ask for that.
        """
        state = self._layout.state_directory
        # -n: do not write to /run/mount, which is still the machine's.
        lines = ["mount -n --make-rshared /"]
        lines += [f"mount -n -t tmpfs -o mode=0755 tmpfs {path}" for path in MASKED_DIRECTORIES]
        for name, value in SYSCTLS.items():
            file = state / "sysctls" / name.replace("/", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{value}\n")
            lines.append(f"mount -n --bind '{file}' /proc/sys/{name}")
        lines += [f"touch '{self._ready_file}'", "exec sleep infinity"]
        script = state / "node.sh"
        script.write_text("\n".join(lines) + "\n")
        return script

    def _link(self) -> None:
        layout = self._layout
        prefix = layout.link_network.prefixlen
        holder = self._processes.require_running(HOLDER)
        self._ip(
            [],
            f"link add {layout.host_interface} type veth peer name {NODE_INTERFACE} netns {holder}",
            f"address add {layout.host_ip}/{prefix} dev {layout.host_interface}",
            f"link set {layout.host_interface} up",
        )
        self._ip(
            self.enter_network(),
            "link set lo up",
            # With this address the API server is what answers at the Service `kubernetes`, and
            # clients inside pods find it although no kube-proxy runs.
            f"address add {layout.api_service_ip}/32 dev lo",
            f"address add {layout.node_ip}/{prefix} dev {NODE_INTERFACE}",
            f"link set {NODE_INTERFACE} up",
            f"route add default via {layout.host_ip}",
        )
        self._ip([], f"route add {layout.pod_network} via {layout.node_ip}")
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        subprocess.run([*self.enter_network(), "sh", "-c", forward], check=True)

    def _ip(self, prefix: list[str], *commands: str) -> None:
        subprocess.run(
            [*prefix, "ip", "-batch", "-"], input="\n".join(commands), text=True, check=True
        )
