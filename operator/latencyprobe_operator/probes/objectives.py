"""Objectives: limits for percentiles of all pods together, and the time that one is exceeded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from latencyprobe.domain.attention import MIN_SAMPLES
from latencyprobe.domain.measurement import Measurement
from latencyprobe_operator.api.conditions import ConditionStatus, ConditionType
from latencyprobe_operator.api.spec import NamedObjective

# At the end of a message. As every figure in a message, it is no news.
_EXCEEDED = re.compile(r" \(exceeded for ([0-9]+) s of [^ ]+ s\)$")


class ObjectiveOutcome(StrEnum):
    """The outcome of one objective."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Judgement:
    """An objective's outcome, and the figures as a sentence, which begins with its name.

    `value_ns`: None if it is unknown.
    """

    outcome: ObjectiveOutcome
    message: str
    value_ns: int | None = None

    @property
    def name(self) -> str:
        """The objective's name, which has no colon."""
        return self.message.partition(": ")[0]

    @property
    def is_exceeded(self) -> bool:
        """Return True if it is met only because it has been exceeded for less than its `for`."""
        return bool(_EXCEEDED.search(self.message))


def missed_in(status: Mapping[str, Any]) -> set[str]:
    """Return the names of the objectives that a status has as missed."""
    missed = [
        each.get("message", "")
        for each in status.get("conditions") or ()
        if each.get("type") == ConditionType.OBJECTIVES_MET
        and each.get("status") == ConditionStatus.FALSE
    ]
    return {part.partition(": ")[0] for message in missed for part in message.split("; ")}


def exceeded_in(status: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the seconds for which a status has objectives as exceeded, by their names.

    Those of a missed one are infinite. While another one is missed, those that are exceeded for a
    shorter time are not in the status.
    """
    messages = [
        each.get("message", "")
        for each in status.get("conditions") or ()
        if each.get("type") == ConditionType.OBJECTIVES_MET
        and each.get("status") != ConditionStatus.FALSE
    ]
    parts = [part for message in messages for part in message.split("; ")]
    exceeded = {
        part.partition(": ")[0]: float(found[1])
        for part in parts
        if (found := _EXCEEDED.search(part))
    }
    return exceeded | dict.fromkeys(missed_in(status), math.inf)


class ObjectivesWatch:
    """The times since which objectives have been exceeded, in monotonic seconds."""

    def __init__(self, exceeded: Mapping[str, float] = MappingProxyType({})) -> None:
        """Continue from the objectives that an earlier operator has found exceeded.

        `exceeded`: the seconds by their names. They count until an objective is met, or unknown for
        as long as its `for`.
        """
        self._exceeded_before = dict(exceeded)
        self._unknown_since: dict[str, float] = {}
        self._exceeded_since: dict[NamedObjective, float] = {}

    def judge(
        self, objectives: Iterable[NamedObjective], measurement: Measurement, *, at: float
    ) -> list[Judgement]:
        """Judge these objectives on a measurement that ends at `at`, and forget all others."""
        judgements = {each: self._judge(each, measurement, at) for each in objectives}
        self._exceeded_since = {
            each: since for each, since in self._exceeded_since.items() if each in judgements
        }
        return list(judgements.values())

    def _judge(self, objective: NamedObjective, measurement: Measurement, at: float) -> Judgement:
        bound = objective.bound
        value_ns = bound.value_ns(measurement)
        if value_ns is None:
            self._exceeded_since.pop(objective, None)
            unknown = at - self._unknown_since.setdefault(objective.name, at)
            if unknown >= objective.for_s:
                self._exceeded_before.pop(objective.name, None)
            count = measurement.stage(bound.stage).histogram.count
            return Judgement(
                ObjectiveOutcome.UNKNOWN,
                f"{objective.name}: p{bound.percentile:g} of {bound.stage}: {count} samples, "
                f"{MIN_SAMPLES} are needed",
            )
        figures = f"{objective.name}: {bound.figures(value_ns)}"
        exceeded_before = min(self._exceeded_before.pop(objective.name, 0.0), objective.for_s)
        if not bound.is_missed(value_ns):
            self._exceeded_since.pop(objective, None)
            return Judgement(ObjectiveOutcome.MET, figures, value_ns)
        exceeded = at - self._exceeded_since.setdefault(objective, at - exceeded_before)
        if exceeded < objective.for_s:
            return Judgement(
                ObjectiveOutcome.MET,
                f"{figures} (exceeded for {int(exceeded)} s of {objective.for_s:g} s)",
                value_ns,
            )
        return Judgement(ObjectiveOutcome.MISSED, figures, value_ns)
