"""Kubernetes Events of a LatencyProbe (events.k8s.io/v1): their reasons and their form."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from latencyprobe.printable import printable
from latencyprobe_operator.api.conditions import ObjectivesReason
from latencyprobe_operator.api.spec import ProbeKey

_CONTROLLER = "latencyprobe.io/operator"
_ACTION = "Measure"
# Of the API server, pkg/apis/core/validation/events.go; the name with a point and 16 digits.
_LONGEST_NOTE_BYTES = 1024
_LONGEST_NAME = 253 - 17
_LONGEST_INSTANCE = 128


class EventReason(StrEnum):
    """The reason of an Event: the transition that it reports."""

    VERDICT_CHANGED = "VerdictChanged"
    """Another bottleneck has been the verdict for two windows."""
    OBJECTIVE_MISSED = ObjectivesReason.OBJECTIVE_MISSED.value
    """An objective is missed."""
    OBJECTIVE_MET = "ObjectiveMet"
    """An objective that was missed is met again."""
    NODE_LOST = "NodeLost"
    """A node that measured does not any more."""
    NODE_BACK = "NodeBack"
    """A node that was lost measures again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A change that people may want to know of.

    `subject`: the verdict, the objective or the node. Transitions of one reason and subject are one
    series.
    """

    reason: EventReason
    subject: str
    note: str
    is_warning: bool


@dataclass(frozen=True, slots=True)
class Series:
    """The number of times that a transition has occurred: first and last, since the epoch."""

    count: int
    first: float
    last: float

    def document(self) -> dict[str, Any]:
        """Return the API's form, which it takes from a count of 2 on."""
        return {"count": self.count, "lastObservedTime": _micro_time(self.last)}


def event_body(
    key: ProbeKey, name: str, transition: Transition, series: Series, *, instance: str
) -> Mapping[str, Any]:
    """Return the Event of a transition. `instance`: the operator that reports it."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": key.namespace},
        "eventTime": _micro_time(series.first),
        **({"series": series.document()} if series.count > 1 else {}),
        "reportingController": _CONTROLLER,
        "reportingInstance": instance[:_LONGEST_INSTANCE],
        "action": _ACTION,
        "reason": str(transition.reason),
        "regarding": {
            "apiVersion": "latencyprobe.io/v1alpha1",
            "kind": "LatencyProbe",
            "namespace": key.namespace,
            "name": key.name,
            "uid": key.uid,
        },
        "note": _note(transition.note),
        "type": "Warning" if transition.is_warning else "Normal",
    }


def event_name(key: ProbeKey, digits: str) -> str:
    """Return a name that no other Event of the probe has, if no other has these 16 digits."""
    return f"{key.name[:_LONGEST_NAME].rstrip('.-')}.{digits}"


def _note(text: str) -> str:
    return printable(text).encode()[:_LONGEST_NOTE_BYTES].decode(errors="ignore")


def _micro_time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
