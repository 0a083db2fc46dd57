"""The kernel's counters from its files, and their growth.

Pure: text in, counters out. A counter has the name that nstat(8) gives it (`TcpExtListenDrops`). A
device's counter has the device's name and a colon before it (`eth0:rx_dropped`). Counters that
another kernel lacks are absent; malformed lines are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

# The counters that show lost packets, connections or time; docs/stages.md explains each.
PROTOCOL_COUNTERS = frozenset(
    {
        # Connections that a full listener dropped.
        "TcpExtListenOverflows",
        "TcpExtListenDrops",
        "TcpExtTCPReqQFullDrop",
        "TcpExtTCPReqQFullDoCookies",
        "TcpExtSyncookiesSent",
        # Losses on the path, and their detection by TCP.
        "TcpRetransSegs",
        "TcpExtTCPTimeouts",
        "TcpExtTCPLostRetransmit",
        "TcpExtTCPSynRetrans",
        "TcpExtTCPAbortOnTimeout",
        "TcpExtTCPOFOQueue",
        "TcpInErrs",
        # Receivers without room, memory or time.
        "TcpExtTCPBacklogDrop",
        "TcpExtTCPRcvQDrop",
        "TcpExtTCPOFODrop",
        "TcpExtTCPZeroWindowDrop",
        "TcpExtTCPToZeroWindowAdv",
        "TcpExtTCPFromZeroWindowAdv",
        "TcpExtTCPWantZeroWindowAdv",
        "TcpExtPruneCalled",
        "TcpExtRcvPruned",
        "TcpExtOfoPruned",
        "TcpExtTCPRcvCollapsed",
        "TcpExtTCPMemoryPressures",
        "TcpExtTCPAbortOnMemory",
        "TcpExtTCPWqueueTooBig",
        "TcpExtPFMemallocDrop",
        *(
            f"Udp{version}{name}"
            for version in ("", "6")
            for name in ("InErrors", "RcvbufErrors", "SndbufErrors", "MemErrors", "NoPorts")
        ),
        *(
            f"Ip{version}{name}"
            for version in ("", "6")
            for name in (
                "InDiscards",
                "OutDiscards",
                "InHdrErrors",
                "OutNoRoutes",
                "ReasmFails",
                "FragFails",
            )
        ),
    }
)

# Columns of /proc/net/dev after the name, dev_seq_printf_stats(), net/core/net-procfs.c, by the
# names of /sys/class/net/*/statistics. Those that are sums there (rx_dropped holds
# rx_missed_errors, rx_frame_errors the length, overrun and CRC errors, tx_carrier_errors the
# aborted, window and heartbeat errors) are so here.
_DEVICE_COLUMNS: Mapping[int, str] = {
    2: "rx_errors",
    3: "rx_dropped",
    4: "rx_fifo_errors",
    5: "rx_frame_errors",
    10: "tx_errors",
    11: "tx_dropped",
    12: "tx_fifo_errors",
    14: "tx_carrier_errors",
}

# Columns of /proc/net/softnet_stat, softnet_seq_show(), net/core/net-procfs.c. flow_limit came with
# 3.11; the CPU's number identifies a line, since lines shift after a CPU is switched off.
_SOFTNET_COLUMNS: Mapping[int, str] = {
    1: "softnetDropped",
    2: "softnetTimeSqueezed",
    10: "softnetFlowLimited",
}
_SOFTNET_LINE = re.compile(r"[0-9a-f ]+")
_HEXADECIMAL = re.compile(r"[0-9a-f]+")
_SOFTNET_CPU = 12
_U32 = 1 << 32

# Columns of /proc/net/stat/nf_conntrack, ct_cpu_seq_show(),
# net/netfilter/nf_conntrack_standalone.c. Kernels have further ones in between.
_CONNTRACK_COLUMNS: Mapping[str, str] = {
    "drop": "conntrackDrops",
    "insert_failed": "conntrackInsertFailed",
    "early_drop": "conntrackEarlyDrops",
}
_CONNTRACK_ENTRIES = "entries"


def parse_tables(text: str) -> dict[str, int]:
    """Parse /proc/net/netstat or /proc/net/snmp: a line of names, then a line of their values."""
    counters: dict[str, int] = {}
    names = ""
    for line in text.split("\n"):
        places = _places(names, line.partition(":")[0])
        if places is None:
            names = line
            continue
        values = line.split()
        if len(values) == len(names.split()):
            counters |= _numbers((name, values[place]) for name, place in places)
        names = ""
    return counters


@lru_cache(maxsize=64)
def _places(names: str, table: str) -> tuple[tuple[str, int], ...] | None:
    """Return the positions of our counters; None if the line does not name this table."""
    if not table or not names.startswith(table + ":"):
        return None
    wanted = ((table + name, place) for place, name in enumerate(names.split()))
    return tuple((name, place) for name, place in wanted if name in PROTOCOL_COUNTERS)


def parse_list(text: str) -> dict[str, int]:
    """Parse /proc/net/snmp6: a name and its value on each line."""
    lines = (line.split() for line in text.split("\n"))
    return _numbers(
        (fields[0], fields[1])
        for fields in lines
        if len(fields) == 2 and fields[0] in PROTOCOL_COUNTERS
    )


def parse_devices(text: str) -> dict[str, dict[str, int]]:
    """Parse /proc/net/dev: the counters of each device."""
    devices = {}
    for line in text.split("\n"):
        device, colon, rest = line.partition(":")
        fields = rest.split()
        if colon and len(fields) > max(_DEVICE_COLUMNS):
            # The columns are numbered from the name on, which is no field here.
            devices[device.strip()] = _numbers(
                (name, fields[column]) for column, name in _DEVICE_COLUMNS.items()
            )
    return devices


def of_devices(devices: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return all devices' counters, by device and name."""
    return {
        f"{device}:{name}": count
        for device, counters in devices.items()
        for name, count in counters.items()
    }


def parse_softnet(text: str) -> dict[int, dict[str, int]]:
    """Parse /proc/net/softnet_stat: the counters of each CPU, with 32 bits."""
    cpus = {}
    for number, line in enumerate(text.split("\n")):
        if not _SOFTNET_LINE.fullmatch(line):
            continue
        fields = [int(field, 16) for field in line.split()]
        cpu = fields[_SOFTNET_CPU] if len(fields) > _SOFTNET_CPU else number
        cpus[cpu] = {
            name: fields[column]
            for column, name in _SOFTNET_COLUMNS.items()
            if column < len(fields)
        }
    return cpus


def parse_conntrack(text: str) -> dict[str, int]:
    """Parse /proc/net/stat/nf_conntrack: the counters of all CPUs together."""
    return {
        counter: sum(column)
        for name, counter in _CONNTRACK_COLUMNS.items()
        if (column := _conntrack_column(text, name))
    }


def conntrack_entries(text: str) -> int:
    """Return the number of connections in the namespace's table, which each line repeats."""
    return max(_conntrack_column(text, _CONNTRACK_ENTRIES), default=0)


def _conntrack_column(text: str, name: str) -> list[int]:
    names, *lines = (line.split() for line in text.split("\n"))
    if name not in names:
        return []
    place = names.index(name)
    column = (fields[place] for fields in lines if len(fields) == len(names))
    return [int(field, 16) for field in column if _HEXADECIMAL.fullmatch(field)]


def growth(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """Return the growth of the counters that have grown.

    A counter that fell was reset: by another device of the same name, or by its driver. Its growth
    is unknown, and not guessed. A new counter has no growth yet.
    """
    grown = ((name, count - before.get(name, count)) for name, count in now.items())
    return {name: delta for name, delta in grown if delta > 0}


def softnet_growth(
    before: Mapping[int, Mapping[str, int]], now: Mapping[int, Mapping[str, int]]
) -> dict[str, int]:
    """Return the growth of the counters of all CPUs together; each may have wrapped once."""
    grown: dict[str, int] = {}
    for cpu, counters in now.items():
        for name, count in counters.items():
            delta = (count - before.get(cpu, {}).get(name, count)) % _U32
            if 0 < delta < _U32 // 2:
                grown[name] = grown.get(name, 0) + delta
    return grown


def _numbers(fields: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Return the fields that are numbers, by name."""
    return {name: int(text) for name, text in fields if text.isdecimal()}
