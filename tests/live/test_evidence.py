"""What the kernel counts of namespaces and devices, against other witnesses: nstat, ip, senders."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.evidence import ethtool
from latencyprobe_agent.evidence.counters import (
    PROTOCOL_COUNTERS,
    growth,
    parse_list,
    parse_softnet,
    parse_tables,
)
from latencyprobe_agent.evidence.gatherer import Gatherer
from latencyprobe_agent.evidence.namespaces import Namespace as Place
from latencyprobe_agent.evidence.namespaces import Reader, inside
from tests.live.overflows import OVERFLOW_ACCEPT_QUEUE
from tests.live.pods import Namespace, Pod, namespace
from tests.live.targets import until
from tests.unit.agent.states import probe, state

# Sends more datagrams than the receiver's buffer holds; says how many were lost. It reads only when
# each one waits or was dropped (SO_MEMINFO): ksoftirqd may deliver them some time later.
OVERFLOW_RECEIVE_BUFFER = """
import os, socket, struct, sys
def memory():
    figures = struct.unpack("=9I", receiver.getsockopt(socket.SOL_SOCKET, 55, 36))
    return figures[0], figures[-1]
def came():
    waiting, dropped = memory()
    return waiting // each + dropped
family, host = (socket.AF_INET6, "::1") if sys.argv[1] == "6" else (socket.AF_INET, "127.0.0.1")
receiver = socket.socket(family, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
receiver.bind((host, 0))
sender = socket.socket(family, socket.SOCK_DGRAM)
sender.sendto(bytes(512), receiver.getsockname())
while not (each := memory()[0]):
    os.sched_yield()
for _ in range(499):
    sender.sendto(bytes(512), receiver.getsockname())
while came() < 500:
    os.sched_yield()
receiver.setblocking(False)
received = 0
try:
    while receiver.recv(1024):
        received += 1
except BlockingIOError:
    print(500 - received)
"""
# Frames of a protocol that nobody has asked for are dropped where they are received.
SEND_STRANGE_FRAMES = """
import socket, sys
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind(("eth0", 0))
for _ in range(int(sys.argv[1])):
    sender.send(b"\\xff" * 6 + b"\\x02\\0\\0\\0\\0\\1" + b"\\x88\\xb5" + bytes(50))
"""


@pytest.fixture
def netns() -> Iterator[Namespace]:
    """A network namespace that no process lives in."""
    with namespace("evidence") as made:
        yield made


@pytest.fixture
def gatherer() -> Iterator[Gatherer]:
    made = Gatherer(Place(os.stat("/proc/self/ns/net").st_ino, path="/proc/self/ns/net"))
    yield made
    made.close()


def place(netns: Namespace, *pids: int) -> Place:
    """Where the agent finds a namespace: through these processes, or at its path."""
    return Place(netns.inode, pids, None if pids else str(netns.path))


def python_in(netns: Namespace, program: str, *arguments: str) -> str:
    # Not the environment's Python: its start alone takes long on a slow machine.
    done = subprocess.run(
        ["ip", "netns", "exec", netns.name, "/usr/bin/python3", "-I", "-c", program, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def nstat(netns: Namespace) -> dict[str, int]:
    """Our counters as nstat shows them, once they stand still."""

    def look() -> dict[str, int]:
        command = ["ip", "netns", "exec", netns.name, "nstat", "--zeros", "--noupdate", "--json"]
        done = subprocess.run([*command, "--ignore"], check=True, capture_output=True)
        shown: dict[str, int] = json.loads(done.stdout)["kernel"]
        return {name: count for name, count in shown.items() if name in PROTOCOL_COUNTERS}

    seen = [look()]

    def stands_still() -> bool:
        seen.append(look())
        return seen[-1] == seen[-2]

    until(stands_still, "counters that stand still")
    return seen[-1]


def protocols_alone(counters: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counters.items() if ":" not in name}


@pytest.mark.every_kernel
@pytest.mark.parametrize("through", ["path", "process"])
def test_overflows_of_an_accept_queue_are_counted_as_the_kernel_does(
    netns: Namespace, gatherer: Gatherer, through: str
) -> None:
    with resident_of(netns) as pid:
        where = place(netns, *([pid] if through == "process" else []))
        assert gatherer.of_namespaces([where]) == {}
        before = nstat(netns)
        python_in(netns, OVERFLOW_ACCEPT_QUEUE)
        truth = growth(before, nstat(netns))
        grown = gatherer.of_namespaces([where])[netns.inode]
    assert protocols_alone(dict(grown)) == truth
    assert truth["TcpExtListenOverflows"] >= 10
    assert gatherer.of_namespaces([where]) == {}


@pytest.mark.parametrize(("version", "name"), [("4", "Udp"), ("6", "Udp6")])
def test_datagrams_that_a_receive_buffer_has_no_room_for_are_counted(
    netns: Namespace, gatherer: Gatherer, version: str, name: str
) -> None:
    where = place(netns)
    gatherer.of_namespaces([where])
    lost = int(python_in(netns, OVERFLOW_RECEIVE_BUFFER, version))
    assert lost > 100
    grown = gatherer.of_namespaces([where])[netns.inode]
    assert grown[f"{name}RcvbufErrors"] == grown[f"{name}InErrors"] == lost


def test_packets_that_a_device_drops_are_counted_where_it_is(
    pair: tuple[Pod, Pod], gatherer: Gatherer
) -> None:
    client, server = pair
    both = [place(pod.namespace) for pod in pair]
    before = _dropped(server.namespace)
    gatherer.of_namespaces(both)
    python_in(client.namespace, SEND_STRANGE_FRAMES, "30")
    until(lambda: _dropped(server.namespace) >= before + 30, "30 dropped frames")
    grown = gatherer.of_namespaces(both)
    assert grown[server.namespace.inode]["eth0:rx_dropped"] == _dropped(server.namespace) - before
    assert "eth0:rx_dropped" not in grown.get(client.namespace.inode, {})


def test_a_nodes_devices_are_reported_without_the_ends_of_its_pods_links(
    bridged: tuple[Namespace, Pod, Pod],
) -> None:
    """As an agent in a namespace of its own reads the node's: the frames end at the bridge."""
    host, client, _ = bridged
    with contextlib.closing(Gatherer(place(host))) as gatherer:
        # A driver that is asked while others hold the kernel's RTNL lock answers a later reading.
        before = until_read(gatherer, host, "br0")
        python_in(client.namespace, SEND_STRANGE_FRAMES, "30")
        until(lambda: _dropped(host, "br0") >= before + 30, "30 dropped frames")
        grown = gatherer.of_node()
    dropped = _dropped(host, "br0") - before
    assert {name: n for name, n in grown.items() if ":" in name} == {"br0:rx_dropped": dropped}


def until_read(gatherer: Gatherer, host: Namespace, device: str) -> int:
    """Have it read the node until a device is in its counters; what that had dropped until then."""

    def is_read() -> bool:
        before.append(_dropped(host, device))
        gatherer.of_node()
        return device in gatherer._devices._drivers

    before: list[int] = []
    until(is_read, f"the driver of {device}")
    return before[-1]


def test_an_agent_in_a_namespace_of_its_own_reports_the_nodes_and_the_pods(
    bridged: tuple[Namespace, Pod, Pod], netns: Namespace, tmp_path: Path
) -> None:
    """As in a DaemonSet with hostPID. The frames reach the node's bridge and the other pod."""
    host, client, server = bridged
    path, log = tmp_path / "private" / "agent.sock", tmp_path / "log"
    command = [
        *("nsenter", f"--net={netns.path}"),
        *(sys.executable, "-P", "-m", "latencyprobe.commands.cli"),
        *("agent", "--socket", str(path), "--host-netns", str(host.path)),
    ]
    with (
        resident_of(server.namespace) as pid,
        log.open("w") as stderr,
        subprocess.Popen(command, stderr=stderr) as agent,
    ):
        try:
            until(lambda: agent.poll() is not None or "serving on" in log.read_text(), "serving")
            with grpc.insecure_channel(f"unix:{path}") as channel:
                stub = NodeAgentStub(channel)
                result = stub.Apply(state(probe(pid=pid)), timeout=60)
                assert result.probes[0].targets[0].state == pb.TargetStatus.ATTACHED
                stream = stub.WatchReports(iter([pb.WatchReportsRequest()]), timeout=30)
                _until_frames_are_reported(stream, host, client, server)
                before = _dropped(host, "br0"), _dropped(server.namespace)
                python_in(client.namespace, SEND_STRANGE_FRAMES, "30")
                node, pod = _dropped_as_reported(stream, at_least=30)
        finally:
            agent.terminate()
            agent.wait(30)
    assert node == _dropped(host, "br0") - before[0]
    assert pod == _dropped(server.namespace) - before[1]


def _until_frames_are_reported(
    stream: Iterable[pb.Report], host: Namespace, client: Pod, server: Pod
) -> None:
    """Send a frame at a time until the bridge's drop of it is reported; no frame is missing then.

    The bridge is not in reports before its driver has answered: see `until_read`.
    """
    while True:
        _have_a_frame_dropped(host, client, server)
        if _is_in_reports_until(time.time_ns(), stream):
            return


def _have_a_frame_dropped(host: Namespace, client: Pod, server: Pod) -> None:
    """Send one, and wait until the bridge and the other pod have dropped it."""
    node, pod = _dropped(host, "br0"), _dropped(server.namespace)
    python_in(client.namespace, SEND_STRANGE_FRAMES, "1")
    until(
        lambda: _dropped(host, "br0") > node and _dropped(server.namespace) > pod,
        "a dropped frame",
    )


def _is_in_reports_until(moment_ns: int, stream: Iterable[pb.Report]) -> bool:
    """Whether a drop of the node's bridge is in the reports up to that of an interval after it."""
    is_reported = False
    for report in stream:
        for one in report.probes:
            is_reported |= "br0:rx_dropped" in one.node.counters
        if any(one.begin.ToNanoseconds() >= moment_ns for one in report.probes):
            break
    return is_reported


def _dropped_as_reported(stream: Iterable[pb.Report], *, at_least: int) -> tuple[int, int]:
    """What the node's bridge and the pod's device dropped, added up until it is enough."""
    node = pod = 0
    for report in stream:
        for one in report.probes:
            node += one.node.counters.get("br0:rx_dropped", 0)
            pod += one.targets[0].netns_counters.get("eth0:rx_dropped", 0)
        if min(node, pod) >= at_least:
            break
    return node, pod


@contextlib.contextmanager
def resident_of(netns: Namespace) -> Iterator[int]:
    """A process in the namespace."""
    with subprocess.Popen(["nsenter", f"--net={netns.path}", "sleep", "60"]) as resident:
        try:
            until(
                lambda: Path(f"/proc/{resident.pid}/ns/net").stat().st_ino == netns.inode,
                "a process in the namespace",
            )
            yield resident.pid
        finally:
            resident.kill()


@pytest.mark.every_kernel
def test_every_counter_of_our_list_is_one_that_the_kernel_has() -> None:
    texts = Reader().read(Place(os.stat("/proc/self/ns/net").st_ino))
    assert texts is not None
    known = parse_tables(texts.netstat) | parse_tables(texts.snmp) | parse_list(texts.snmp6)
    since_5_11 = {"UdpMemErrors", "Udp6MemErrors"}
    assert PROTOCOL_COUNTERS - known.keys() <= since_5_11


@pytest.mark.every_kernel
def test_softnets_lines_are_known_by_their_cpus() -> None:
    online = Path("/sys/devices/system/cpu/online").read_text()
    cpus = {
        cpu
        for part in online.strip().split(",")
        for first, _, last in [part.partition("-")]
        for cpu in range(int(first), int(last or first) + 1)
    }
    softnet = parse_softnet(Path("/proc/net/softnet_stat").read_text())
    assert softnet.keys() == cpus
    assert all("softnetTimeSqueezed" in counters for counters in softnet.values())


def _dropped(netns: Namespace, device: str = "eth0") -> int:
    command = ["ip", "-n", netns.name, "-s", "-json", "link", "show", device]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    dropped = shown[0]["stats64"]["rx"]["dropped"]
    assert isinstance(dropped, int)
    return dropped


def test_a_drivers_statistics_are_read_in_the_devices_own_namespace(
    pair: tuple[Pod, Pod],
) -> None:
    """A veth's first statistic is the index of its peer, and that is known."""
    ours, theirs = (pod.namespace for pod in pair)
    channel = Reader().channel(place(ours))
    assert channel is not None
    with channel:
        driver = ethtool.driver_of(channel, "eth0")
        assert driver is not None
        assert driver.name == "veth"
        assert "rx_queue_0_drops" in dict(driver.places)
        peer = ethtool.Driver(driver.name, driver.statistics, (("peer_ifindex", 0),))
        command = ["ip", "-n", theirs.name, "-json", "link", "show", "eth0"]
        shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert ethtool.statistics_of(channel, "eth0", peer) == {"peer_ifindex": shown[0]["ifindex"]}
        assert ethtool.driver_of(channel, "no-such") is None
        assert ethtool.statistics_of(channel, "no-such", peer) == {}


def test_only_the_visiting_thread_enters_a_namespace(netns: Namespace) -> None:
    ours = os.stat("/proc/self/ns/net").st_ino

    def look() -> int:
        return os.stat("/proc/thread-self/ns/net").st_ino

    assert inside(str(netns.path), look) == netns.inode
    until(lambda: _namespaces_of_threads() == {ours}, "the visitor's end")


def _namespaces_of_threads() -> set[int | None]:
    """Where our threads are; None is one that has just ended."""
    found = {_inode_behind(task / "ns/net") for task in Path("/proc/self/task").iterdir()}
    return found - {None}


def test_a_namespace_does_not_outlive_its_pod_for_having_been_read(gatherer: Gatherer) -> None:
    with namespace("brief") as brief:
        where = place(brief)
        gatherer.of_namespaces([where])
        inode = brief.inode
    assert gatherer.of_namespaces([where]) == {}
    descriptors = Path("/proc/self/fd").iterdir()
    assert inode not in {_inode_behind(each) for each in descriptors}


def _inode_behind(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def test_the_report_of_a_run_has_the_namespace_apart(netns: Namespace, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    before = nstat(netns)
    subprocess.run(
        [
            *(sys.executable, "-P", "-m", "latencyprobe.commands.cli", "run", "-o", "json"),
            *("--output-file", str(report), "--netns", str(netns.path), "--"),
            *("ip", "netns", "exec", netns.name, "/usr/bin/python3", "-c", OVERFLOW_ACCEPT_QUEUE),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    truth = growth(before, nstat(netns))
    document: dict[str, Any] = json.loads(report.read_text())
    target = next(each for each in document["targets"] if each["name"] == str(netns.path))
    assert protocols_alone(target["netnsCounters"]) == truth
    assert truth["TcpExtListenOverflows"] >= 10
    assert any("TcpExtListenOverflows" in each for each in target["verdict"]["evidence"])
    assert "TcpExtListenOverflows" not in target["counters"]
    assert set(document["node"]) >= {"stages", "counters"}


TRACK_CONNECTIONS = """
table ip tracking {
  chain output {
    type filter hook output priority 0;
    ct state new accept
  }
}
"""
SEND_FROM_MANY_PORTS = """
import socket, sys
for port in range(20000, 20000 + int(sys.argv[1])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", port))
        sender.sendto(b"d", ("127.0.0.1", 9))
"""


def test_the_fill_of_the_nodes_connection_tracking_is_the_kernels(netns: Namespace) -> None:
    most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    netns.load_rules(TRACK_CONNECTIONS)
    with contextlib.closing(Gatherer(place(netns))) as gatherer:
        assert "conntrackFullPercent" not in gatherer.of_node()
        python_in(netns, SEND_FROM_MANY_PORTS, str(2 * most // 100))
        counted = python_in(
            netns, "print(open('/proc/sys/net/netfilter/nf_conntrack_count').read())"
        )
        assert gatherer.of_node()["conntrackFullPercent"] == 100 * int(counted) // most >= 1
