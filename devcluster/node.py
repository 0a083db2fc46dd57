"""A node: namespaces of its own, held open by one process.

All components run inside. So this machine does not see their sockets, mounts and routes, which go
when the last component does. network.py has the part outside. Inside are

- eth0 with the node's address, and pods0, the bridge of its pods. On the first node lo has
  `api_service_ip` too;
- its processes alone, the holder being PID 1. A pod with `hostPID` finds the node's network
  namespace at /proc/1/ns/net, and no process of another node or of this machine;
- the node's own cgroup as the top of every cgroup hierarchy. So two kubelets do not take each
  other's pods for orphans, and an agent finds its own node's.

This machine sees processes and cgroups too, under other numbers and longer names. So a node agent
that is started beside the cluster finds the containers.
"""

import subprocess
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path

from . import cgroups
from .errors import ClusterError
from .layout import NODE_INTERFACE, NodeLayout
from .network import ip
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

# PID 1 is who collects processes that lost their parents, such as containerd's shims.
HOLD = "while :; do sleep infinity & wait; done"


class MaskedDirectoryError(ClusterError):
    """The node would not see its own state."""

    def __init__(self, directory: Path) -> None:
        masked = ", ".join(MASKED_DIRECTORIES)
        super().__init__(
            f"the node cannot use {directory}, since it has its own {masked}:"
            " set LATENCYPROBE_CACHE to a directory elsewhere"
        )


class Node:
    """The namespaces of one node and the link to them."""

    def __init__(self, layout: NodeLayout, processes: ProcessTable) -> None:
        self.layout = layout
        self._processes = processes

    @property
    def holder(self) -> str:
        """The name of the process that holds the namespaces."""
        return self.layout.process(HOLDER)

    def start(self, environment: Mapping[str, str]) -> None:
        """Make the namespaces and the link to the cluster's bridge, which is there."""
        self._require_visible_state()
        self.layout.state_directory.mkdir()
        cgroups.create_everywhere(self.layout.cgroup)
        cgroups.pass_on_controllers(self.layout.cluster.cgroup)
        script = self._write_script()
        # The cgroup that it is in when it makes the namespace is what is seen as the top there.
        namespaces = ["unshare", "--net", "--mount", "--pid", "--cgroup", "--fork"]
        command = [*namespaces, "--propagation", "private", "sh", "-e", str(script)]
        self._processes.start(self.holder, command, environment, cgroup=self.layout.cgroup)
        wait_until("the node's namespaces", self._unmet_ready, seconds=10, interval_s=0.02)
        # And in v2 what is above the pods' cgroups must hold no process.
        cgroups.move(self._processes.require_running(self.holder), self.layout.components_cgroup)
        self._link()

    def enter_network(self) -> list[str]:
        """Return the start of a command that runs in the node's network namespace alone."""
        return ["nsenter", f"--net={self._namespace('net')}", "--"]

    def enter(self) -> list[str]:
        """Return the start of a command that runs on the node: in all of its namespaces."""
        kinds = {"net": "net", "mount": "mnt", "pid": "pid", "cgroup": "cgroup"}
        options = [f"--{option}={self._namespace(kind)}" for option, kind in kinds.items()]
        return ["nsenter", *options, "--"]

    def has_socket(self, path: str) -> bool:
        """Return True if a Unix socket is at this path in the node's mount namespace."""
        holder = self._processes.require_running(self.holder)
        return Path(f"/proc/{holder}/root{path}").is_socket()

    def is_listening(self, port: int) -> bool:
        """Return True if a TCP socket listens at this port in the node's network namespace."""
        holder = self._processes.require_running(self.holder)
        # proc_net_tcp.rst: local address, remote address, state; in hexadecimal, 0A is LISTEN.
        sockets = [
            line.split() for line in Path(f"/proc/{holder}/net/tcp").read_text().splitlines()
        ]
        return any(
            fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in sockets[1:]
        )

    def add_address(self, address: IPv4Address) -> None:
        """Give the node another address of its own."""
        ip(f"address add {address}/32 dev lo", inside=self.enter_network())

    def route(self, *routes: str) -> None:
        """Add routes: `DESTINATION via GATEWAY`."""
        ip(*(f"route add {route}" for route in routes), inside=self.enter_network())

    def _namespace(self, kind: str) -> str:
        return f"/proc/{self._processes.require_running(self.holder)}/ns/{kind}"

    @property
    def _ready_file(self) -> Path:
        return self.layout.state_directory / "ready"

    def _unmet_ready(self) -> str | None:
        self._processes.require_running(self.holder)
        return None if self._ready_file.exists() else "the mounts are not done"

    def _require_visible_state(self) -> None:
        directory = self.layout.state_directory.resolve()
        if any(directory.is_relative_to(masked) for masked in MASKED_DIRECTORIES):
            raise MaskedDirectoryError(directory)

    def _write_script(self) -> Path:
        """Write the script that the holder runs before it sleeps.

        The kubelet and runc need shared mounts in the namespace: a volume that is mounted later
        is to appear in containers that ask for that.
        """
        # -n: do not write to /run/mount, which is still the machine's.
        lines = ["mount -n --make-rshared /"]
        lines += cgroups.remount_commands()
        lines.append("mount -n -t proc proc /proc")
        lines += [f"mount -n -t tmpfs -o mode=0755 tmpfs {path}" for path in MASKED_DIRECTORIES]
        for name, value in SYSCTLS.items():
            file = self.layout.state_directory / "sysctls" / name.replace("/", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{value}\n")
            lines.append(f"mount -n --bind '{file}' /proc/sys/{name}")
        lines += [f"touch '{self._ready_file}'", HOLD]
        script = self.layout.state_directory / "node.sh"
        script.write_text("\n".join(lines) + "\n")
        return script

    def _link(self) -> None:
        layout, cluster = self.layout, self.layout.cluster
        holder = self._processes.require_running(self.holder)
        peer = f"peer name {NODE_INTERFACE} netns {holder}"
        ip(
            f"link add {layout.host_interface} type veth {peer}",
            f"link set {layout.host_interface} master {cluster.bridge} up",
        )
        ip(
            "link set lo up",
            f"address add {layout.ip}/{cluster.link_network.prefixlen} dev {NODE_INTERFACE}",
            f"link set {NODE_INTERFACE} up",
            f"route add default via {cluster.host_ip}",
            inside=self.enter_network(),
        )
        ip(f"route add {layout.pod_network} via {layout.ip}")
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        subprocess.run([*self.enter_network(), "sh", "-c", forward], check=True)
