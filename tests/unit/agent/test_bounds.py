"""The parts that a target lacks because of its own traffic."""

from __future__ import annotations

from latencyprobe.domain.measurement import Measurement
from latencyprobe_agent.kernel.contract import SlotSpec, SocketMemoryLimits, ThreadLimits
from latencyprobe_agent.kernel.runtime.bounds import TargetBounds

ONE, OTHER = SlotSpec(cgroup_ids=frozenset({1})), SlotSpec(cgroup_ids=frozenset({2}))
FRAGMENTS = Measurement(counters={"fragmentedPackets": 3})


def bounds_of(slots: dict[int, SlotSpec]) -> TargetBounds:
    """Bounds without an object, for these slots."""
    made = TargetBounds(SocketMemoryLimits(), ThreadLimits())
    made.admit(slots, slots)
    return made


def reasons(bounds: TargetBounds, slot: int) -> list[str]:
    return [part.reason for part in bounds.lost_parts.get(slot, ())]


def test_fragments_are_a_lost_part_of_their_own_target() -> None:
    slots = {1: ONE, 2: OTHER}
    bounds = bounds_of(slots)
    bounds.read(slots, {1: FRAGMENTS, 2: Measurement()})
    assert "in fragments" in reasons(bounds, 1)[0]
    assert reasons(bounds, 2) == []


def test_a_lost_part_stays_when_the_programs_are_replaced() -> None:
    slots = {1: ONE}
    bounds = bounds_of(slots)
    bounds.read(slots, {1: FRAGMENTS})
    bounds.leave()
    bounds.admit(slots, slots)
    bounds.read(slots, {})
    assert len(reasons(bounds, 1)) == 1


def test_a_slot_with_another_target_has_no_lost_part_of_the_one_before() -> None:
    bounds = bounds_of({1: ONE})
    bounds.read({1: ONE}, {1: FRAGMENTS})
    bounds.admit([1], {1: OTHER})
    bounds.read({1: OTHER}, {})
    assert reasons(bounds, 1) == []
