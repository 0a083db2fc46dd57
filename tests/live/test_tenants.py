"""Two tenants on one node: one saturates it, the other is idle. Each byte of both statuses is read.

All parts are real but the API server: two teams' pods on one bridge, an agent with eBPF programs
behind TLS, and the operator's controller.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from latencyprobe.commands.pki import initialise
from latencyprobe_operator.admission import NO_LIMITS, AdminLimits
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.controller import Controller
from tests.live.command import LATENCYPROBE
from tests.live.foreign_on_devices import xdp
from tests.live.overflows import OVERFLOW_ACCEPT_QUEUE
from tests.live.pods import TRAFFIC, Namespace, Traffic, namespace, run
from tests.live.targets import made_cgroup, until
from tests.patience import patient
from tests.unit.agent.running import until as wait_until
from tests.unit.operator_.controlled import controlling, running
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, probe_body

NODE = "shared-node"
REQUESTS, PORT = 2000, 47123
# A bridge of the node that has the name of a tenant, and counts what that tenant's pods send it.
DEVICE = "trove0"
# Frames of a protocol that nobody has asked for, to the bridge itself: it drops them.
SEND_TO_BRIDGE = """
import socket, sys
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind(("eth0", 0))
for _ in range(300):
    sender.send(bytes.fromhex(sys.argv[1]) + b"\\x02\\0\\0\\0\\0\\1" + b"\\x88\\xb5" + bytes(50))
"""
# A datagram that is larger than the device's MTU, until it is read.
READ_DATAGRAM = """
import socket, sys
reader = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
reader.bind((sys.argv[1], 47124))
print("ready", flush=True)
reader.recv(10000)
"""
SEND_DATAGRAM = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.sendto(bytes(100), (sys.argv[1], 47124))
"""
SEND_FRAGMENTS = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.sendto(bytes(4000), (sys.argv[1], 47124))
"""


@dataclass(frozen=True)
class Container:
    """A pod of one container: what the API server knows of it, and where it is on the node."""

    name: str
    place: Namespace
    cgroup: Path
    address: str
    pod_uid: str
    container_id: str

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command inside."""
        join = f"echo $$ > {self.cgroup}/cgroup.procs && exec ip netns exec {self.place.name}"
        return subprocess.Popen(["sh", "-c", f'{join} "$@"', "sh", *command], text=True, **options)

    def run(self, *command: str) -> None:
        """Run a command inside, to its end."""
        with self.start(*command, stdout=subprocess.DEVNULL) as process:
            assert process.wait(timeout=patient(60)) == 0


@dataclass(frozen=True)
class Tenant:
    """A team with a word that all its names have: of pods, containers, labels and processes."""

    word: str
    containers: tuple[Container, ...]

    @property
    def namespace(self) -> str:
        return f"{self.word}-team"

    @property
    def probe(self) -> Json:
        """A probe of all its pods that asks for all that there is."""
        return probe_body(
            f"{self.word}-probe",
            namespace=self.namespace,
            selector={"matchLabels": {"team": f"{self.word}-label"}},
            modules=["rx", "tx", "tcp", "irq", "sched"],
            interval="1s",
            window="10m",
            overhead={"maxCPUPercent": 0},
        )

    def markers(self) -> Iterator[str]:
        """Patterns of the byte sequences that belong to nobody else."""
        yield self.word
        for each in self.containers:
            yield from (each.pod_uid, each.container_id, re.escape(each.address) + r"\b")
        if self.word == "trove":
            yield rf"\b{PORT}\b"

    def found_in(self, document: Json) -> set[str]:
        """The markers of this tenant in a document."""
        text = json.dumps(document, ensure_ascii=False)
        return {marker for marker in self.markers() if re.search(marker, text)}


@dataclass
class Node:
    """A node with an agent and two tenants' pods; each has one in the node's own namespace."""

    host: Namespace
    address: str
    tls: ClientTlsFiles
    busy: Tenant
    idle: Tenant
    command: Path
    api: FakeApi = field(default_factory=FakeApi)

    def status(self, tenant: Tenant) -> Json:
        return self.api.statuses.get(f"{tenant.word}-probe", {})

    def saturate(self) -> None:
        """Have the busy tenant exchange requests, and cause drops of the node itself."""
        client, server, on_host = self.busy.containers
        words = (server.address, str(PORT), str(REQUESTS))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        serving = Traffic(server.start(str(self.command), str(TRAFFIC), "server", *words, **pipes))
        asking = Traffic(client.start(str(self.command), str(TRAFFIC), "client", *words, **pipes))
        try:
            asking.go()
            serving.result()
            assert asking.result()["sent"] == REQUESTS
        finally:
            serving.stop()
            asking.stop()
        reading = server.start(str(self.command), "-c", READ_DATAGRAM, server.address, **pipes)
        with reading:
            assert reading.stdout is not None
            reading.stdout.readline()
            client.run(str(self.command), "-c", SEND_FRAGMENTS, server.address)
            assert reading.wait(timeout=patient(60)) == 0
        with xdp(server.place, "eth0"):
            client.run(str(self.command), "-c", SEND_DATAGRAM, server.address)
        client.run(str(self.command), "-c", SEND_TO_BRIDGE, _mac(self.host, DEVICE))
        on_host.run(str(self.command), "-c", OVERFLOW_ACCEPT_QUEUE)


@contextlib.contextmanager
def _pod(name: str, place: Namespace, address: str) -> Iterator[Container]:
    pod_uid, container_id = str(uuid.uuid4()), (uuid.uuid4().hex * 2)
    with made_cgroup(f"kubepods/pod{pod_uid}/{container_id}") as cgroup:
        yield Container(name, place, cgroup, address, pod_uid, container_id)


def _mac(place: Namespace, device: str) -> str:
    command = ["ip", "-n", place.name, "-json", "link", "show", device]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    mac: str = shown[0]["address"]
    return mac.replace(":", "")


@contextlib.contextmanager
def _host() -> Iterator[Namespace]:
    with namespace("host") as host:
        host.execute("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        host.ip("link", "add", DEVICE, "type", "bridge")
        host.ip("address", "add", "198.51.100.254/24", "dev", DEVICE)
        host.ip("link", "set", DEVICE, "up")
        yield host


@contextlib.contextmanager
def _tenant(word: str, host: Namespace, number: int, ordinary: int) -> Iterator[Tenant]:
    """So many pods with a namespace of their own, and one with the node's; each has a process."""
    with contextlib.ExitStack() as stack:
        containers = []
        for index in range(ordinary):
            inside = stack.enter_context(namespace(f"{word}{index}"))
            inside.execute("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            device, address = f"veth{number}{index}", f"198.51.100.{number}{index + 1}"
            run(
                *("ip", "-n", inside.name, "link", "add", "eth0", "type", "veth"),
                *("peer", "name", device, "netns", host.name),
            )
            inside.ip("address", "add", f"{address}/24", "dev", "eth0")
            inside.ip("link", "set", "eth0", "up")
            host.ip("link", "set", device, "master", DEVICE, "up")
            containers.append(stack.enter_context(_pod(f"{word}-{index}", inside, address)))
        containers.append(stack.enter_context(_pod(f"{word}-host", host, "198.51.100.254")))
        for each in containers:
            resident = each.start("sleep", "infinity")
            stack.callback(resident.wait)
            stack.callback(resident.kill)
            until(
                lambda each=each, pid=resident.pid: (  # type: ignore[misc]
                    Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
                    and Path(f"/proc/{pid}/ns/net").stat().st_ino == each.place.inode
                ),
                "a process in each pod",
            )
        yield Tenant(word, tuple(containers))


def _body(tenant: Tenant, container: Container, host: Namespace) -> Json:
    """The pod as the API server shows it."""
    name = f"{tenant.word}-box"
    running_since = {"running": {"startedAt": "2026-01-01T00:00:01Z"}}
    status = {
        "name": name,
        "containerID": f"containerd://{container.container_id}",
        "state": running_since,
    }
    return {
        "metadata": {
            "uid": container.pod_uid,
            "namespace": tenant.namespace,
            "name": container.name,
            "labels": {"team": f"{tenant.word}-label"},
        },
        "spec": {
            "nodeName": NODE,
            "containers": [{"name": name}],
            "hostNetwork": container.place == host,
        },
        "status": {
            "phase": "Running",
            "podIP": container.address,
            "containerStatuses": [status],
        },
    }


@contextlib.contextmanager
def _agent(host: Namespace, pki: Path, log: Path) -> Iterator[str]:
    """An agent whose node is this namespace; yields its address."""
    options = (
        *("--listen", "127.0.0.1:0", "--node-name", NODE, "--max-cpu-percent", "10000"),
        *("--host-netns", str(host.path), "--ca-file", str(pki / "client-ca.crt")),
        *("--cert-file", str(pki / "agent.crt"), "--key-file", str(pki / "agent.key")),
    )
    command = [*LATENCYPROBE, "agent", *options]
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:

        def serves() -> bool:
            assert process.poll() is None, log.read_text()
            return "serving on" in log.read_text()

        try:
            until(serves, "the agent", seconds=patient(60))
            yield log.read_text().split("serving on ")[1].split(" ")[0]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node of both tenants."""
    folder = tmp_path_factory.mktemp("tenants")
    pki = folder / "pki"
    initialise(pki, days=1)
    tls = ClientTlsFiles(pki / "server-ca.crt", pki / "operator.crt", pki / "operator.key")
    command = folder / "trovecommand"  # the name of the busy tenant's processes
    command.symlink_to(shutil.which("python3", path="/usr/bin") or "python3")
    with (
        _host() as host,
        _tenant("trove", host, 1, 2) as busy,
        _tenant("meadow", host, 2, 1) as idle,
        _agent(host, pki, folder / "agent.log") as address,
    ):
        made = Node(host, address, tls, busy, idle, command)
        for tenant in (busy, idle):
            for container in tenant.containers:
                made.api.set(_body(tenant, container, host))
        yield made


@contextlib.asynccontextmanager
async def _operated(node: Node, limits: AdminLimits) -> AsyncIterator[Controller]:
    """An operator that measures for both tenants."""
    node.api.statuses.clear()
    async with (
        node.api.serve() as cluster,
        controlling(cluster, node.tls, agents={NODE: node.address}, limits=limits) as controller,
        running(controller, [node.busy.probe, node.idle.probe]),
    ):
        tenants = (node.busy, node.idle)
        await _until(node, lambda: all(_measures(node.status(each)) for each in tenants), "Ready")
        await _reports(node, controller)
        yield controller


def _measures(status: Json) -> bool:
    counts = status.get("targets", {})
    return counts.get("readyNodes") == 1 and "lastReportTime" in status


async def _reports(node: Node, controller: Controller) -> None:
    """Wait for three more reports of the agent: the last but one began after this call."""

    def seen() -> float:
        name = "latencyprobe_operator_reports_total"
        return controller.metrics.registry.get_sample_value(name) or 0

    before = seen()
    await _until(node, lambda: seen() >= before + 3, "three reports")


async def _until(node: Node, condition: Callable[[], object], what: str) -> None:
    try:
        await wait_until(condition, what, seconds=patient(120))
    except AssertionError as error:
        raise AssertionError(f"{error}: {json.dumps(node.api.statuses)}") from None


def _requests(status: Json) -> int:
    return max(
        (stage["count"] for pod in status["pods"] for stage in pod["stages"] if _is_rx(stage)),
        default=0,
    )


def _is_rx(stage: Json) -> bool:
    return bool(stage["name"] == "rx.total")


def _lasting(status: Json) -> Json:
    return {key: value for key, value in status.items() if key != "lastReportTime"}


def _node_stages(status: Json) -> set[str]:
    return {each["name"] for node in status.get("nodeContext", ()) for each in node["stages"]}


async def test_the_tenant_whom_the_administrator_names_sees_the_node_and_the_other_does_not(
    node: Node,
) -> None:
    limits = AdminLimits(node_figures_namespaces=frozenset({node.idle.namespace}))
    async with _operated(node, limits) as controller:
        node.saturate()
        await _until(node, lambda: _requests(node.status(node.busy)) >= REQUESTS, "the requests")
        # A node changes its modules at most once in 60 s, and irq may not be loaded yet.
        await _until(node, lambda: _node_stages(node.status(node.idle)), "stages of irq")
        await _reports(node, controller)
        busy, idle = node.status(node.busy), node.status(node.idle)

    (context,) = idle["nodeContext"]
    assert context["counters"][f"{DEVICE}:rx_dropped"] >= 300
    assert {stage["name"] for stage in context["stages"]} >= {"irq.softwait", "irq.softrun"}
    shared = next(pod for pod in idle["pods"] if pod["name"] == "meadow-host")
    assert shared["netnsCounters"]["TcpExtListenDrops"] > 0
    # The name of the device is the only one of the other tenant's, and is the node's.
    assert node.busy.found_in(json.loads(json.dumps(idle).replace(DEVICE, ""))) == set()
    assert node.idle.found_in(busy) == set()
    assert "nodeContext" not in busy
    assert all("netnsCounters" not in pod for pod in busy["pods"] if pod["name"] == "trove-host")


async def test_an_idle_tenant_sees_nothing_of_one_that_saturates_the_node(node: Node) -> None:
    async with _operated(node, NO_LIMITS) as controller:
        quiet = _lasting(node.status(node.idle))
        node.saturate()
        await _until(node, lambda: _requests(node.status(node.busy)) >= REQUESTS, "the requests")
        await _reports(node, controller)
        busy, idle = node.status(node.busy), node.status(node.idle)

    assert "arrived in fragments" in json.dumps(busy)
    assert "an XDP program on a pod's device copied" in json.dumps(busy)
    assert node.busy.found_in(busy) >= {"trove"}
    assert node.idle.found_in(idle) >= {"meadow"}
    assert node.busy.found_in(idle) == set(), idle
    assert node.idle.found_in(busy) == set(), busy
    assert DEVICE not in json.dumps(busy)

    assert _lasting(idle) == quiet
    assert {pod["name"] for pod in idle["pods"]} == {each.name for each in node.idle.containers}
    for pod in idle["pods"]:
        assert pod["stages"] == []
        assert set(pod["counters"].values()) == {0}
        assert "netnsCounters" not in pod
    for status in (busy, idle):
        assert "nodeContext" not in status
        covered = next(each for each in status["conditions"] if each["type"] == "Covered")
        assert covered["reason"] == "NodeFiguresNotAllowed"
