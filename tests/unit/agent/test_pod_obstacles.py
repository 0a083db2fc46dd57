"""Obstacles of single pods: only targets in that pod's network namespace lack a part."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import (
    NETNS_OBSTACLES,
    SOCKET_MEMORY,
    SOCKET_MEMORY_PLACES,
    Obstacle,
)
from latencyprobe_agent.kernel.contract import (
    EngineError,
    LostPart,
    SlotSpec,
    SocketMemoryLimits,
    ThreadLimits,
)
from latencyprobe_agent.kernel.runtime.bounds import TargetBounds
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray, distance_of

HOST, ONE, OTHER, UNKNOWN = 1, 2, 3, 4
SLOTS = {
    1: SlotSpec(cgroup_ids=frozenset({1}), netns=frozenset({ONE})),
    2: SlotSpec(cgroup_ids=frozenset({2}), netns=frozenset({OTHER})),
    3: SlotSpec(netns_wide=frozenset({ONE})),
    4: SlotSpec(cgroup_ids=frozenset({4}), netns=frozenset({HOST})),
}
WAITING = {**SLOTS, 5: SlotSpec(cgroup_ids=frozenset({5}), any_netns=True)}


class Programs:
    """The programs' side of the map `netns_obstacles`."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def meet(self, obstacle: Obstacle, inum: int, kind: bytes = b"") -> None:
        """As note_obstacle_in()."""
        key = NETNS_OBSTACLES.key.pack(inum << 32 | obstacle)
        self.entries.setdefault(key, kind.ljust(NETNS_OBSTACLES.value.size, b"\0"))

    def look_up(self, name: str, key: bytes, value_bytes: int) -> bytes | None:
        assert (name, value_bytes) == (NETNS_OBSTACLES.name, NETNS_OBSTACLES.value.size)
        return self.entries.get(key)

    def erase(self, name: str, keys: Iterable[bytes]) -> Collection[bytes]:
        assert name == NETNS_OBSTACLES.name
        return [key for key in keys if self.entries.pop(key, None) is not None]

    def keys(self, name: str, key_bytes: int) -> set[bytes]:
        assert (name, key_bytes) == (NETNS_OBSTACLES.name, NETNS_OBSTACLES.key.size)
        return set(self.entries)


@pytest.fixture
def programs() -> Programs:
    return Programs()


@pytest.fixture
def bounds(programs: Programs) -> TargetBounds:
    return following(programs, TargetBounds(SocketMemoryLimits(), ThreadLimits()))


def following(programs: Programs, bounds: TargetBounds) -> TargetBounds:
    """The bounds with an object of these programs."""
    memory = MappedArray(
        bytearray(SOCKET_MEMORY_PLACES * distance_of(SOCKET_MEMORY)), SOCKET_MEMORY
    )
    bounds.follow(memory, lambda: False, None, programs)
    bounds.admit(SLOTS, SLOTS)
    return bounds


def lost_of(bounds: TargetBounds) -> dict[int, LostPart]:
    """The lost part of each slot that has one."""
    bounds.read(SLOTS, {})
    return {slot: part for slot, (part,) in bounds.lost_parts.items()}


@pytest.mark.parametrize(
    ("obstacle", "module", "reason"),
    [
        (Obstacle.XDP, Module.RX, "an XDP program on a pod's device copied: they are missing from"),
        (Obstacle.NO_DEPARTURE, Module.TX, "(macvlan, bpf_redirect_peer)"),
        (Obstacle.UNKNOWN_DEVICE, Module.TX, "of a kind that is not supported (mystery): "),
    ],
)
def test_an_obstacle_of_one_pod_is_a_lost_part_of_its_targets_alone(
    programs: Programs, bounds: TargetBounds, obstacle: Obstacle, module: Module, reason: str
) -> None:
    programs.meet(obstacle, ONE, b"mystery" if obstacle is Obstacle.UNKNOWN_DEVICE else b"")
    lost = lost_of(bounds)
    assert lost.keys() == {1, 3}
    for part in lost.values():
        assert reason in part.reason
        assert part.modules == {module}


def test_a_lost_part_stays_although_the_programs_meet_the_obstacle_no_more(
    programs: Programs, bounds: TargetBounds
) -> None:
    programs.meet(Obstacle.XDP, OTHER)
    before = lost_of(bounds)
    assert programs.entries == {}
    assert lost_of(bounds) == before
    bounds.leave()
    assert lost_of(following(Programs(), bounds)) == before
    assert before.keys() == {2}


def test_an_obstacle_of_a_pod_that_is_no_target_is_forgotten(
    programs: Programs, bounds: TargetBounds
) -> None:
    programs.meet(Obstacle.XDP, UNKNOWN)
    assert lost_of(bounds) == {}
    assert programs.entries == {}


def test_targets_that_may_be_anywhere_have_the_obstacles_of_namespaces_of_no_other(
    programs: Programs, bounds: TargetBounds
) -> None:
    bounds.admit(WAITING, WAITING)
    programs.meet(Obstacle.XDP, ONE)
    assert lost_of(bounds).keys() == {1, 3}
    programs.meet(Obstacle.XDP, UNKNOWN)
    assert lost_of(bounds).keys() == {1, 3}
    bounds.read(WAITING, {})
    assert bounds.lost_parts.keys() == {1, 3, 5}


@pytest.mark.parametrize("call", ["keys", "look_up"])
def test_obstacles_while_the_map_cannot_be_read_are_reported_later(
    monkeypatch: pytest.MonkeyPatch, programs: Programs, bounds: TargetBounds, call: str
) -> None:
    programs.meet(Obstacle.XDP, ONE)

    def fails(*_: object) -> None:
        raise EngineError("map netns_obstacles: cannot read an entry (ENOMEM)")

    with monkeypatch.context() as patched:
        patched.setattr(programs, call, fails)
        assert lost_of(bounds) == {}
    assert lost_of(bounds).keys() == {1, 3}


def test_obstacles_of_newer_programs_are_left_out(programs: Programs, bounds: TargetBounds) -> None:
    programs.entries[NETNS_OBSTACLES.key.pack(ONE << 32 | 4711)] = bytes(8)
    assert lost_of(bounds) == {}
