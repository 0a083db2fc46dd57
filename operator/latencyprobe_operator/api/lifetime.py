"""The end of a LatencyProbe's life: spec.ttlSecondsAfterFinished, counted from its completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latencyprobe_operator.api.conditions import ConditionStatus, ConditionType
from latencyprobe_operator.api.timestamps import epoch_s


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A completed probe's time to live. Times are seconds, `completed` since the epoch."""

    completed: float
    ttl_s: int

    def remaining_s(self, wall: float) -> float:
        """Return the rest of it at this time of the wall clock: between 0 and the whole.

        A clock that was set back so never prolongs it beyond the whole.
        """
        return min(max(self.completed + self.ttl_s - wall, 0.0), float(self.ttl_s))


def lifetime_of(body: Mapping[str, Any]) -> Lifetime | None:
    """Return the lifetime of a LatencyProbe; None if it has not completed, or stays.

    A spec that has changed since the status was written may measure again: then it is not over.
    """
    ttl_s = (body.get("spec") or {}).get("ttlSecondsAfterFinished")
    status = body.get("status") or {}
    if ttl_s is None or status.get("observedGeneration") != body["metadata"].get("generation"):
        return None
    for each in status.get("conditions") or ():
        if each["type"] == ConditionType.COMPLETE and each["status"] == ConditionStatus.TRUE:
            return Lifetime(epoch_s(each["lastTransitionTime"]), ttl_s)
    return None
