"""The bytes of all maps, with all modules, a trace and 110 targets, by the kernel's own account.

Without BTF the states of sockets are in tables of a fixed size; those programs are loaded too.

The bytes on more CPUs are calculated, map by map, as the kernel counts them (array_map_mem_usage()
in kernel/bpf/arraymap.c, htab_map_mem_usage() in kernel/bpf/hashtab.c):

    bytes on N CPUs = bytes here + (N - CPUs here) x bytes a CPU

A CPU has a value of its own for each entry of a percpu array or hash, rounded up to 8 bytes. A hash
with room made ahead has one spare element for each CPU: 48 bytes of header, key and value rounded
up to 8 each. A pointer to it takes 8 more. The agent makes some arrays larger on more CPUs: the
tables of packets (`received_bits()`), and the last waits of each CPU. Other maps are the same on
any number.

The states of sockets with BTF are not in it: they come and go with the sockets, see `memory`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.memory import PODS
from bench.network import own_netns
from bench.outcome import Outcome
from bench.programs import MapMemory, maps_of
from bench.ratio import Spread, verdict
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import ENTERED, RECEIVED, RUN_NUMBERS, RUNS_OF_CPUS
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.load.cpus import cpu_numbers, received_bits
from latencyprobe_agent.kernel.runtime.engine import KernelEngine

DEFAULT_ROUNDS = 1
MANY_CPUS = 96
WITH_BTF, WITHOUT_BTF = "with BTF", "without BTF"
MOST_MIB: Mapping[str, float] = {WITH_BTF: 16, WITHOUT_BTF: 24}
_MIB = 1 << 20
_ALIGNED = 8
_ELEMENT = 48  # struct htab_elem, kernel/bpf/hashtab.c
_NO_PREALLOC = 1  # BPF_F_NO_PREALLOC, include/uapi/linux/bpf.h
_PERCPU = frozenset({"percpu_array", "percpu_hash", "lru_percpu_hash"})
_PACKETS = frozenset({RECEIVED, ENTERED})
_OF_EACH_CPU = frozenset({RUNS_OF_CPUS, RUN_NUMBERS})
# Any numbers: no namespace or cgroup has them.
_FIRST_NETNS, _FIRST_CGROUP = 1 << 20, 1 << 40
# In the table by map; smaller ones are in the sum alone.
_NOTABLE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Sizes:
    """The maps of one variant of the programs."""

    name: str
    maps: tuple[MapMemory, ...]

    @property
    def bytes(self) -> int:
        """The bytes that they take here."""
        return sum(each.bytes for each in self.maps)

    def bytes_on(self, cpus: int, here: int) -> int:
        """Return what they take on so many CPUs, where `here` is the number of this machine."""
        return sum(_bytes_on(each, cpus, here) for each in self.maps)


def _bytes_on(described: MapMemory, cpus: int, here: int) -> int:
    if described.name in _PACKETS:
        return described.bytes << received_bits(cpus) >> received_bits(here)
    if described.name in _OF_EACH_CPU:
        return described.bytes * cpus // here
    return described.bytes + (cpus - here) * bytes_a_cpu(described)


def bytes_a_cpu(described: MapMemory) -> int:
    """Return by how much each CPU makes a map grow by itself: see the formula above."""
    key, value = _rounded(described.key_bytes), _rounded(described.value_bytes)
    if described.type in _PERCPU:
        return described.max_entries * value
    if described.type == "hash" and not described.flags & _NO_PREALLOC:
        return _ELEMENT + key + value + _ALIGNED
    return 0


def _rounded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


async def run(rounds: int, progress: Progress) -> Outcome:
    """Load both variants of the programs; the bytes are the same in all rounds, or their median."""
    bar = progress.add_task("maps", total=rounds * len(MOST_MIB))
    found: dict[str, list[Sizes]] = {name: [] for name in MOST_MIB}
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as objects:
        for _ in range(rounds):
            for name in MOST_MIB:
                found[name].append(await _sizes(name, Path(objects)))
                progress.advance(bar)
    return _outcome(found, cpu_numbers())


async def _sizes(name: str, objects: Path) -> Sizes:
    engine = KernelEngine(
        host_netns=own_netns(), cache=ObjectCache(objects), typed=name == WITH_BTF
    )
    try:
        engine.assign(_targets())
        await engine.use(frozenset(Module), tracing=True)
        return Sizes(name, maps_of(os.getpid()))
    finally:
        await engine.close()


def _targets() -> Mapping[int, SlotSpec]:
    return {
        number: SlotSpec(
            cgroup_ids=frozenset({_FIRST_CGROUP + number}),
            netns=frozenset({_FIRST_NETNS + number}),
        )
        for number in range(PODS)
    }


def _outcome(found: Mapping[str, Sequence[Sizes]], here: int) -> Outcome:
    table = Table(title=f"All maps, for all modules, a trace and {PODS} targets: MiB")
    many = f"{MANY_CPUS} CPUs, calculated"
    for heading in ("programs", f"{here} CPUs, here", many, "target", ""):
        table.add_column(heading, justify="right" if "CPUs" in heading else "left")
    document: dict[str, object] = {"cpus": here, "targets": PODS}
    for name, sizes in found.items():
        spread = Spread.of(each.bytes / _MIB for each in sizes)
        on_many = Spread.of(each.bytes_on(MANY_CPUS, here) / _MIB for each in sizes).median
        most = MOST_MIB[name]
        is_met = max(spread.median, on_many) <= most
        table.add_row(
            name,
            f"{spread.median:.1f}",
            f"{on_many:.1f}",
            f"<= {most:g}",
            verdict(met=is_met),
        )
        document[name] = {
            "mib": spread.document(),
            f"mib_on_{MANY_CPUS}_cpus": round(on_many, 4),
            "target": most,
            "met": is_met,
            "maps": [
                {"name": each.name, "bytes": each.bytes, "bytes_a_cpu": bytes_a_cpu(each)}
                for each in _by_size(sizes[-1])
            ],
        }
    return Outcome((table, *(_maps_table(sizes[-1]) for sizes in found.values())), document)


def _maps_table(sizes: Sizes) -> Table:
    table = Table(title=f"The largest maps, {sizes.name}")
    for heading in ("map", "type", "entries", "KiB", "bytes a CPU"):
        table.add_column(heading, justify="left" if heading in {"map", "type"} else "right")
    for each in _by_size(sizes):
        if each.bytes >= _NOTABLE_BYTES:
            row = (each.max_entries, each.bytes >> 10, bytes_a_cpu(each))
            table.add_row(each.name, each.type, *(f"{number:,}" for number in row))
    return table


def _by_size(sizes: Sizes) -> list[MapMemory]:
    return sorted(sizes.maps, key=lambda each: each.bytes, reverse=True)
