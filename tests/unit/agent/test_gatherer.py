"""Gathering evidence from a /proc that the test writes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from latencyprobe_agent.evidence import ethtool, namespaces
from latencyprobe_agent.evidence import gatherer as gathering
from latencyprobe_agent.evidence.counters import parse_devices
from latencyprobe_agent.evidence.ethtool import Driver
from latencyprobe_agent.evidence.gatherer import MAX_GROWN, Gatherer
from latencyprobe_agent.evidence.namespaces import Namespace, Reader
from tests.unit.agent.scripted import Clock

NOWHERE = Namespace(1)


@dataclass
class Process:
    """A process below a made /proc, and the namespace it lives in."""

    directory: Path

    @classmethod
    def make(cls, proc_root: Path, pid: int) -> Process:
        process = cls(proc_root / str(pid))
        (process.directory / "ns").mkdir(parents=True)
        (process.directory / "net").mkdir()
        (process.directory / "ns/net").touch()
        process.counts(0)
        return process

    @property
    def inode(self) -> int:
        return (self.directory / "ns/net").stat().st_ino

    def counts(self, drops: int, *, devices: int = 1) -> None:
        """Have so many connections dropped at listeners, and packets at devices."""
        net = self.directory / "net"
        (net / "netstat").write_text(f"TcpExt: ListenDrops TW\nTcpExt: {drops} 5\n")
        (net / "snmp").write_text(f"Udp: RcvbufErrors\nUdp: {drops * 10}\n")
        zeroes = "0 " * 12
        lines = (f"eth{n}: 0 0 0 {drops * 100} {zeroes}\n" for n in range(devices))
        (net / "dev").write_text("Inter-|\n face |\n" + "".join(lines))

    def exit(self) -> None:
        (self.directory / "ns/net").unlink()


@pytest.fixture
def gatherer(tmp_path: Path) -> Gatherer:
    return Gatherer(NOWHERE, proc_root=tmp_path, clock=Clock())


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process.make(tmp_path, 42)


def test_counts_before_the_first_reading_belong_to_no_target(
    gatherer: Gatherer, process: Process
) -> None:
    process.counts(3)
    namespace = Namespace(process.inode, (42,))
    assert gatherer.of_namespaces([namespace]) == {}
    process.counts(5)
    assert gatherer.of_namespaces([namespace]) == {
        process.inode: {"TcpExtListenDrops": 2, "UdpRcvbufErrors": 20, "eth0:rx_dropped": 200}
    }
    assert gatherer.of_namespaces([namespace]) == {}


def test_a_namespace_that_is_gone_while_others_are_read_is_left_out(
    gatherer: Gatherer, process: Process, tmp_path: Path
) -> None:
    other = Process.make(tmp_path, 43)
    both = [Namespace(process.inode, (42,)), Namespace(other.inode, (43,))]
    gatherer.of_namespaces(both)
    process.exit()
    other.counts(1)
    assert gatherer.of_namespaces(both).keys() == {other.inode}


def test_another_process_of_the_namespace_serves_when_one_has_left(
    gatherer: Gatherer, process: Process, tmp_path: Path
) -> None:
    sibling = Process.make(tmp_path, 43)
    (sibling.directory / "ns/net").unlink()
    os.link(process.directory / "ns/net", sibling.directory / "ns/net")
    namespace = Namespace(process.inode, (42, 43))
    gatherer.of_namespaces([namespace])
    process.exit()
    sibling.counts(2)
    assert gatherer.of_namespaces([namespace])[sibling.inode]["TcpExtListenDrops"] == 2


def test_a_process_that_has_moved_to_another_namespace_is_not_asked(
    gatherer: Gatherer, process: Process
) -> None:
    namespace = Namespace(process.inode, (42,))
    gatherer.of_namespaces([namespace])
    (process.directory / "ns/net").rename(process.directory / "ns/before")
    (process.directory / "ns/net").touch()
    process.counts(7)
    assert gatherer.of_namespaces([namespace]) == {}


def test_files_of_another_format_are_no_error(gatherer: Gatherer, process: Process) -> None:
    namespace = Namespace(process.inode, (42,))
    gatherer.of_namespaces([namespace])
    for name in ("netstat", "snmp", "dev"):
        (process.directory / "net" / name).write_text("what: is\x00this\n\n:::\n")
    assert gatherer.of_namespaces([namespace]) == {}
    process.counts(4)
    assert gatherer.of_namespaces([namespace]) == {}  # unknown in between: nothing is guessed


def test_a_namespace_that_is_no_longer_followed_begins_again(
    gatherer: Gatherer, process: Process
) -> None:
    namespace = Namespace(process.inode, (42,))
    gatherer.of_namespaces([namespace])
    gatherer.keep([])
    process.counts(4)
    assert gatherer.of_namespaces([namespace]) == {}


def test_a_namespace_with_many_devices_has_bounded_counters(
    gatherer: Gatherer, process: Process
) -> None:
    namespace = Namespace(process.inode, (42,))
    process.counts(0, devices=500)
    gatherer.of_namespaces([namespace])
    process.counts(1, devices=500)
    assert len(gatherer.of_namespaces([namespace])[process.inode]) == MAX_GROWN


def test_of_a_targets_devices_only_as_many_are_read_as_an_honest_one_has(
    gatherer: Gatherer, process: Process, tmp_path: Path
) -> None:
    namespace = Namespace(process.inode, (42,))
    for drops in (1, 2):
        process.counts(drops, devices=10_000)
        gatherer.of_namespaces([namespace])
    (followed,) = gatherer._followed.values()
    devices = followed._before.keys() - {"TcpExtListenDrops", "UdpRcvbufErrors"}
    assert 500 * 8 < len(devices) < 3000 * 8
    host = Reader(tmp_path, host=process.inode).read(namespace)
    assert host is not None
    assert len(host.dev.splitlines()) > 10_000


def test_a_line_that_is_cut_is_no_counter(
    monkeypatch: pytest.MonkeyPatch, process: Process, tmp_path: Path
) -> None:
    process.counts(12345)
    whole = len((process.directory / "net/dev").read_text())
    for most in range(whole):
        monkeypatch.setattr(namespaces, "MOST_DEVICES_BYTES", most)
        texts = Reader(tmp_path).read(Namespace(process.inode, (42,)))
        assert texts is not None
        assert parse_devices(texts.dev) == {}


def test_the_nodes_counters_of_before_are_nobodys_either(gatherer: Gatherer) -> None:
    assert gatherer.of_node() == {}


def test_steal_and_pressure_of_the_node_are_growth_since_the_last_poll(
    gatherer: Gatherer, tmp_path: Path
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "pressure").mkdir()
    seen = []
    for steal, pressure_us in ((41107, 500), (41107 + 3 * ticks, 507), (41107, 600)):
        (tmp_path / "stat").write_text(f"cpu  84 17 39 1123 91 0 23 {steal} 0 0\ncpu0 1\n")
        (tmp_path / "pressure/cpu").write_text(f"some avg10=0.00 total={pressure_us}\n")
        grown = gatherer.of_node()
        seen.append({name: ns for name, ns in grown.items() if name.startswith("cpu")})
    assert seen == [
        {},
        {"cpuStealNs": 3_000_000_000, "cpuTimeNs": 3_000_000_000, "cpuPressureNs": 7000},
        {"cpuPressureNs": 93_000},
    ]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_growth_while_a_file_cannot_be_read_is_reported_later(
    gatherer: Gatherer, process: Process, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    namespace = Namespace(process.inode, (42,))
    gatherer.of_namespaces([namespace])
    process.counts(4)
    unhindered = os.open

    def fails(path: str, flags: int) -> int:
        if path.endswith("/snmp"):
            raise OSError(code, os.strerror(code), path)
        return unhindered(path, flags)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        assert gatherer.of_namespaces([namespace]) == {}
    grown = gatherer.of_namespaces([namespace])[process.inode]
    assert (grown["TcpExtListenDrops"], grown["UdpRcvbufErrors"]) == (4, 40)


def test_drivers_are_read_again_once_there_are_descriptors(
    tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    gatherer = Gatherer(NOWHERE, proc_root=tmp_path, clock=clock)
    namespace = Namespace(process.inode, (42,))
    attempts: list[int] = []

    def channel(reader: Reader, asked: Namespace) -> socket.socket | None:
        attempts.append(asked.inode)
        return None if len(attempts) == 1 else socket.socket()

    monkeypatch.setattr(Reader, "channel", channel)
    monkeypatch.setattr(gathering, "driver_of", lambda *_: Driver("nic", 1, (("drops", 0),)))
    monkeypatch.setattr(gathering, "statistics_of", lambda *_: {"drops": len(attempts)})
    gatherer.of_namespaces([namespace])
    gatherer.of_namespaces([namespace])
    assert len(attempts) == 1
    clock.now += 2
    gatherer.of_namespaces([namespace])
    clock.now += 2
    assert gatherer.of_namespaces([namespace])[process.inode]["eth0:drops"] > 0


def test_a_driver_that_cannot_be_asked_now_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bytes:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(ethtool, "_ask", fails)
    with socket.socket() as channel, pytest.raises(OSError, match="Cannot allocate memory"):
        ethtool.driver_of(channel, "eth0")


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EIO])
def test_growth_while_a_driver_cannot_be_asked_is_reported_later(
    tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    process.counts(0, devices=2)
    clock = Clock()
    gatherer = Gatherer(NOWHERE, proc_root=tmp_path, clock=clock)
    namespace = Namespace(process.inode, (42,))
    drops = {"eth0": 5, "eth1": 5}
    failing: set[str] = set()

    def ask(channel: socket.socket, device: str, head: bytes, size: int) -> bytes:
        if device in failing:
            raise OSError(code, os.strerror(code))
        return struct.pack("=IIQ", 0, 1, drops[device])

    monkeypatch.setattr(Reader, "channel", lambda *_: socket.socket())
    monkeypatch.setattr(gathering, "driver_of", lambda *_: Driver("nic", 1, (("drops", 0),)))
    monkeypatch.setattr(ethtool, "_ask", ask)
    gatherer.of_namespaces([namespace])
    failing.add("eth0")
    drops.update(eth0=8, eth1=6)
    clock.now += 2
    assert gatherer.of_namespaces([namespace])[process.inode] == {"eth1:drops": 1}
    failing.clear()
    clock.now += 2
    assert gatherer.of_namespaces([namespace])[process.inode] == {"eth0:drops": 3}


CONNTRACK = "entries found drop early_drop insert_failed\n{entries:08x} 0 {drops:08x} 0 0\n"


def track(process: Process, entries: int, drops: int) -> None:
    """Have so many connections tracked in the namespace, and packets dropped."""
    (process.directory / "net/stat").mkdir(exist_ok=True)
    text = CONNTRACK.format(entries=entries, drops=drops)
    (process.directory / "net/stat/nf_conntrack").write_text(text)


def test_the_nodes_connection_tracking_has_its_growth_and_its_fill(
    process: Process, tmp_path: Path
) -> None:
    limit = tmp_path / "sys/net/netfilter/nf_conntrack_max"
    limit.parent.mkdir(parents=True)
    limit.write_text("1000\n")
    gatherer = Gatherer(Namespace(process.inode, (42,)), proc_root=tmp_path, clock=Clock())
    track(process, 9, 5)
    assert "conntrackFullPercent" not in gatherer.of_node()
    track(process, 905, 7)
    grown = gatherer.of_node()
    assert (grown["conntrackDrops"], grown["conntrackFullPercent"]) == (2, 90)
    assert gatherer.of_node()["conntrackFullPercent"] == 90


def test_a_namespace_has_its_own_connection_tracking(gatherer: Gatherer, process: Process) -> None:
    namespace = Namespace(process.inode, (42,))
    gatherer.of_namespaces([namespace])
    track(process, 9, 5)
    gatherer.of_namespaces([namespace])
    track(process, 9, 8)
    assert gatherer.of_namespaces([namespace]) == {process.inode: {"conntrackDrops": 3}}
