"""The current spec of a probe, and how long it is to measure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from latencyprobe_operator.api.spec import (
    ProbeKey,
    ProbeSpec,
    SpecError,
    generation_of,
    read_probe,
)
from latencyprobe_operator.api.status_fields import Phase
from latencyprobe_operator.api.timestamps import epoch_s, timestamp
from latencyprobe_operator.probes.facts import Problem

log = logging.getLogger(__name__)

_WITHOUT_SPEC_INTERVAL_S = 60.0


class CurrentSpec:
    """The spec of a probe as it is now. Times are seconds since the epoch."""

    def __init__(self, key: ProbeKey, start_time: str | None) -> None:
        self.generation = -1
        self.spec: ProbeSpec | None = None
        self.problem: Problem | None = None
        """The reason why the object has no valid spec."""
        self.start_time = start_time
        """The API's timestamp of the begin of measuring."""
        self._key = key

    @property
    def interval_s(self) -> float:
        """Return the interval of the status."""
        return self.spec.interval_s if self.spec else _WITHOUT_SPEC_INTERVAL_S

    def read(self, body: Mapping[str, Any]) -> bool:
        """Read the object; return whether it is a new generation, hence a new spec."""
        generation = generation_of(body)
        if generation == self.generation:
            return False
        self.generation = generation
        try:
            self.spec, self.problem = read_probe(body), None
        except SpecError as error:
            self.spec, self.problem = None, Problem(error.reason, str(error))
            log.warning("%s: %s", self._key, error)
        return True

    def begin(self, now: float) -> None:
        """Note that measuring has begun, unless it had before."""
        if not self.start_time:
            self.start_time = timestamp(now)

    def remaining_s(self, now: float) -> float | None:
        """Return the time to the end of spec.duration; None if it has no end or has not begun."""
        if not self.spec or self.spec.duration_s is None or not self.start_time:
            return None
        return epoch_s(self.start_time) + self.spec.duration_s - now

    def idle_phase(self, now: float) -> Phase | None:
        """Return SUSPENDED or COMPLETED if nothing is to be measured."""
        if self.spec and self.spec.suspend:
            return Phase.SUSPENDED
        remaining_s = self.remaining_s(now)
        return Phase.COMPLETED if remaining_s is not None and remaining_s <= 0 else None
