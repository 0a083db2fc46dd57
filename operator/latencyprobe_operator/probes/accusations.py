"""Accusations: the causes that verdicts on the pods of one node name, and not for a moment alone.

Among many pods there is nearly always one with a short wait. So a cause counts from the second
report in a row that has it, and until the second in a row that lacks it. A report that is sent
again is the same one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from latencyprobe.domain.causes import Bottleneck
from latencyprobe_operator.probes.facts import AccusedCause

_NOTHING: Mapping[Bottleneck, AccusedCause] = MappingProxyType({})


def causes_in(status: Mapping[str, Any]) -> frozenset[str]:
    """Return the cause that the summary of a status names."""
    return frozenset(filter(None, [(status.get("summary") or {}).get("bottleneck")]))


class NodeAccusations:
    """The causes that one node's reports name, in `lasting` as far as they last."""

    __slots__ = ("_newest", "lasting")

    def __init__(self, before: Collection[str] = ()) -> None:
        """Continue from the causes that a report before these has named."""
        self._newest: Collection[str] = before
        self.lasting = _NOTHING

    def take(self, accused: Mapping[Bottleneck, AccusedCause], *, pods: int) -> None:
        """Take in the causes of the next report, which is on this number of pods."""
        lasting = {
            cause: each
            for cause, each in accused.items()
            if cause in self._newest or cause in self.lasting
        }
        for cause, each in self.lasting.items():
            if pods and cause in self._newest and cause not in accused:
                lasting[cause] = each._replace(pods=min(each.pods, pods))
        # Most nodes have none, and most of the others the same ones: these take no memory twice.
        self._newest = accused or _NOTHING
        self.lasting = (accused if lasting == accused else lasting) or _NOTHING
