"""The bound of the memory of sockets, on maps that a test fills as the kernel would."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe_agent.kernel.abi import (
    MEMORY_FOR_ALL,
    MEMORY_OF_NODE,
    SOCKET_MEMORIES,
    SOCKET_MEMORY,
)
from latencyprobe_agent.kernel.contract import SocketMemoryLimits
from latencyprobe_agent.kernel.runtime.socket_memory import SocketMemory, full, shares_kib

LIMITS = SocketMemoryLimits(of_target=1024, of_node=4096)
NODE = MEMORY_OF_NODE
SLOT = 7
MEMBERS = ("kib", "most_kib", "unreported_kib", "counted_kib", "tenant", "refused", "share")


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
    made.admit([SLOT], {SLOT: ""})
    return made


def test_a_slot_begins_empty_and_with_another_tenant_each_time(
    maps: Maps, memory: SocketMemory
) -> None:
    assert maps.get(NODE)["most_kib"] == LIMITS.of_node
    first = maps.get(SLOT)
    assert (first["kib"], first["most_kib"]) == (0, LIMITS.of_target)
    maps.set(SLOT, kib=900, refused=3)
    memory.admit([SLOT], {SLOT: ""})
    again = maps.get(SLOT)
    assert (again["kib"], again["refused"]) == (0, 0)
    assert again["tenant"] != first["tenant"]


def test_memory_is_full_for_a_reading_if_a_socket_was_refused_since_the_last(
    maps: Maps, memory: SocketMemory, caplog: pytest.LogCaptureFixture
) -> None:
    def found() -> tuple[bool, frozenset[int]]:
        memory.read([SLOT])
        return memory.is_full, memory.full_slots

    assert found() == (False, frozenset())
    maps.set(SLOT, refused=1)
    assert found() == (False, frozenset({SLOT}))
    assert found() == (False, frozenset())
    maps.set(NODE, refused=1)
    assert found() == (True, frozenset())
    assert found() == (False, frozenset())
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


@pytest.mark.parametrize(
    ("tenants", "own", "for_all"),
    [({""}, 4096, 4096), ({"a"}, 1024, 2048), ({"a", "b"}, 682, 2048), ({"", "a", "b"}, 512, 2048)],
)
def test_half_of_a_nodes_memory_is_the_tenants_own(
    tenants: set[str], own: int, for_all: int
) -> None:
    assert shares_kib(4096, tenants) == (own, for_all)


def test_slots_of_a_tenant_have_one_share_and_others_have_theirs(
    maps: Maps, memory: SocketMemory
) -> None:
    memory.admit([1, 2, 3], {1: "shop", 2: "shop", 3: "bank"})
    shop, bank = maps.get(1)["share"], maps.get(3)["share"]
    assert maps.get(2)["share"] == shop != bank
    assert [maps.get(place)["most_kib"] for place in (shop, bank)] == [682, 682]
    assert maps.get(MEMORY_FOR_ALL)["most_kib"] == 2048


def test_a_share_that_is_in_use_is_never_another_tenants(maps: Maps, memory: SocketMemory) -> None:
    memory.admit([1], {1: "shop"})
    shop = maps.get(1)["share"]
    maps.set(shop, kib=5)
    memory.admit([2], {2: "bank"})
    assert maps.get(2)["share"] != shop
    assert (maps.get(shop)["kib"], maps.get(shop)["most_kib"]) == (5, 0)
    memory.admit([3], {2: "bank", 3: "shop"})
    assert maps.get(3)["share"] == shop
    assert maps.get(shop)["most_kib"] == 682
    maps.set(shop, kib=0)
    memory.admit([], {2: "bank", 3: "bank"})
    assert maps.get(3)["share"] == maps.get(2)["share"]
    memory.admit([4], {2: "bank", 4: "farm"})
    assert maps.get(4)["share"] == shop


def test_sums_of_shares_are_corrected_with_those_of_their_slots(
    maps: Maps, memory: SocketMemory
) -> None:
    share = maps.get(SLOT)["share"]

    def count() -> bool:
        for place in (SLOT, NODE, share):
            maps.set(place, counted_kib=100)
        return True

    maps.count = count
    for place in (SLOT, NODE, share):
        maps.set(place, kib=800, unreported_kib=500)
    memory.read([SLOT])
    assert [maps.get(place)["kib"] for place in (SLOT, NODE, share)] == [400, 400, 400]


def test_sockets_that_a_tenant_without_targets_keeps_open_are_not_counted_for_ever(
    maps: Maps, memory: SocketMemory
) -> None:
    memory.admit([1], {1: "shop"})
    maps.set(maps.get(1)["share"], kib=5, unreported_kib=5)
    memory.admit([2], {2: "bank"})
    for _ in range(3):
        memory.read([2])

    assert maps.counts == 0


def test_counts_that_take_long_are_far_apart(maps: Maps) -> None:
    now = [0.0]
    memory = SocketMemory(maps, LIMITS, clock=lambda: now[0])
    memory.admit([SLOT], {SLOT: ""})

    def count() -> bool:
        now[0] += 0.2
        return False

    maps.count = count
    for _ in range(100):
        maps.set(SLOT, kib=800, unreported_kib=500)
        memory.read([SLOT])
        now[0] += 1

    assert 5 <= maps.counts <= 11
