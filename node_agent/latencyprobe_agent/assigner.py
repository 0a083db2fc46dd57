"""The assignment of slots: the numbers of the engine's slots, and the target of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from latencyprobe_agent.desired import Desired, Selector
from latencyprobe_agent.kernel.contract import Engine, SlotSpec
from latencyprobe_agent.plan import (
    SlotKey,
    SlotTable,
    assignment,
    overcommitted,
    tenants_of,
    wanted_slots,
)
from latencyprobe_agent.targets.facts import TargetFacts


class SlotAssigner:
    """The slots in use, kept equal to the wanted ones."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._table = SlotTable()
        self._refused: Mapping[SlotKey, str] = {}
        self._assigned: Mapping[int, SlotSpec] | None = {}

    @property
    def numbers(self) -> Mapping[SlotKey, int]:
        """The slots in use."""
        return self._table.numbers

    def refusal(self, key: SlotKey) -> str | None:
        """Return the reason why it has no slot; None if it has one."""
        return self._refused.get(key)

    def assign(
        self, desired: Desired, facts: Mapping[Selector, TargetFacts], read: Callable[[], None]
    ) -> None:
        """Give each target a slot while slots are free; raise EngineError.

        A released slot is read once more after the kernel stops using it, and before another target
        gets its number.
        """
        refused = overcommitted(desired, facts, self._table.numbers, self._table.size)
        wanted = tuple(key for key in wanted_slots(desired, facts) if key not in refused)
        tenants = tenants_of(desired)
        self._table.release_all_but(wanted)
        if self._table.draining:
            self._assign(facts, tenants)
            read()
            self._table.drained()
        self._table.allot(wanted)
        self._refused = refused
        self._assign(facts, tenants)

    def assign_again(self) -> None:
        """Have the next `assign` reach the engine even if no slot has changed."""
        self._assigned = None

    def _assign(
        self, facts: Mapping[Selector, TargetFacts], tenants: Mapping[SlotKey, str]
    ) -> None:
        slots = assignment(self._table.numbers, facts, tenants)
        if slots != self._assigned:
            self._assigned = None
            self._engine.assign(slots)
            self._assigned = slots
