"""The growth of the counters since the last poll, of namespaces, of cgroups and of the node.

The first poll of a namespace or device only stores its counters. Counters that cannot be read (a
namespace that is gone, a device without a driver) are omitted; this is no error.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from latencyprobe.domain.measurement import CONNTRACK_FULL_PERCENT, largest_counters
from latencyprobe.domain.stages import CPU_PRESSURE
from latencyprobe.process.mounts import read_mounts
from latencyprobe_agent.desired import Selector
from latencyprobe_agent.evidence.asker import Asker
from latencyprobe_agent.evidence.cgroups import CpuCgroups
from latencyprobe_agent.evidence.counters import (
    conntrack_entries,
    growth,
    of_devices,
    parse_conntrack,
    parse_devices,
    parse_list,
    parse_softnet,
    parse_tables,
    softnet_growth,
)
from latencyprobe_agent.evidence.cpu import parse_cpu_time, parse_pressure, parse_steal
from latencyprobe_agent.evidence.ethtool import Driver, driver_of, statistics_of
from latencyprobe_agent.evidence.namespaces import Namespace, Reader, Texts, read_file
from latencyprobe_agent.targets.facts import TargetFacts

log = logging.getLogger(__name__)

# Machine-wide, in every namespace that it is read in: softnet_seq_show() walks the CPUs,
# net/core/net-procfs.c.
_SOFTNET = "/proc/net/softnet_stat"
# One limit for each namespace of the machine, net/netfilter/nf_conntrack_standalone.c.
_MOST_CONNECTIONS = "sys/net/netfilter/nf_conntrack_max"
# A pod's end of these has the same packets; a node has one for each pod, also other tenants'.
_POD_LINKS = frozenset({"veth", "netkit"})
# A request to a driver may reach its firmware.
_DRIVERS_EVERY_S = 1.0
MAX_GROWN = 64

_T = TypeVar("_T")


class Gatherer:
    """The `source.EvidenceSource` on the running kernel.

    `host`: the node's own network namespace. `cgroup_root`: where the node's cgroups are mounted.
    """

    def __init__(
        self,
        host: Namespace,
        *,
        proc_root: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
        cgroup_root: str | None = None,
    ) -> None:
        self._host = host
        self._proc_root = str(proc_root)
        self._cgroups = CpuCgroups(
            read_mounts(),
            cgroup_root=cgroup_root,
            proc_root=proc_root,
            clock=clock,
        )
        self._most_connections = str(proc_root / _MOST_CONNECTIONS)
        self._reader = Reader(proc_root, host=host.inode)
        self._clock = clock
        self._followed: dict[int, _Followed] = {}
        self._node: dict[str, int] | None = None
        self._softnet: dict[int, dict[str, int]] = {}
        self._waited: dict[str, int] = {}
        self._asker = Asker()
        self._devices = _Devices(self._reader, self._asker, clock, is_host=True)

    def of_namespaces(self, namespaces: Iterable[Namespace]) -> Mapping[int, Mapping[str, int]]:
        """Return the growth in each since the last poll, by inode number."""
        grown = {}
        for namespace in namespaces:
            texts = self._reader.read(self._reachable(namespace))
            if texts is not None and texts.netstat:
                grown[namespace.inode] = largest_counters(self._grown(namespace, texts), MAX_GROWN)
        return {inode: counters for inode, counters in grown.items() if counters}

    def of_cgroups(
        self, targets: Mapping[Selector, TargetFacts]
    ) -> Mapping[Selector, Mapping[str, int]]:
        """Return the growth of each target's cgroups since its last poll."""
        return self._cgroups.grown(targets)

    def of_node(self) -> Mapping[str, int]:
        """Return the growth since the last poll: of softirqs, devices, conntrack, CPU waits.

        The part of the conntrack table that is in use is a level, without growth.
        """
        texts = self._reader.read(self._host)
        counters, levels = self._of_host(texts) if texts is not None else ({}, {})
        softnet = _read_softnet()
        grown = softnet_growth(self._softnet, softnet) if self._softnet else {}
        cpus = self._cpus()
        grown |= growth(self._node or {}, counters) | growth(self._waited, cpus)
        self._node, self._softnet = counters or self._node, softnet or self._softnet
        self._waited |= cpus
        return largest_counters({**grown, **levels}, MAX_GROWN)

    def _cpus(self) -> dict[str, int]:
        """Return how long all CPUs were withheld, and some thread waited for one."""
        stat = _text(f"{self._proc_root}/stat")
        found = {
            "cpuStealNs": parse_steal(stat),
            "cpuTimeNs": parse_cpu_time(stat),
            CPU_PRESSURE: parse_pressure(_text(f"{self._proc_root}/pressure/cpu")),
        }
        return {name: ns for name, ns in found.items() if ns is not None}

    def keep(self, homes: Collection[int | Selector]) -> None:
        """Forget the counters of all other namespaces and targets."""
        kept = {home for home in homes if isinstance(home, int)}
        self._cgroups.keep(homes)
        for gone in self._followed.keys() - kept:
            del self._followed[gone]
        self._reader.keep(kept | {self._host.inode})

    def close(self) -> None:
        """Close all sockets."""
        self._devices.close()

    def _of_host(self, texts: Texts) -> tuple[dict[str, int], dict[str, int]]:
        """Return the total counters and the levels of the node's own namespace."""
        counters = self._devices.counters(self._host, texts.dev) | parse_conntrack(texts.conntrack)
        entries, most = conntrack_entries(texts.conntrack), _number_in(self._most_connections)
        percent = 100 * entries // most if most else 0
        return counters, {CONNTRACK_FULL_PERCENT: percent} if percent else {}

    def _reachable(self, namespace: Namespace) -> Namespace:
        """Return the node's own namespace as such: it is accessible even without the target."""
        return self._host if namespace.inode == self._host.inode else namespace

    def _grown(self, namespace: Namespace, texts: Texts) -> dict[str, int]:
        followed = self._followed.get(namespace.inode)
        if followed is None:
            # The node's devices are reported with the node, not with its pods.
            is_host = namespace.inode == self._host.inode
            devices = None if is_host else _Devices(self._reader, self._asker, self._clock)
            followed = self._followed[namespace.inode] = _Followed(devices)
        return followed.grown(texts, namespace)


def _read_softnet() -> dict[int, dict[str, int]]:
    return parse_softnet(_text(_SOFTNET))


def _text(path: str) -> str:
    """Return the text of a file of the node; empty if it cannot be read (also now)."""
    try:
        return read_file(path)
    except OSError:
        return ""


def _number_in(path: str) -> int:
    """Return the number in a file; 0 if it has none, or if there is no file."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else 0


def _statistics_now(channel: socket.socket, device: str, driver: Driver) -> dict[str, int] | None:
    """Return the driver's error statistics; None if they cannot be read now."""
    try:
        return statistics_of(channel, device, driver)
    except OSError:
        return None


class _Parsed(Generic[_T]):
    """A file that is parsed only if its text has changed: most pods are idle."""

    def __init__(self, parse: Callable[[str], _T]) -> None:
        self._parse = parse
        self._seen: int | None = None
        self._value: _T | None = None

    def of(self, text: str) -> _T:
        if self._value is None or hash(text) != self._seen:
            self._seen, self._value = hash(text), self._parse(text)
        return self._value


class _Followed:
    """A namespace, with its counters at the last poll."""

    def __init__(self, devices: _Devices | None) -> None:
        self._files = (
            _Parsed(parse_tables),
            _Parsed(parse_tables),
            _Parsed(parse_list),
            _Parsed(parse_conntrack),
        )
        self._devices = devices
        self._before: dict[str, int] = {}

    def grown(self, texts: Texts, namespace: Namespace) -> dict[str, int]:
        now: dict[str, int] = {}
        found = (texts.netstat, texts.snmp, texts.snmp6, texts.conntrack)
        for file, text in zip(self._files, found, strict=True):
            now |= file.of(text)
        if self._devices is not None:
            now |= self._devices.counters(namespace, texts.dev)
        before, self._before = self._before, now
        return growth(before, now)


class _Devices:
    """The devices of one namespace, with their drivers' counters.

    A namespace without driver statistics (a pod behind a veth) is entered once, not with each poll.
    The socket in the node's own namespace stays open, since that namespace does not end.
    """

    def __init__(
        self,
        reader: Reader,
        asker: Asker,
        clock: Callable[[], float],
        *,
        is_host: bool = False,
    ) -> None:
        self._reader = reader
        self._asker = asker
        self._clock = clock
        self._is_host = is_host
        self._file = _Parsed(parse_devices)
        self._drivers: dict[str, Driver | None] = {}
        self._statistics: dict[str, int] = {}
        self._asked_at = -_DRIVERS_EVERY_S
        self._entered_at = -_DRIVERS_EVERY_S
        self._is_closed = False
        self._kept: socket.socket | None = None

    def counters(self, namespace: Namespace, text: str) -> dict[str, int]:
        """Return the total counters of the devices, by device and name."""
        devices = self._file.of(text)
        if devices.keys() != self._drivers.keys():
            self._find_drivers(namespace, frozenset(devices))
        if self._is_host:
            devices = {name: each for name, each in devices.items() if self._is_nodes(name)}
        if self._clock() >= self._asked_at + _DRIVERS_EVERY_S:
            self._asked_at = self._clock()
            self._ask(namespace)
        return self._statistics | of_devices(devices)

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()

    def _is_nodes(self, device: str) -> bool:
        """Return True if the device is known not to be the link of a pod."""
        if self._kept is None or device not in self._drivers:
            return False
        driver = self._drivers[device]
        return driver is None or driver.name not in _POD_LINKS

    def _find_drivers(self, namespace: Namespace, devices: frozenset[str]) -> None:
        """Find the drivers of new devices."""
        known = {name: driver for name, driver in self._drivers.items() if name in devices}
        new = devices - known.keys()
        found = self._answer(
            namespace, lambda channel: {device: driver_of(channel, device) for device in new}
        )
        self._drivers = known | (found or {})

    def _ask(self, namespace: Namespace) -> None:
        """Read the drivers' statistics; keep the old ones if the answer is late."""
        counting = {
            device: driver
            for device, driver in self._drivers.items()
            if driver is not None and driver.places and driver.name not in _POD_LINKS
        }
        if not counting:
            self._statistics = {}
            return
        answer = self._answer(
            namespace,
            lambda channel: {
                device: _statistics_now(channel, device, driver)
                for device, driver in counting.items()
            },
        )
        if answer is not None:
            read = {device: found for device, found in answer.items() if found is not None}
            unread = {
                name: count
                for name, count in self._statistics.items()
                if name.partition(":")[0] in answer.keys() - read.keys()
            }
            self._statistics = unread | of_devices(read)
            for device in (device for device, statistics in read.items() if not statistics):
                del self._drivers[device]  # another device has its name: look up its driver again

    def _enter(self, namespace: Namespace) -> socket.socket | None:
        """Open a socket in the namespace; after a failed attempt only once in a while."""
        if self._clock() < self._entered_at + _DRIVERS_EVERY_S:
            return None
        channel = self._reader.channel(namespace)
        if channel is None:
            self._entered_at = self._clock()
        return channel

    def _answer(self, namespace: Namespace, question: Callable[[socket.socket], _T]) -> _T | None:
        """Return the answer from the namespace; None if it cannot be entered, or is too slow."""
        if self._is_closed or self._asker.is_busy:
            return None
        try:
            channel = self._kept or self._enter(namespace)
        except PermissionError:
            self._is_closed = True
            if self._is_host:
                log.warning(
                    "cannot enter the node's network namespace: this needs CAP_SYS_ADMIN. Reports "
                    "omit the counters of the node's devices"
                )
            return None
        if channel is None:
            return None
        if self._is_host:
            self._kept = channel
            return self._asker.ask(lambda: question(channel))

        def ask_and_close() -> _T:
            with channel:
                return question(channel)

        return self._asker.ask(ask_and_close)
