"""eBPF programs and maps of a process, from the kernel's description of its descriptors.

/proc/PID/fdinfo has all facts, for any process; the names in our code play no part.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.outcome import CannotMeasureError
from latencyprobe_agent.kernel import libbpf

_RETURN_0 = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
_READ_CLOCK = bytes.fromhex("8500000005000000")  # call bpf_ktime_get_ns
_TRACING_TYPES = frozenset({"tracing", "raw_tracepoint", "tracepoint", "kprobe"})


@dataclass(frozen=True, slots=True)
class RunTime:
    """The number of runs of a program, and their total time."""

    runs: int
    nanoseconds: int

    def __sub__(self, other: RunTime) -> RunTime:
        return RunTime(self.runs - other.runs, self.nanoseconds - other.nanoseconds)

    def __add__(self, other: RunTime) -> RunTime:
        return RunTime(self.runs + other.runs, self.nanoseconds + other.nanoseconds)

    @property
    def per_run(self) -> float:
        """Nanoseconds of one run; 0 where there was none."""
        return self.nanoseconds / self.runs if self.runs else 0.0


def descriptors(pid: int) -> list[Mapping[str, str]]:
    """Return the fields of each descriptor of a process that is a program, a link or a map."""
    found: list[Mapping[str, str]] = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue  # closed since the listing
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if fields.keys() & {"prog_id", "map_id"}:
            found.append(fields)
    return found


def links(pid: int) -> int:
    """Return the number of a process's links: of the places where its programs are attached."""
    return sum("link_id" in fields for fields in descriptors(pid))


def programs(pid: int) -> int:
    """Return the number of programs that a process has, attached or not."""
    return len(_program_ids(pid))


def run_times(*, without: Sequence[UnitProgram]) -> Mapping[str, RunTime]:
    """Return the run time of this process's programs by tracepoint, without the units of cost.

    Several programs on one tracepoint are added up.
    """
    units = {unit.id for unit in without}
    ours = descriptors(os.getpid())
    times = {
        fields["prog_id"]: RunTime(int(fields["run_cnt"]), int(fields["run_time_ns"]))
        for fields in ours
        if "run_cnt" in fields and int(fields["prog_id"]) not in units
    }
    found: dict[str, RunTime] = {}
    for fields in ours:
        if "tp_name" in fields and fields["prog_id"] in times:
            tracepoint = fields["tp_name"].strip()
            found[tracepoint] = found.get(tracepoint, RunTime(0, 0)) + times[fields["prog_id"]]
    return found


def runs() -> Mapping[str, int]:
    """Return the runs of all of this process's programs, of any kind, while the kernel counts.

    A program at a tracepoint goes by that name, another by its own. Several of one are added up.
    """
    ours = descriptors(os.getpid())
    names = {str(program["id"]): program.get("name", "") for program in _bpftool("prog")}
    names |= {each["prog_id"]: each["tp_name"].strip() for each in ours if "tp_name" in each}
    return added_runs(ours, names)


def added_runs(
    described: Iterable[Mapping[str, str]], names: Mapping[str, str]
) -> Mapping[str, int]:
    """Return the runs by name; `described`: the fields of descriptors, each program's at once."""
    counts = {each["prog_id"]: int(each["run_cnt"]) for each in described if "run_cnt" in each}
    found: dict[str, int] = {}
    for number, count in counts.items():
        name = names.get(number) or f"program {number}"
        found[name] = found.get(name, 0) + count
    return found


class UnitProgram:
    """A raw-tracepoint program with next to no code. Made by `unit_program`."""

    def __init__(self, program_fd: int) -> None:
        self._program_fd = program_fd
        self.id: int = libbpf.program_info(program_fd).id

    def run_time(self) -> RunTime:
        """Return its run time until now."""
        info = libbpf.program_info(self._program_fd)
        return RunTime(info.run_cnt, info.run_time_ns)


@contextmanager
def counting_runs() -> Iterator[None]:
    """Have the kernel count and time the runs of all programs."""
    statistics = libbpf.enable_run_time_statistics()
    try:
        yield
    finally:
        os.close(statistics)


@contextmanager
def unit_program(tracepoint: str, *, reads_clock: bool = False) -> Iterator[UnitProgram]:
    """Attach an empty program to a tracepoint, with the kernel's statistics on."""
    code = _READ_CLOCK + _RETURN_0 if reads_clock else _RETURN_0
    held: list[int] = []
    try:
        program = libbpf.load_program(
            "lpbench_unit", code, program_type=libbpf.PROG_TYPE_RAW_TRACEPOINT
        )
        held.append(program)
        held.append(libbpf.enable_run_time_statistics())
        held.append(libbpf.attach_raw_tracepoint(program, tracepoint))
        yield UnitProgram(program)
    finally:
        for descriptor in reversed(held):
            os.close(descriptor)


def foreign_programs() -> int:
    """Return the number of tracing programs of other processes."""
    ours = _program_ids(os.getpid())
    return sum(
        program["type"] in _TRACING_TYPES and program["id"] not in ours
        for program in _bpftool("prog")
    )


@dataclass(frozen=True, slots=True)
class KernelMemory:
    """The kernel memory of a process's programs, with their maps, also those handed over."""

    programs_bytes: int
    maps_bytes: int
    socket_bytes: int  # of the state of one socket, if there is any; it comes with sockets


@dataclass(frozen=True, slots=True)
class MapMemory:
    """A map as the kernel describes it. `bytes`: its memory, by the kernel's own account."""

    name: str
    type: str
    flags: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    bytes: int


def maps_of(pid: int) -> tuple[MapMemory, ...]:
    """Return the maps of a process's programs, with those that it handed over."""
    ids = _program_ids(pid)
    map_ids = {
        map_id
        for program in _bpftool("prog")
        if program["id"] in ids
        for map_id in program.get("map_ids", ())
    }
    return tuple(
        MapMemory(
            each.get("name", ""),
            each["type"],
            each["flags"],
            each["bytes_key"],
            each["bytes_value"],
            each["max_entries"],
            each["bytes_memlock"],
        )
        for each in _bpftool("map")
        if each["id"] in map_ids
    )


def kernel_memory(pid: int) -> KernelMemory:
    """Return the memory of a process's programs."""
    ids = _program_ids(pid)
    maps = maps_of(pid)
    return KernelMemory(
        sum(program["bytes_memlock"] for program in _bpftool("prog") if program["id"] in ids),
        sum(each.bytes for each in maps),
        sum(each.value_bytes for each in maps if each.type == "sk_storage"),
    )


def _program_ids(pid: int) -> set[int]:
    return {int(fields["prog_id"]) for fields in descriptors(pid) if "prog_id" in fields}


def _bpftool(kind: str) -> list[dict[str, Any]]:
    command = ["bpftool", kind, "show", "-j"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotMeasureError(f"{' '.join(command)}: {error}") from None
    found: list[dict[str, Any]] = json.loads(shown.stdout)
    return found
