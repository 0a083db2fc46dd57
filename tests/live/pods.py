"""Pods for tests: a network namespace, a cgroup and processes, joined by a host of their own.

The "host" is a network namespace too, made for the test, so that the machine's own is never
touched. Everything has a name of this process's and is removed by that name.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Any

from latencyprobe_agent.kernel.contract import SlotSpec, SocketFilter
from tests.live.entering import entered
from tests.patience import patient

TRAFFIC = Path(__file__).with_name("traffic.py")
FINISH_SECONDS = patient(60)
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h
_numbers = itertools.count()
# The device to the server of pods_on_bridge(): a segment takes 4 ms, and what is saved up lasts for
# one.
SLOW_LAST_DEVICE = (
    *("tc", "qdisc", "add", "dev", "veth1", "root", "tbf"),
    *("rate", "2mbit", "burst", "1600", "limit", "100000"),
)


def run(*command: str, lines: Iterable[str] = ()) -> None:
    """Run a command, which reads these lines; its words are part of the failure."""
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=text)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}\n{text}".strip())


def unified_cgroup_root() -> Path:
    """Where the v2 hierarchy is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "cgroup2":
            return Path(fields.split()[4])
    raise RuntimeError("this machine has no cgroup v2 hierarchy mounted")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace by its name."""

    name: str

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.name

    @property
    def inode(self) -> int:
        return self.path.stat().st_ino

    def ip(self, *arguments: str) -> None:
        """Run `ip` inside."""
        run("ip", "-n", self.name, *arguments)

    def ip_in_turn(self, *commands: str) -> None:
        """Run `ip` once inside, for all of these commands."""
        run("ip", "-n", self.name, "-batch", "-", lines=commands)

    def execute(self, *command: str) -> None:
        """Run any command inside."""
        run("ip", "netns", "exec", self.name, *command)

    def load_rules(self, rules: str) -> None:
        """Load nftables rules inside."""
        command = ["ip", "netns", "exec", self.name, "nft", "-f", "-"]
        subprocess.run(command, input=rules, text=True, check=True)


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod: where it is and how to start something in it."""

    namespace: Namespace
    cgroup: Path
    address: str
    address6: str

    def spec(self, socket_filter: SocketFilter | None = None) -> SlotSpec:
        """Its sockets, told by cgroup."""
        return SlotSpec(
            cgroup_ids=frozenset({self.cgroup.stat().st_ino}),
            cgroup_directories=frozenset({str(self.cgroup)}),
            netns=frozenset({self.namespace.inode}),
            socket_filter=socket_filter or SocketFilter(),
        )

    def start(self, *arguments: str) -> Traffic:
        """Start the traffic program inside; returns once it is ready."""
        join = f"echo $$ > {self.cgroup}/cgroup.procs && exec ip netns exec {self.namespace.name}"
        process = subprocess.Popen(
            ["sh", "-c", f'{join} "$@"', "sh", sys.executable, str(TRAFFIC), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return Traffic(process)


class Traffic:
    """A running traffic program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        if line != "ready\n":
            raise RuntimeError(f"traffic program said {line!r} and ended with {process.wait()}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def go(self) -> None:
        """Let a client begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def account(self) -> dict[str, Any]:
        """Wait for the account of a program that stays."""
        assert self._process.stdout is not None
        account: dict[str, Any] = json.loads(self._process.stdout.readline())
        return account

    def result(self) -> dict[str, Any]:
        """Wait for the end and return the program's account."""
        output, _ = self._process.communicate(timeout=FINISH_SECONDS)
        if self._process.returncode:
            raise RuntimeError(f"traffic program ended with {self._process.returncode}: {output}")
        account: dict[str, Any] = json.loads(output)
        return account

    def stop(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@contextmanager
def namespace(role: str) -> Iterator[Namespace]:
    """A new network namespace with its loopback up."""
    made = Namespace(f"lptest-{os.getpid()}-{next(_numbers)}-{role}")
    run("ip", "netns", "add", made.name)
    try:
        with entered(made.path), socket.socket() as any_socket:
            ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
        yield made
    finally:
        run("ip", "netns", "delete", made.name)


def host_namespace() -> AbstractContextManager[Namespace]:
    """The node's own network namespace. In a guest it is the guest's: tests.kernels.inside."""
    return namespace("host")


@contextmanager
def cgroup(name: str) -> Iterator[Path]:
    """A new cgroup in the v2 hierarchy."""
    path = unified_cgroup_root() / name
    path.mkdir()
    try:
        yield path
    finally:
        kill_all(path)
        _remove_when_empty(path)


def kill_all(cgroup: Path) -> None:
    """Kill the processes of a cgroup, as far as they have not ended by themselves."""
    for pid in (cgroup / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def own_cgroup() -> Path:
    """This process's directory in the v2 hierarchy."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return unified_cgroup_root() / line.removeprefix("0::").lstrip("/")
    raise RuntimeError("this process is in no v2 cgroup")


@contextmanager
def inside_cgroup(directory: Path) -> Iterator[None]:
    """This process is in a cgroup for a while; the sockets that it makes stay there."""
    home = own_cgroup()
    (directory / "cgroup.procs").write_text("0")
    try:
        yield
    finally:
        (home / "cgroup.procs").write_text("0")


def _remove_when_empty(path: Path) -> None:
    """rmdir, as soon as the last process is gone for the kernel too."""
    for _ in range(200):
        try:
            path.rmdir()
        except OSError:
            subprocess.run(["sleep", "0.02"], check=True)
        else:
            return
    raise RuntimeError(f"{path} stays busy")


@contextmanager
def pods_on_bridge(count: int) -> Iterator[tuple[Namespace, list[Pod]]]:
    """A host with a bridge, as bridge CNIs make it, and pods on it."""
    with ExitStack() as stack:
        host = stack.enter_context(host_namespace())
        there = [stack.enter_context(namespace(f"pod{index}")) for index in range(count)]
        host.ip_in_turn(
            "link add br0 type bridge",
            "link set br0 up",
            "address add 198.51.100.254/24 dev br0",
            *_devices_to(there),
            *(f"link set veth{index} master br0" for index in range(count)),
            *(f"link set veth{index} up" for index in range(count)),
        )
        yield host, [made_pod(stack, inside, index) for index, inside in enumerate(there)]


@contextmanager
def pods_on_routes(count: int) -> Iterator[tuple[Namespace, list[Pod]]]:
    """A host that routes to each pod's own device, without a bridge; IPv4 only."""
    with ExitStack() as stack:
        host = stack.enter_context(host_namespace())
        there = [stack.enter_context(namespace(f"pod{index}")) for index in range(count)]
        devices = [f"veth{index}" for index in range(count)]
        host.ip_in_turn(*_devices_to(there), *(f"link set {device} up" for device in devices))
        host.execute(
            *("sysctl", "-qw", "net.ipv4.ip_forward=1"),
            *(f"net.ipv4.conf.{device}.proxy_arp=1" for device in devices),
            # as CNIs with such routes do: else the first packets wait for up to 0.8 s
            *(f"net.ipv4.neigh.{device}.proxy_delay=0" for device in devices),
        )
        pods = [made_pod(stack, inside, index) for index, inside in enumerate(there)]
        host.ip_in_turn(
            *(
                f"route add {pod.address}/32 dev {device}"
                for pod, device in zip(pods, devices, strict=True)
            )
        )
        yield host, pods


@contextmanager
def pods_back_to_back() -> Iterator[list[Pod]]:
    """Two pods on one veth pair: no host between them."""
    with ExitStack() as stack:
        left, right = (stack.enter_context(namespace(role)) for role in ("left", "right"))
        left.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right.name)
        yield [made_pod(stack, inside, index) for index, inside in enumerate((left, right))]


def _devices_to(pods: Iterable[Namespace]) -> Iterator[str]:
    """Make a host's device to each pod, whose own end is eth0."""
    for index, pod in enumerate(pods):
        yield f"link add veth{index} type veth peer name eth0 netns {pod.name}"


def made_pod(stack: ExitStack, inside: Namespace, index: int, device: str = "eth0") -> Pod:
    address, address6 = f"198.51.100.{index + 1}", f"2001:db8::{index + 1}"
    inside.ip_in_turn(
        f"address add {address}/24 dev {device}",
        f"address add {address6}/64 dev {device} nodad",
        f"link set {device} up",
    )
    return Pod(inside, stack.enter_context(cgroup(inside.name)), address, address6)


def require_tools() -> None:
    """Fail with what is missing, where the fixtures can't work."""
    if os.geteuid():
        raise RuntimeError("these tests need root")
    if shutil.which("ip") is None:
        raise RuntimeError("these tests need `ip` (package iproute2)")
