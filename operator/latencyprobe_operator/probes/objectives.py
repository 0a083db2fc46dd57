"""Objectives: limits for percentiles of all pods together, and the time that one is exceeded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from latencyprobe.domain.attention import MIN_SAMPLES
from latencyprobe.domain.measurement import Measurement
from latencyprobe_operator.api.conditions import ConditionStatus, ConditionType
from latencyprobe_operator.api.spec import NamedObjective


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


def missed_in(status: Mapping[str, Any]) -> set[str]:
    """Return the names of the objectives that a status has as missed."""
    missed = [
        each.get("message", "")
        for each in status.get("conditions") or ()
        if each.get("type") == ConditionType.OBJECTIVES_MET
        and each.get("status") == ConditionStatus.FALSE
    ]
    return {part.partition(": ")[0] for message in missed for part in message.split("; ")}


class ObjectivesWatch:
    """The times since which objectives have been exceeded, in monotonic seconds."""

    def __init__(self, missed: Iterable[str] = ()) -> None:
        """Continue from the objectives that an earlier operator has found missed, by their names.

        They have been exceeded for long enough, until they are met, or unknown for as long.
        """
        self._missed_before = set(missed)
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
                self._missed_before.discard(objective.name)
            count = measurement.stage(bound.stage).histogram.count
            return Judgement(
                ObjectiveOutcome.UNKNOWN,
                f"{objective.name}: p{bound.percentile:g} of {bound.stage}: {count} samples, "
                f"{MIN_SAMPLES} are needed",
            )
        figures = f"{objective.name}: {bound.figures(value_ns)}"
        was_missed = objective.name in self._missed_before
        self._missed_before.discard(objective.name)
        if not bound.is_missed(value_ns):
            self._exceeded_since.pop(objective, None)
            return Judgement(ObjectiveOutcome.MET, figures, value_ns)
        begin = at - objective.for_s if was_missed else at
        exceeded = at - self._exceeded_since.setdefault(objective, begin)
        if exceeded < objective.for_s:
            return Judgement(
                ObjectiveOutcome.MET,
                f"{figures} (exceeded, but for less than {objective.for_s:g} s)",
                value_ns,
            )
        return Judgement(ObjectiveOutcome.MISSED, figures, value_ns)
