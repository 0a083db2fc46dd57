"""The bound of the memory of sockets, on maps that a test fills as the kernel would."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe_agent.kernel.abi import MAX_SLOTS, SOCKET_MEMORIES, SOCKET_MEMORY
from latencyprobe_agent.kernel.contract import SocketMemoryLimits
from latencyprobe_agent.kernel.runtime.socket_memory import SocketMemory, full

LIMITS = SocketMemoryLimits(of_target=1024, of_node=4096)
NODE = MAX_SLOTS
SLOT = 7
MEMBERS = ("kib", "most_kib", "unreported_kib", "counted_kib", "tenant", "refused")


class Maps:
    """The map `socket_memory`; `count` is the iterator's effect."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.count: Callable[[], bool] = lambda: False
        self.counts = 0

    def write(self, name: str, entries: Mapping[bytes, bytes]) -> None:
        assert name == SOCKET_MEMORIES.name
        self.entries.update(entries)

    def look_up(self, name: str, key: bytes, value_bytes: int) -> bytes | None:
        assert (name, value_bytes) == (SOCKET_MEMORIES.name, SOCKET_MEMORY.size)
        return self.entries.get(key)

    def iterate(self, function: str) -> bool:
        assert function == "on_socket_file"
        self.counts += 1
        return self.count()

    def get(self, place: int) -> dict[str, int]:
        packed = self.entries[SOCKET_MEMORIES.key.pack(place)]
        return dict(zip(MEMBERS, SOCKET_MEMORIES.value.unpack(packed), strict=True))

    def set(self, place: int, **members: int) -> None:
        values = self.get(place) | members
        key, value = SOCKET_MEMORIES.key, SOCKET_MEMORIES.value
        self.entries[key.pack(place)] = value.pack(*(values[name] for name in MEMBERS))


@pytest.fixture
def maps() -> Maps:
    return Maps()


@pytest.fixture
def memory(maps: Maps) -> SocketMemory:
    made = SocketMemory(maps, LIMITS)
    made.admit([SLOT])
    return made


def test_a_slot_begins_empty_and_with_another_tenant_each_time(
    maps: Maps, memory: SocketMemory
) -> None:
    assert maps.get(NODE)["most_kib"] == LIMITS.of_node
    first = maps.get(SLOT)
    assert (first["kib"], first["most_kib"]) == (0, LIMITS.of_target)
    maps.set(SLOT, kib=900, refused=3)
    memory.admit([SLOT])
    again = maps.get(SLOT)
    assert (again["kib"], again["refused"]) == (0, 0)
    assert again["tenant"] != first["tenant"]


def test_memory_is_full_for_a_reading_if_a_socket_was_refused_since_the_last(
    maps: Maps, memory: SocketMemory, caplog: pytest.LogCaptureFixture
) -> None:
    def is_full() -> bool:
        memory.read([SLOT])
        return memory.is_full

    assert not is_full()
    for place in (SLOT, NODE):
        maps.set(place, refused=1)
        assert is_full()
        assert not is_full()
    assert "1 MiB a target, 4 MiB a node" in caplog.text


def test_sockets_that_ended_without_a_report_are_counted_away(
    maps: Maps, memory: SocketMemory
) -> None:
    def count() -> bool:
        maps.set(SLOT, counted_kib=100, kib=820, unreported_kib=520)  # 20 came meanwhile
        maps.set(NODE, counted_kib=100, kib=920, unreported_kib=520)
        return True

    maps.count = count
    maps.set(SLOT, kib=800, unreported_kib=500)
    maps.set(NODE, kib=900, unreported_kib=500)
    memory.read([SLOT])
    assert (maps.get(SLOT)["kib"], maps.get(SLOT)["unreported_kib"]) == (420, 120)
    assert (maps.get(NODE)["kib"], maps.get(NODE)["unreported_kib"]) == (520, 120)


def test_each_count_has_another_number_that_is_never_0(maps: Maps, memory: SocketMemory) -> None:
    numbers = []
    for _ in range(600):
        maps.set(SLOT, kib=800, unreported_kib=500)
        memory.read([SLOT])
        numbers.append(maps.get(NODE)["tenant"])
    assert 0 not in numbers
    assert all(one != other for one, other in pairwise(numbers))
    assert max(numbers) <= 0xFF


@pytest.mark.parametrize(
    ("kib", "unreported"), [(512, 500), (800, 0)], ids=["half is free", "all ends are reported"]
)
def test_nothing_is_counted_without_need(
    maps: Maps, memory: SocketMemory, kib: int, unreported: int
) -> None:
    maps.set(SLOT, kib=kib, unreported_kib=unreported)
    memory.read([SLOT])
    assert maps.counts == 0


@pytest.mark.parametrize("fails", [False, True], ids=["no iterator", "no descriptor"])
def test_without_a_count_the_sums_stay(maps: Maps, memory: SocketMemory, fails: bool) -> None:
    def count() -> bool:
        if fails:
            raise OSError(errno.EMFILE, "too many open files")
        return False

    maps.count = count
    maps.set(SLOT, kib=800, unreported_kib=500)
    memory.read([SLOT])
    assert maps.get(SLOT)["kib"] == 800


def test_full_memory_makes_the_stages_of_sockets_partial_and_no_others() -> None:
    coverage = (
        StageCoverage("rx.total", CoverageState.ACTIVE, "tp_btf/tcp_probe"),
        StageCoverage("tx.total", CoverageState.PARTIAL, reason="no hook"),
        StageCoverage("tcp.accept", CoverageState.UNAVAILABLE, reason="no hook"),
        StageCoverage("irq.hard", CoverageState.ACTIVE),
    )
    received, sent, accept, irq = full(coverage, LIMITS)
    assert received.state is CoverageState.PARTIAL
    assert received.reason.startswith("some packets are counted as lost")
    assert sent.reason.startswith("no hook; some packets are counted as lost")
    assert (accept, irq) == coverage[2:]
