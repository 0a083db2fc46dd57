"""The tables by which programs find a socket's slots, in maps that stand in for the kernel's."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import CGROUPS, FILTER_PORTS, FILTERS, PROCESSES
from latencyprobe_agent.kernel.contract import EngineError, SlotSpec, SocketFilter
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps
from latencyprobe_agent.kernel.runtime.target_tables import TargetTables, entries_of

NAMES = (FILTERS.name, FILTER_PORTS.name, CGROUPS.name, PROCESSES.name)
CHILD = PROCESSES.key.pack(99)


class Kernel:
    """The maps by their descriptors, and the calls that change them, in their order."""

    def __init__(self) -> None:
        self.maps: dict[int, dict[bytes, bytes]] = {place: {} for place, _ in enumerate(NAMES)}
        self.calls: list[str] = []
        self.full: set[str] = set()

    def of(self, name: str) -> dict[bytes, bytes]:
        return self.maps[NAMES.index(name)]

    def update(self, descriptor: int, key: bytes, value: bytes) -> None:
        name = NAMES[descriptor]
        if name in self.full:
            raise libbpf.KernelRefusedError(errno.E2BIG, "write an entry")
        self.calls.append(f"write {name}")
        self.maps[descriptor][key] = value

    def delete(self, descriptor: int, key: bytes) -> bool:
        self.calls.append(f"erase {NAMES[descriptor]}")
        return self.maps[descriptor].pop(key, None) is not None

    def keys(self, descriptor: int, _key_bytes: int) -> Iterator[bytes]:
        return iter(tuple(self.maps[descriptor]))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    for name in ("update", "delete", "keys"):
        monkeypatch.setattr(libbpf, name, getattr(made, name))
    return made


@pytest.fixture
def tables(kernel: Kernel) -> TargetTables:
    return TargetTables(NamedMaps({name: place for place, name in enumerate(NAMES)}))


def of_cgroups(*numbers: int, port: int = 80) -> SlotSpec:
    return SlotSpec(cgroup_ids=frozenset(numbers), socket_filter=SocketFilter(frozenset({port})))


def test_the_maps_have_what_was_written_last(kernel: Kernel, tables: TargetTables) -> None:
    tables.write(entries_of({0: of_cgroups(5, 6), 1: SlotSpec(tgids=frozenset({7}))}))
    last = entries_of({0: of_cgroups(6, 8, port=81)})
    tables.write(last)
    for name in (FILTER_PORTS.name, CGROUPS.name, PROCESSES.name):
        assert kernel.of(name) == last[name]
    assert kernel.of(FILTERS.name).items() >= last[FILTERS.name].items()


def test_new_entries_are_written_before_old_ones_are_erased_and_others_are_left_alone(
    kernel: Kernel, tables: TargetTables
) -> None:
    tables.write(entries_of({0: of_cgroups(5, 6)}))
    kernel.calls.clear()
    tables.write(entries_of({0: of_cgroups(6, 8)}))
    assert kernel.calls == [f"write {CGROUPS.name}", f"erase {CGROUPS.name}"]


def test_entries_that_a_full_map_may_lack_are_written_again(
    kernel: Kernel, tables: TargetTables
) -> None:
    wanted = {0: of_cgroups(5, 6)}
    kernel.full.add(CGROUPS.name)
    with pytest.raises(EngineError, match=f"map {CGROUPS.name} with 2 new entries: "):
        tables.write(entries_of(wanted))
    kernel.full.clear()
    tables.write(entries_of(wanted))
    assert kernel.of(CGROUPS.name) == entries_of(wanted)[CGROUPS.name]


def test_entries_of_a_refused_write_are_erased_if_they_are_not_wanted_any_more(
    kernel: Kernel, tables: TargetTables
) -> None:
    kernel.full.add(PROCESSES.name)
    both = SlotSpec(cgroup_ids=frozenset({5}), tgids=frozenset({7}))
    with pytest.raises(EngineError, match=f"map {PROCESSES.name}"):
        tables.write(entries_of({0: both}))
    assert kernel.of(CGROUPS.name)
    kernel.full.clear()
    tables.write(entries_of({}))
    assert not kernel.of(CGROUPS.name)


def test_children_are_forgotten_and_named_processes_stay(
    kernel: Kernel, tables: TargetTables
) -> None:
    wanted = entries_of({0: SlotSpec(tgids=frozenset({7}))})
    tables.write(wanted)
    kernel.of(PROCESSES.name)[CHILD] = PROCESSES.value.pack(1)
    tables.forget_children()
    assert kernel.of(PROCESSES.name) == wanted[PROCESSES.name]
