"""The kernel's accounts of waiting for a CPU: quotas, pressure (PSI) and steal.

Pure: text in, numbers out. All times are nanoseconds. What another kernel lacks is None.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# The v2 hierarchy has no controllers in /proc/PID/cgroup.
V2 = ""
V1_CPU = "cpu"
_US, _S = 1000, 10**9
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Of the first line of /proc/stat, after "cpu": show_stat(), fs/proc/stat.c.
_STEAL = 7


class Throttling(NamedTuple):
    """The account of a quota; the largest is that of the cgroup that was throttled longest.

    `ns` is added up over the CPUs: of two CPUs that a quota kept from a cgroup at the same time,
    both count.
    """

    ns: int
    throttled: int
    periods: int

    def since(self, before: Throttling) -> Throttling | None:
        """Return the growth; None for another account, which has begun again."""
        grown = Throttling(*(now - then for now, then in zip(self, before, strict=True)))
        return grown if min(grown) >= 0 else None


NO_THROTTLING = Throttling(0, 0, 0)


def parse_throttling(text: str) -> Throttling | None:
    """Parse a cgroup's cpu.stat; None for a cgroup without the controller.

    cpu_extra_stat_show() of v2, cpu_cfs_stat_show() of v1, kernel/sched/core.c.
    """
    fields = dict(_numbers(text))
    periods, throttled = fields.get("nr_periods"), fields.get("nr_throttled")
    ns = fields.get("throttled_time")
    if ns is None and "throttled_usec" in fields:
        ns = fields["throttled_usec"] * _US
    if periods is None or throttled is None or ns is None:
        return None
    return Throttling(ns, throttled, periods)


def _numbers(text: str) -> Iterator[tuple[str, int]]:
    for line in text.split("\n"):
        name, _, number = line.partition(" ")
        if number.isdecimal():
            yield name, int(number)


def parse_pressure(text: str) -> int | None:
    """Parse a file of pressure: how long some thread has waited, psi_show(), kernel/sched/psi.c."""
    for line in text.split("\n"):
        kind, _, fields = line.partition(" ")
        _, found, total_us = fields.partition("total=")
        if kind == "some" and found and total_us.isdecimal():
            return int(total_us) * _US
    return None


def parse_steal(text: str) -> int | None:
    """Parse /proc/stat: the time of all CPUs that the hypervisor gave to others."""
    kind, *fields = text.partition("\n")[0].split()[: _STEAL + 2] or [""]
    if kind != "cpu" or len(fields) <= _STEAL or not fields[_STEAL].isdecimal():
        return None
    return int(fields[_STEAL]) * _S // _TICKS_PER_S


def parse_cpu_time(text: str) -> int | None:
    """Parse /proc/stat: the time of all CPUs, idle or not, which is the whole that steal is of."""
    kind, *fields = text.partition("\n")[0].split()[: _STEAL + 2] or [""]
    if kind != "cpu" or len(fields) <= _STEAL or not all(map(str.isdecimal, fields)):
        return None
    return sum(map(int, fields)) * _S // _TICKS_PER_S


def parse_cgroups(text: str) -> Mapping[str, str]:
    """Parse /proc/PID/cgroup: a process's cgroup by controller, that of v2 by `V2`."""
    paths: dict[str, str] = {}
    for line in text.split("\n"):
        # A cgroup may have colons in its name, and no line end: cgroup_mkdir().
        fields = line.split(":", 2)
        if len(fields) == 3 and fields[2].startswith("/"):
            paths |= dict.fromkeys(fields[1].split(","), fields[2])
    return paths
