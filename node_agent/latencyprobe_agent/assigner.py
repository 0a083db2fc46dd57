"""The assignment of slots: which numbers the engine measures in, and what it measures there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from latencyprobe_agent.desired import Desired, Selector
from latencyprobe_agent.kernel.contract import Engine, SlotSpec
from latencyprobe_agent.plan import SlotKey, SlotTable, assignment, overcommitted, wanted_slots
from latencyprobe_agent.targets.facts import TargetFacts


class SlotAssigner:
    """Keeps the engine's slots equal to the wanted ones."""

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
        """Return why there was no slot for it; None where that is not so."""
        return self._refused.get(key)

    def assign(
        self, desired: Desired, facts: Mapping[Selector, TargetFacts], read: Callable[[], None]
    ) -> None:
        """Give each target a slot as far as there is room; raises EngineError.

        A slot that is given up is read once more after the kernel has left it, before its number
        serves another target.
        """
        refused = overcommitted(desired, facts, self._table.numbers, self._table.size)
        wanted = tuple(key for key in wanted_slots(desired, facts) if key not in refused)
        self._table.release_all_but(wanted)
        if self._table.draining:
            self._tell_engine(facts)
            read()
            self._table.drained()
        self._table.allot(wanted)
        self._refused = refused
        self._tell_engine(facts)

    def _tell_engine(self, facts: Mapping[Selector, TargetFacts]) -> None:
        slots = assignment(self._table.numbers, facts)
        if slots != self._assigned:
            self._assigned = None
            self._engine.assign(slots)
            self._assigned = slots
