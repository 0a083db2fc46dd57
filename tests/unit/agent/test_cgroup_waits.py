"""The cgroups that targets waited for, from a map that the test fills."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from latencyprobe_agent.kernel.abi import (
    MAX_WAITS_FOR_CGROUPS,
    OWNER_BITS,
    U64,
    WAIT_FOR_CGROUP,
    WAITS_FOR_CGROUPS,
    Room,
)
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime.cgroup_waits import MOST_CGROUPS, CgroupWaits
from tests.unit.agent.slot_rooms import rooms_of


class Maps:
    """The map of a loaded object."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def look_up(self, name: str, key: bytes, value_bytes: int) -> bytes | None:
        """Return the value of one entry."""
        assert (name, value_bytes) == (WAITS_FOR_CGROUPS.name, U64.size)
        return self.entries.get(key)

    def erase(self, name: str, keys: Iterable[bytes]) -> Collection[bytes]:
        """Delete entries."""
        return [key for key in keys if self.entries.pop(key, None) is not None]

    def keys(self, name: str, key_bytes: int) -> set[bytes]:
        """Return all keys."""
        return set(self.entries)

    def wait(self, cgroup_id: int, ns: int, *slots: int) -> None:
        """Have threads of these slots wait so much longer for a cgroup."""
        owners = sum((slot + 1) << (place * OWNER_BITS) for place, slot in enumerate(slots))
        key = WAIT_FOR_CGROUP.packing.pack(owners, cgroup_id)
        (before,) = U64.unpack(self.entries.get(key, bytes(U64.size)))
        self.entries[key] = U64.pack(before + ns)


def test_waits_are_growth_since_the_last_reading() -> None:
    maps = Maps()
    waits = CgroupWaits(maps, rooms_of(Room.WAITS_FOR_CGROUPS))
    maps.wait(7, 100, 3)
    assert waits.take() == {3: {"waitedForCgroup.7": 100}}
    maps.wait(7, 20, 3)
    maps.wait(8, 5, 3)
    assert waits.take() == {3: {"waitedForCgroup.7": 20, "waitedForCgroup.8": 5}}


def test_waits_of_a_thread_of_several_targets_count_for_each() -> None:
    maps = Maps()
    maps.wait(7, 100, 3, 255)
    maps.wait(7, 1, 3)
    assert CgroupWaits(maps, rooms_of(Room.WAITS_FOR_CGROUPS)).take() == {
        3: {"waitedForCgroup.7": 101},
        255: {"waitedForCgroup.7": 100},
    }


def test_of_many_cgroups_those_with_the_longest_waits_have_a_name() -> None:
    maps = Maps()
    for cgroup_id in range(10, 30):
        maps.wait(cgroup_id, cgroup_id, 3)
    (named,) = CgroupWaits(maps, rooms_of(Room.WAITS_FOR_CGROUPS)).take().values()
    assert list(named.values()) == [29, 28, 27, 26]
    assert len(named) == MOST_CGROUPS


def test_a_pair_that_no_longer_grows_makes_room_and_may_come_again() -> None:
    maps = Maps()
    waits = CgroupWaits(maps, rooms_of(Room.WAITS_FOR_CGROUPS))
    maps.wait(7, 100, 3)
    waits.take()
    assert waits.take() == {}
    assert maps.entries == {}
    maps.wait(7, 9, 3)
    assert waits.take() == {3: {"waitedForCgroup.7": 9}}


@pytest.mark.parametrize("call", ["keys", "look_up"])
def test_growth_while_the_map_cannot_be_read_is_reported_later_and_once(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    maps = Maps()
    waits = CgroupWaits(maps, rooms_of(Room.WAITS_FOR_CGROUPS))
    maps.wait(7, 100, 3)
    waits.take()
    maps.wait(7, 20, 3)

    def fails(*_: object) -> None:
        raise EngineError("map waits_for_cgroups: cannot read an entry (ENOMEM)")

    with monkeypatch.context() as patched:
        patched.setattr(maps, call, fails)
        assert waits.take() == {}
    assert waits.take() == {3: {"waitedForCgroup.7": 20}}


def test_a_pair_that_was_erased_by_a_call_that_failed_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = Maps()
    waits = CgroupWaits(maps, rooms_of(Room.WAITS_FOR_CGROUPS))
    maps.wait(7, 100, 3)
    waits.take()

    def erases_and_fails(_: str, keys: Iterable[bytes]) -> Collection[bytes]:
        for key in keys:
            del maps.entries[key]
        raise EngineError("map waits_for_cgroups: cannot delete an entry (ENOMEM)")

    with monkeypatch.context() as patched:
        patched.setattr(maps, "erase", erases_and_fails)
        assert waits.take() == {}
    maps.wait(7, 9, 3)
    assert waits.take() == {3: {"waitedForCgroup.7": 9}}


def test_a_target_with_very_many_cgroups_leaves_room_to_one_that_comes_later() -> None:
    maps = Maps()
    waits = CgroupWaits(maps, rooms_of(Room.WAITS_FOR_CGROUPS))
    waits.admit((3,), (3,))
    for cgroup_id in range(1, MAX_WAITS_FOR_CGROUPS + 1):
        maps.wait(cgroup_id, cgroup_id, 3)
    waits.take()
    assert len(maps.entries) == MAX_WAITS_FOR_CGROUPS
    waits.admit((4,), (3, 4))
    for cgroup_id in range(1, MAX_WAITS_FOR_CGROUPS + 1):
        maps.wait(cgroup_id, cgroup_id, 3)
    (named,) = waits.take().values()
    assert list(named.values()) == [MAX_WAITS_FOR_CGROUPS - place for place in range(MOST_CGROUPS)]
    assert len(maps.entries) <= MAX_WAITS_FOR_CGROUPS * 3 // 4
    left = {WAIT_FOR_CGROUP.packing.unpack(key)[1] for key in maps.entries}
    assert min(left) > MAX_WAITS_FOR_CGROUPS - len(left)
