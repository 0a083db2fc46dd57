"""The first row of a status, which people read first: when rows of pods are news to them.

Equal replicas take turns as the worst pod by noise alone. So another pod is no such news, unless
its row says another thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from latencyprobe.domain.waits import TOTALS
from latencyprobe_operator.probes.document import WorstPod, worst_of
from latencyprobe_operator.probes.facts import PodFacts

# Of the p99 of the worst pod. The worst of some replicas has seldom twice the p99 of the last one.
_NEWS_RATIO = 2


@dataclass(frozen=True, slots=True)
class FirstRows:
    """The rows of the pods of a status. `verdicts`: by node and name, in the order of the rows.

    An ended pod of a StatefulSet and the next one have one name: the first row has the verdict.
    """

    worst: WorstPod | None
    verdicts: Mapping[tuple[object, object], object]

    def are_news(self, before: WorstPod | None) -> bool:
        """Decide whether people learn another thing than from rows that begin with this pod.

        That is another verdict, a p99 of twice as much, or that the pod does not have its verdict
        any more. A pod that is not listed is no worse than the last one that is.
        """
        if before is None or self.worst is None:
            return before is not self.worst
        if self.worst.bottleneck != before.bottleneck:
            return True
        if self.worst.p99_ns >= _NEWS_RATIO * max(before.p99_ns, 1):
            return True
        last = list(self.verdicts.values())[-1]
        return self.verdicts.get((before.node, before.name), last) != before.bottleneck


def rows_of(document: Mapping[str, Any]) -> FirstRows:
    """Return the rows of a status that is about to be written, without corrupt ones.

    A status may have rows of the one before, of which the CRD requires a name alone.
    """
    verdicts: dict[tuple[object, object], object] = {}
    for row in document.get("pods") or ():
        with suppress(KeyError, TypeError):
            verdicts.setdefault((row["node"], row["name"]), row["verdict"]["bottleneck"])
    return FirstRows(worst_of(document), verdicts)


def rows_of_facts(pods: Sequence[PodFacts]) -> FirstRows:
    """Return the same, before the rows are built."""
    verdicts: dict[tuple[object, object], object] = {}
    for pod in pods:
        verdicts.setdefault((pod.node, pod.name), str(pod.report.verdict.bottleneck))
    worst = None
    if pods:
        node, name, stages = pods[0].node, pods[0].name, pods[0].report.stages
        p99_ns = max((each.p99_ns for each in stages if each.name in TOTALS), default=0)
        worst = WorstPod(node, name, verdicts[node, name], p99_ns)
    return FirstRows(worst, verdicts)
