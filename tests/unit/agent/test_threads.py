"""The places of threads, in a table that a test fills as the kernel would."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import (
    THREAD,
    THREAD_SHARE,
    THREAD_SHARE_PLACES,
    THREADS,
    THREADS_FOR_ALL,
)
from latencyprobe_agent.kernel.contract import EngineError, ThreadLimits
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray, distance_of, signed
from latencyprobe_agent.kernel.runtime.threads import Threads, lost_waits

LIMITS = ThreadLimits(of_target=40, of_node=120)
SHOP, BANK, FARM = "shop", "bank", "farm"


class Kernel:
    """The programs' side: the map `threads`, and their part of `thread_shares`."""

    def __init__(self) -> None:
        self.table = MappedArray(
            bytearray(THREAD_SHARE_PLACES * distance_of(THREAD_SHARE)), THREAD_SHARE
        )
        self.threads: dict[bytes, bytes] = {}

    def look_up(self, name: str, key: bytes, value_bytes: int) -> bytes | None:
        assert (name, value_bytes) == (THREADS.name, THREAD.size)
        return self.threads.get(key)

    def erase(self, name: str, keys: Iterable[bytes]) -> Collection[bytes]:
        assert name == THREADS.name
        return [key for key in keys if self.threads.pop(key, None) is not None]

    def keys(self, name: str, key_bytes: int) -> set[bytes]:
        assert (name, key_bytes) == (THREADS.name, THREADS.key.size)
        return set(self.threads)

    def taken(self, place: int) -> int:
        return signed(self.table.get(place, "threads") - self.table.get(place, "forgotten"))

    def meet(self, slot: int, number: int = 1) -> int:
        """New threads of a slot, as create_thread() does; return how many were lost."""
        lost = 0
        for _ in range(number):
            share = self.table.get(slot, "share")
            if not self._has_place(share):
                share = THREADS_FOR_ALL
            if not (self._has_place(slot) and self._has_place(share)):
                self.table.add(slot, "refused", 1)
                lost += 1
                continue
            for place in (slot, share):
                self.table.add(place, "threads", 1)
            tid = 1 + max((THREADS.key.unpack(key)[0] for key in self.threads), default=0)
            value = THREAD.packing.pack(1, slot + 1, 0, 0, slot, share, 0, bytes(32), bytes(80))
            self.threads[THREADS.key.pack(tid)] = value
        return lost

    def _has_place(self, place: int) -> bool:
        return self.taken(place) < self.table.get(place, "most")


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def threads(kernel: Kernel) -> Threads:
    return Threads(kernel, kernel.table, LIMITS)


def test_without_tenants_the_table_is_for_all(kernel: Kernel, threads: Threads) -> None:
    threads.admit([1, 2, 3, 4], dict.fromkeys((1, 2, 3, 4), ""))
    assert [kernel.meet(slot, 50) for slot in (1, 2, 3)] == [10, 10, 10]


def test_a_tenant_that_takes_all_it_can_leaves_another_one_its_share(
    kernel: Kernel, threads: Threads
) -> None:
    tenants = {1: SHOP, 2: SHOP, 3: SHOP, 4: SHOP, 5: BANK}
    threads.admit(tenants, tenants)
    assert sum(kernel.meet(slot, 40) for slot in (1, 2, 3, 4)) == 160 - 20 - 60
    assert kernel.meet(5, 20) == 0
    assert kernel.meet(5, 1) == 1


def test_a_tenant_that_comes_has_its_share_however_many_threads_others_had_before(
    kernel: Kernel, threads: Threads
) -> None:
    threads.admit([1, 2, 3], {1: SHOP, 2: SHOP, 3: SHOP})
    assert sum(kernel.meet(slot, 40) for slot in (1, 2, 3)) == 120 - 30 - 60
    assert len(kernel.threads) == 90
    threads.admit([4], {1: SHOP, 2: SHOP, 3: SHOP, 4: BANK})
    assert len(kernel.threads) == 80
    assert kernel.meet(4, 20) == 0
    threads.admit([5], {1: SHOP, 2: SHOP, 3: SHOP, 4: BANK, 5: FARM})
    assert len(kernel.threads) == 60 + 15 + 15
    assert kernel.meet(5, 15) == 0
    assert sum(kernel.taken(slot) for slot in (1, 2, 3, 4, 5)) == len(kernel.threads)


def test_threads_of_slots_that_are_gone_take_no_place(kernel: Kernel, threads: Threads) -> None:
    threads.admit([1, 2], {1: SHOP, 2: BANK})
    kernel.meet(1, 40)
    kernel.meet(2, 10)
    threads.admit([], {2: BANK})
    assert threads.gone_slots == {1}
    threads.forget_gone()
    assert not threads.gone_slots
    assert (kernel.taken(1), kernel.taken(2), len(kernel.threads)) == (0, 10, 10)
    assert kernel.taken(THREADS_FOR_ALL) == 0


def test_threads_that_cannot_be_forgotten_now_are_forgotten_with_the_next_change(
    kernel: Kernel, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads.admit([1, 2], {1: SHOP, 2: BANK})
    kernel.meet(1, 40)

    def fails(*_: object) -> None:
        raise EngineError("map threads: cannot read the keys of a map (ENOMEM)")

    with monkeypatch.context() as patched:
        patched.setattr(kernel, "keys", fails)
        threads.admit([], {2: BANK})
        threads.forget_gone()
    assert threads.gone_slots == {1}
    threads.forget_gone()
    assert not threads.gone_slots
    assert (kernel.taken(1), len(kernel.threads)) == (0, 0)


def test_threads_of_a_slot_that_is_another_tenants_are_forgotten(
    kernel: Kernel, threads: Threads
) -> None:
    threads.admit([1], {1: SHOP})
    kernel.meet(1, 40)
    shop = kernel.table.get(1, "share")
    threads.admit([], {1: BANK})
    threads.forget_gone()
    assert (kernel.taken(1), kernel.taken(shop), len(kernel.threads)) == (0, 0, 0)
    assert kernel.table.get(1, "share") != shop


def test_a_thread_that_a_program_forgot_first_is_not_forgotten_twice(
    kernel: Kernel, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads.admit([1, 2], {1: SHOP, 2: BANK})
    kernel.meet(1, 10)
    share, look_up = kernel.table.get(1, "share"), kernel.look_up

    def look_up_and_end(name: str, key: bytes, value_bytes: int) -> bytes | None:
        value = look_up(name, key, value_bytes)
        if len(kernel.threads) > 7:
            del kernel.threads[key]
            for place in (1, share):
                kernel.table.set(place, "threads", kernel.table.get(place, "threads") - 1)
        return value

    monkeypatch.setattr(kernel, "look_up", look_up_and_end)
    threads.admit([], {2: BANK})
    threads.forget_gone()
    assert (kernel.taken(1), kernel.taken(share)) == (0, 0)


def test_every_tenant_has_a_share_however_many_came_before(
    kernel: Kernel, threads: Threads
) -> None:
    for number in range(2000):
        threads.admit([1], {1: f"tenant-{number}"})
        threads.forget_gone()
        assert kernel.meet(1, 3) == 0
        assert kernel.table.get(1, "share") > THREADS_FOR_ALL
    assert len(kernel.threads) == 3


def test_a_slot_says_that_threads_were_lost_in_the_reading_after_it(
    kernel: Kernel, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    threads.admit([1, 2], {1: SHOP, 2: BANK})
    kernel.meet(1, 41)
    threads.read([1, 2])
    assert threads.full_slots == {1}
    threads.read([1, 2])
    assert not threads.full_slots
    lost = lost_waits(LIMITS)
    assert lost.modules == {Module.SCHED}
    assert caplog.messages == [lost.reason]
    assert lost.reason.endswith("40 a target, 120 a node, shared by namespaces")
