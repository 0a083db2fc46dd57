"""The current spec of a probe, and how long it is to measure."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from latencyprobe_operator.api.conditions import ReadyReason, node_figures_refusal
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
from latencyprobe_operator.probes.measured_time import begin_of, longest_gap_s

log = logging.getLogger(__name__)

_WITHOUT_SPEC_INTERVAL_S = 60.0


def start_time_of(body: Mapping[str, Any], now: float, *, lease_s: float | None) -> str | None:
    """Return the timestamp of the begin of measuring, by the present clock; None before it.

    `lease_s`: see `longest_gap_s`.
    """
    try:
        interval_s = read_probe(body).interval_s
    except SpecError:
        interval_s = _WITHOUT_SPEC_INTERVAL_S
    most_s = longest_gap_s(lease_s, interval_s)
    return begin_of(body.get("status") or {}, now, most_s=most_s)


class CurrentSpec:
    """The spec of a probe as it is now. Times are seconds since the epoch."""

    def __init__(
        self,
        key: ProbeKey,
        start_time: str | None,
        *,
        min_interval_s: float = 0.0,
        node_figures: bool = False,
    ) -> None:
        self.generation = -1
        self.start_time = start_time
        """The API's timestamp of the begin of measuring."""
        self._key = key
        self._min_interval_s = min_interval_s
        self._node_figures = node_figures
        self._spec: ProbeSpec | None = None
        self._problem: Problem | None = None
        self._refusal: Problem | None = None

    @property
    def spec(self) -> ProbeSpec | None:
        """Return the spec to carry out; None if there is a problem."""
        return None if self.problem else self._spec

    @property
    def problem(self) -> Problem | None:
        """Return the reason why no spec is carried out."""
        return self._problem or self._refusal

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
            self._spec, self._problem = self._read(body), None
        except SpecError as error:
            self._spec, self._problem = None, Problem(error.reason, str(error))
            log.warning("%s: %s", self._key, error)
        return True

    def _read(self, body: Mapping[str, Any]) -> ProbeSpec:
        spec = replace(read_probe(body), node_figures=self._node_figures)
        if spec.interval_s < self._min_interval_s:
            raise SpecError(
                ReadyReason.ABOVE_LIMIT,
                f"spec.interval is {spec.interval_s:g} s; the administrator's minimum is "
                f"{self._min_interval_s:g} s",
            )
        if not spec.measured_modules:
            raise SpecError(
                ReadyReason.NODE_FIGURES_NOT_ALLOWED,
                node_figures_refusal(self._key.namespace),
            )
        return spec

    def refuse(self, message: str | None) -> bool:
        """Set the reason why the administrator's limits exclude this probe; None: they do not.

        Returns whether that has changed.
        """
        before = self._refusal
        self._refusal = Problem(ReadyReason.ABOVE_LIMIT, message) if message else None
        return self._refusal != before

    def begin(self, now: float) -> None:
        """Note that measuring has begun, unless it had before."""
        if not self.start_time:
            self.start_time = timestamp(now)

    def passed_s(self, now: float) -> float:
        """Return the time since the begin of measuring; 0 before it."""
        return max(now - epoch_s(self.start_time), 0.0) if self.start_time else 0.0

    def remaining_s(self, now: float) -> float | None:
        """Return the time to the end of spec.duration; None if it has no end or has not begun."""
        if not self.spec or self.spec.duration_s is None or not self.start_time:
            return None
        return epoch_s(self.start_time) + self.spec.duration_s - now

    def measured_s(self, now: float) -> int | None:
        """Return the part of spec.duration that has passed; None without, and while suspended."""
        remaining_s = self.remaining_s(now)
        if remaining_s is None or not self.spec or self.spec.suspend:
            return None
        duration_s = self.spec.duration_s or 0.0
        return math.ceil(min(max(duration_s - remaining_s, 0.0), duration_s))

    def idle_phase(self, now: float) -> Phase | None:
        """Return SUSPENDED or COMPLETED if nothing is to be measured."""
        if self.spec and self.spec.suspend:
            return Phase.SUSPENDED
        remaining_s = self.remaining_s(now)
        return Phase.COMPLETED if remaining_s is not None and remaining_s <= 0 else None
