"""Garbage collections that do not block the event loop for long.

A full collection goes through all objects: with 5,000 agents and 100,000 pods, for half a second.
Most garbage is freed without any collection, by its reference count.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

# The interpreter begins a collection of young objects when there are this many more than before,
# and a full one almost never.
_THRESHOLDS = (5_000, 5, 100_000)
_SECOND_GENERATION = 1
# Their figures are some 10,000 objects.
_REPORTS = 500
_FULL_S = 3600.0


def make_collections_rare() -> None:
    """Have the interpreter collect long-lived garbage almost never."""
    gc.set_threshold(*_THRESHOLDS)


class GarbageCollector:
    """Collections of the objects of an operator that has many agents. `clock`: monotonic seconds.

    Each report's figures replace those of the one before. So the number of objects does not grow,
    and the interpreter begins no collection until hundreds of thousands are young.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports = 0
        self._last_full = clock()

    def note_report(self) -> None:
        """Note that a report was taken in; now and then, collect the young objects, or all."""
        self._reports += 1
        if self._reports < _REPORTS:
            return
        self._reports = 0
        if self._clock() - self._last_full < _FULL_S:
            gc.collect(_SECOND_GENERATION)
        else:
            gc.collect()
            self._last_full = self._clock()

    def note_attached(self) -> None:
        """Leave all objects of this moment out of later collections: the agents have attached.

        They are freed as before when the last reference goes. One that becomes part of a cycle
        of garbage stays. So this is done once: at most the memory of this moment is lost.
        """
        gc.collect(_SECOND_GENERATION)
        gc.freeze()
