"""Pods of our own: network namespaces behind a bridge, which is in the namespace of a node.

The node may have a NIC too: a tun device, at whose other end a program answers (far_end.c). Pods
reach it as they do on nodes: by the bridge, and routed from there.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.network import FIRST, Namespace, compiled, in_cgroup, ip, last_cpu, namespaces
from bench.outcome import CannotMeasureError
from latencyprobe.process.mounts import read_mounts
from latencyprobe_agent.targets.cgroups import find_hierarchy

# For benchmarks of network devices, RFC 2544; it is used inside our namespaces alone.
BRIDGE_ADDRESS = "198.18.0.1"
CLIENT_ADDRESS = "198.18.0.2"
SERVER_ADDRESS = "198.18.0.3"
_IDLE_ADDRESS = "198.18.0.4"
_NIC_ADDRESS = "198.18.1.1"
_LONGEST_S = 30
FAR_ADDRESS = "198.18.1.2"
_FAR_END = Path(__file__).with_name("far_end.c")


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
    ip("-n", host, "link", "set", "bridge0", "addrgenmode", "none")
    ip("-n", host, "address", "add", f"{BRIDGE_ADDRESS}/24", "dev", "bridge0")
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
        ip("-n", pod.name, "route", "add", "default", "via", BRIDGE_ADDRESS)


@contextmanager
def nic(found: Node) -> Iterator[str]:
    """Give the node a NIC; yield an address beyond it that answers on port 7."""
    host = found.host
    with compiled(_FAR_END) as program:
        far_end = subprocess.Popen(
            [*FIRST, program, host.path, "nic0", str(last_cpu())], stdout=subprocess.PIPE, text=True
        )
        try:
            assert far_end.stdout is not None
            if far_end.stdout.readline() != "ready\n":
                raise CannotMeasureError("the far end of the NIC has ended: see its message above")
            ip("-n", host.name, "link", "set", "nic0", "addrgenmode", "none")
            ip("-n", host.name, "link", "set", "nic0", "up")
            ip("-n", host.name, "address", "add", _NIC_ADDRESS, "peer", FAR_ADDRESS, "dev", "nic0")
            ip("netns", "exec", host.name, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            yield FAR_ADDRESS
        finally:
            far_end.kill()
            far_end.communicate()


def root_cgroup() -> Path:
    """Return the root of the cgroup v2 hierarchy."""
    root = find_hierarchy(read_mounts())
    if root is None:
        raise CannotMeasureError("no cgroup v2 hierarchy is mounted")
    return Path(root)


@contextmanager
def cgroup(role: str) -> Iterator[Path]:
    """Make a cgroup for a pod's processes; remove it when they have ended."""
    made = root_cgroup() / f"lpbench{os.getpid()}{role}"
    made.mkdir()
    try:
        yield made
    finally:
        _wait_until(lambda: not (made / "cgroup.procs").read_text(), f"{made} is empty")
        made.rmdir()


@contextmanager
def sleeper(namespace: Namespace, directory: Path) -> Iterator[int]:
    """Run a process that does nothing, in a namespace and a cgroup; yield its process id."""
    process = subprocess.Popen(
        [*in_cgroup(directory), "nsenter", f"--net={namespace.path}", "sleep", "infinity"]
    )
    try:
        netns = Path(f"/proc/{process.pid}/ns/net")
        inside = f"process {process.pid} is in {namespace.path}"
        _wait_until(lambda: netns.stat().st_ino == namespace.inode, inside)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _wait_until(condition: Callable[[], bool], expected: str) -> None:
    deadline = time.monotonic() + _LONGEST_S
    while not condition():
        if time.monotonic() > deadline:
            raise CannotMeasureError(f"not within {_LONGEST_S} s: {expected}")
        time.sleep(0.01)
