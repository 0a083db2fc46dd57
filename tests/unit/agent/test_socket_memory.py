"""The bound of the memory of sockets, on maps that a test fills as the kernel would."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import pairwise

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe_agent.kernel.abi import (
    MEMORY_FOR_ALL,
    MEMORY_OF_NODE,
    SOCKET_MEMORY,
    SOCKET_MEMORY_PLACES,
)
from latencyprobe_agent.kernel.contract import SocketMemoryLimits
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray, distance_of, signed
from latencyprobe_agent.kernel.runtime.socket_memory import SocketMemory, full
from latencyprobe_agent.kernel.runtime.tenant_shares import divide

LIMITS = SocketMemoryLimits(of_target=1024, of_node=4096)
NODE = MEMORY_OF_NODE
SLOT = 7


class Kernel:
    """The programs' side of the map `socket_memory`; `count` is the iterator's effect."""

    def __init__(self) -> None:
        self.table = MappedArray(
            bytearray(SOCKET_MEMORY_PLACES * distance_of(SOCKET_MEMORY)), SOCKET_MEMORY
        )
        self.count: Callable[[], bool] = lambda: False
        self.counts = 0

    def count_sockets(self) -> bool:
        self.counts += 1
        return self.count()

    def add(self, place: int, *, udp_kib: int = 0, tcp_kib: int = 0) -> None:
        """Charge sockets, or end some of TCP."""
        self.table.add(place, "kib", tcp_kib + udp_kib)
        self.table.add(place, "unreported_kib", udp_kib)

    def find(self, place: int, kib: int) -> None:
        """Have the present count see so much."""
        self.table.add(place, "counted_kib", kib)

    def refuse(self, place: int) -> None:
        self.table.add(place, "refused", 1)

    def used(self, place: int) -> int:
        """What programs take as in use."""
        return signed(self.table.get(place, "kib") - self.table.get(place, "gone_kib"))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def memory(kernel: Kernel) -> SocketMemory:
    made = SocketMemory(kernel.table, kernel.count_sockets, LIMITS)
    made.admit([SLOT], {SLOT: ""})
    return made


def test_a_slot_begins_empty_and_with_another_user_each_time(
    kernel: Kernel, memory: SocketMemory
) -> None:
    table = kernel.table
    assert table.get(NODE, "most_kib") == LIMITS.of_node
    first = table.get(SLOT, "since")
    assert (kernel.used(SLOT), table.get(SLOT, "most_kib")) == (0, LIMITS.of_target)
    kernel.add(SLOT, tcp_kib=900)
    kernel.refuse(SLOT)
    memory.admit([SLOT], {SLOT: ""})
    assert kernel.used(SLOT) == 0
    assert table.get(SLOT, "since") > first
    memory.read([SLOT])
    assert not memory.full_slots


def test_no_two_targets_of_a_slot_are_taken_for_one_however_many_there_were(
    kernel: Kernel, memory: SocketMemory
) -> None:
    admitted = kernel.table.get(NODE, "since")  # by a socket that stays open
    for _ in range(70_000):
        memory.admit([SLOT], {SLOT: ""})
        assert kernel.table.get(SLOT, "since") > admitted
    assert kernel.table.get(SLOT, "since") == kernel.table.get(NODE, "since")


def test_memory_is_full_for_a_reading_if_a_socket_was_refused_since_the_last(
    kernel: Kernel, memory: SocketMemory, caplog: pytest.LogCaptureFixture
) -> None:
    def found() -> tuple[bool, frozenset[int]]:
        memory.read([SLOT])
        return memory.is_full, memory.full_slots

    assert found() == (False, frozenset())
    kernel.refuse(SLOT)
    assert found() == (False, frozenset({SLOT}))
    assert found() == (False, frozenset())
    kernel.refuse(NODE)
    assert found() == (True, frozenset())
    assert found() == (False, frozenset())
    assert "1 MiB a target, 4 MiB a node" in caplog.text


def test_sockets_that_ended_without_a_report_are_counted_away(
    kernel: Kernel, memory: SocketMemory
) -> None:
    def count() -> bool:
        for place in (SLOT, NODE):
            kernel.find(place, 100)
            kernel.add(place, udp_kib=20)  # they came meanwhile
        return True

    kernel.count = count
    kernel.add(SLOT, udp_kib=500, tcp_kib=300)
    kernel.add(NODE, udp_kib=500, tcp_kib=400)
    memory.read([SLOT])
    assert (kernel.used(SLOT), kernel.used(NODE)) == (420, 520)
    kernel.count = lambda: False
    memory.read([SLOT])
    assert (kernel.used(SLOT), kernel.used(NODE)) == (420, 520)


def test_charges_of_programs_are_kept_while_the_agent_writes(
    kernel: Kernel, memory: SocketMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They add between any two accesses of the agent to an element."""
    share = kernel.table.get(SLOT, "share")
    kernel.count = lambda: True
    begun = 0
    write = kernel.table.set

    def interrupted(place: int, member: str, number: int) -> None:
        nonlocal begun
        if member not in ("kib", "unreported_kib"):
            begun += 1
            for each in (SLOT, NODE, share):
                kernel.add(each, tcp_kib=1)
        write(place, member, number)

    for each in (SLOT, NODE, share):
        kernel.add(each, udp_kib=3000)
    monkeypatch.setattr(kernel.table, "set", interrupted)
    for tenant in ("", "shop"):
        memory.admit([], {SLOT: tenant})
        memory.read([SLOT])
    assert begun > 10
    assert kernel.used(NODE) == begun
    assert kernel.used(SLOT) == begun
    assert kernel.used(share) == begun


def test_each_count_has_another_number_that_is_never_0(
    kernel: Kernel, memory: SocketMemory
) -> None:
    numbers = []
    kernel.add(SLOT, udp_kib=500, tcp_kib=300)
    for _ in range(600):
        memory.read([SLOT])
        numbers.append(kernel.table.get(NODE, "count"))
    assert 0 not in numbers
    assert all(one != other for one, other in pairwise(numbers))
    assert max(numbers) <= 0xFF


@pytest.mark.parametrize(
    ("kib", "unreported"), [(512, 500), (800, 0)], ids=["half is free", "all ends are reported"]
)
def test_nothing_is_counted_without_need(
    kernel: Kernel, memory: SocketMemory, kib: int, unreported: int
) -> None:
    kernel.add(SLOT, udp_kib=unreported, tcp_kib=kib - unreported)
    memory.read([SLOT])
    assert kernel.counts == 0


@pytest.mark.parametrize("fails", [False, True], ids=["no iterator", "no descriptor"])
def test_without_a_count_the_sums_stay(kernel: Kernel, memory: SocketMemory, fails: bool) -> None:
    def count() -> bool:
        if fails:
            raise OSError(errno.EMFILE, "too many open files")
        return False

    kernel.count = count
    kernel.add(SLOT, udp_kib=500, tcp_kib=300)
    memory.read([SLOT])
    assert kernel.used(SLOT) == 800


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
    assert divide(4096, tenants) == (own, for_all)


def test_slots_of_a_tenant_have_one_share_and_others_have_theirs(
    kernel: Kernel, memory: SocketMemory
) -> None:
    memory.admit([1, 2, 3], {1: "shop", 2: "shop", 3: "bank"})
    shop, bank = kernel.table.get(1, "share"), kernel.table.get(3, "share")
    assert kernel.table.get(2, "share") == shop != bank
    assert [kernel.table.get(place, "most_kib") for place in (shop, bank)] == [682, 682]
    assert kernel.table.get(MEMORY_FOR_ALL, "most_kib") == 2048


def test_a_tenant_that_comes_back_has_the_share_that_its_sockets_are_in(
    kernel: Kernel, memory: SocketMemory
) -> None:
    table = kernel.table
    memory.admit([1], {1: "shop"})
    shop, since = table.get(1, "share"), table.get(table.get(1, "share"), "since")
    kernel.add(shop, tcp_kib=5)
    memory.admit([2], {2: "bank"})
    assert table.get(2, "share") != shop
    assert (kernel.used(shop), table.get(shop, "most_kib")) == (5, 0)
    memory.admit([3], {2: "bank", 3: "shop"})
    assert table.get(3, "share") == shop
    assert (kernel.used(shop), table.get(shop, "most_kib")) == (5, 682)
    assert table.get(shop, "since") == since
    memory.admit([], {2: "bank", 3: "bank"})
    assert table.get(3, "share") == table.get(2, "share")


def test_every_tenant_has_a_share_though_the_sockets_of_all_before_are_open(
    kernel: Kernel, memory: SocketMemory
) -> None:
    table = kernel.table
    for number in range(3000):
        memory.admit([SLOT], {SLOT: f"tenant-{number}"})
        share = table.get(SLOT, "share")
        assert share > MEMORY_FOR_ALL
        assert (kernel.used(share), table.get(share, "most_kib")) == (0, 1024)
        assert table.get(share, "since") <= table.get(NODE, "since")
        kernel.add(share, udp_kib=3, tcp_kib=2)


def test_a_tenant_has_its_share_though_eight_before_it_have_used_up_theirs(
    kernel: Kernel, memory: SocketMemory
) -> None:
    table = kernel.table
    kernel.add(MEMORY_FOR_ALL, tcp_kib=LIMITS.of_node // 2)
    kernel.add(NODE, tcp_kib=LIMITS.of_node // 2)
    tenants: dict[int, str] = {}
    for slot in range(9):
        tenants[slot] = f"tenant-{slot}"
        memory.admit([slot], tenants)
        share = table.get(slot, "share")
        own = table.get(share, "most_kib")
        assert kernel.used(NODE) + own <= table.get(NODE, "most_kib")
        kernel.add(share, tcp_kib=own)
        kernel.add(NODE, tcp_kib=own)


def test_sums_of_shares_are_corrected_with_those_of_their_slots(
    kernel: Kernel, memory: SocketMemory
) -> None:
    places = (SLOT, NODE, kernel.table.get(SLOT, "share"))

    def count() -> bool:
        for place in places:
            kernel.find(place, 100)
        return True

    kernel.count = count
    for place in places:
        kernel.add(place, udp_kib=500, tcp_kib=300)
    memory.read([SLOT])
    assert [kernel.used(place) for place in places] == [400, 400, 400]


def test_sockets_that_a_tenant_without_targets_keeps_open_are_not_counted_for_ever(
    kernel: Kernel, memory: SocketMemory
) -> None:
    memory.admit([1], {1: "shop"})
    kernel.add(kernel.table.get(1, "share"), udp_kib=5)
    memory.admit([2], {2: "bank"})
    for _ in range(3):
        memory.read([2])

    assert kernel.counts == 0


def test_counts_that_take_long_are_far_apart(kernel: Kernel) -> None:
    now = [0.0]
    memory = SocketMemory(kernel.table, kernel.count_sockets, LIMITS, clock=lambda: now[0])
    memory.admit([SLOT], {SLOT: ""})

    def count() -> bool:
        now[0] += 0.2
        return False

    kernel.count = count
    kernel.add(SLOT, udp_kib=500, tcp_kib=300)
    for _ in range(100):
        memory.read([SLOT])
        now[0] += 1

    assert 5 <= kernel.counts <= 11
