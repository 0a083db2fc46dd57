"""Transitions of a probe: changes that last, from one status to the next. Pure.

Times are seconds of one monotonic clock. A new operator begins with the status of the one before.
A change that is in there is no transition any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from latencyprobe.domain.causes import Bottleneck
from latencyprobe_operator.api.events import EventReason, Transition
from latencyprobe_operator.api.status_fields import Phase
from latencyprobe_operator.probes.facts import LACKING, MEASURING, NodeFacts
from latencyprobe_operator.probes.objectives import Judgement, ObjectiveOutcome, missed_in

# A verdict changes with the traffic. One that has stayed for so long is worth a message.
_WINDOWS = 2
# An agent that restarts is back sooner.
_LOST_S = 20.0
_LACKING = frozenset(map(str, LACKING))


class VerdictWatch:
    """The verdict that was reported last, and the time since which it is another one."""

    def __init__(self, previous: Mapping[str, Any]) -> None:
        reported = (previous.get("summary") or {}).get("bottleneck")
        self._reported = None if reported == Bottleneck.INSUFFICIENT_DATA else reported
        self._candidate: str | None = None
        self._since = 0.0

    def pause(self) -> None:
        """Note that the probe does not measure: no verdict stays in that time."""
        self._candidate = None

    def observe(
        self, summary: Mapping[str, Any], window_s: float, *, at: float
    ) -> Iterator[Transition]:
        """Take in the summary of a status; yield a verdict that has changed and stayed."""
        verdict = summary.get("bottleneck")
        if verdict in (None, Bottleneck.INSUFFICIENT_DATA, self._reported):
            self._candidate = None
        elif verdict != self._candidate:
            self._candidate, self._since = verdict, at
        elif at - self._since >= _WINDOWS * window_s:
            before, self._reported, self._candidate = self._reported, verdict, None
            if before or verdict != Bottleneck.NONE:
                yield _verdict_changed(verdict, before, summary.get("message", ""))


class ObjectivesHistory:
    """The objectives that were reported as missed."""

    def __init__(self, previous: Mapping[str, Any]) -> None:
        self._missed = missed_in(previous)

    def observe(self, judgements: Sequence[Judgement]) -> Iterator[Transition]:
        """Take in new judgements; yield those that have changed. An unknown outcome is none."""
        for each in judgements:
            was_missed = each.name in self._missed
            if each.outcome is ObjectiveOutcome.MISSED and not was_missed:
                self._missed.add(each.name)
                yield Transition(
                    reason=EventReason.OBJECTIVE_MISSED,
                    subject=each.name,
                    note=f"missed: {each.message}",
                    is_warning=True,
                )
            elif each.outcome is ObjectiveOutcome.MET and was_missed:
                self._missed.discard(each.name)
                yield Transition(
                    reason=EventReason.OBJECTIVE_MET,
                    subject=each.name,
                    note=f"met again: {each.message}",
                    is_warning=False,
                )
        self._missed &= {each.name for each in judgements}


class NodesWatch:
    """The nodes that measure, and those that do not any more."""

    def __init__(self, previous: Mapping[str, Any]) -> None:
        rows = previous.get("nodes") or ()
        self._lost = {row["name"] for row in rows if row.get("state") in _LACKING}
        self._measuring: set[str] = set()
        self._all_measured = previous.get("phase") == Phase.RUNNING
        """Before the first observation: the status before shows no node that lacks."""
        self._lacking_since: dict[str, float] = {}

    def pause(self) -> None:
        """Note that the probe does not measure: no node lacks in that time."""
        self._lacking_since.clear()

    def observe(self, nodes: Sequence[NodeFacts], *, at: float) -> Iterator[Transition]:
        """Take in the nodes of a status; yield those that were lost or are back."""
        if self._all_measured and nodes:
            self._measuring, self._all_measured = {node.name for node in nodes}, False
        for node in nodes:
            if node.state in MEASURING:
                yield from self._measures(node)
            elif node.state in LACKING:
                yield from self._lacks(node, at)
        self._keep({node.name for node in nodes})

    def _measures(self, node: NodeFacts) -> Iterator[Transition]:
        self._measuring.add(node.name)
        self._lacking_since.pop(node.name, None)
        if node.name in self._lost:
            self._lost.discard(node.name)
            yield Transition(
                reason=EventReason.NODE_BACK,
                subject=node.name,
                note=f"node {node.name} measures again",
                is_warning=False,
            )

    def _lacks(self, node: NodeFacts, at: float) -> Iterator[Transition]:
        since = self._lacking_since.setdefault(node.name, at)
        if node.name in self._measuring and at - since >= _LOST_S:
            self._measuring.discard(node.name)
            self._lost.add(node.name)
            yield Transition(
                reason=EventReason.NODE_LOST,
                subject=node.name,
                note=f"node {node.name} does not measure any more: {node.message or node.state}",
                is_warning=True,
            )

    def _keep(self, names: set[str]) -> None:
        """Forget all other nodes: no pod of the probe is there any more."""
        self._lost &= names
        self._measuring &= names
        for name in self._lacking_since.keys() - names:
            del self._lacking_since[name]


def _verdict_changed(verdict: str, before: str | None, message: str) -> Transition:
    change = f"{verdict}, before {before}" if before else verdict
    return Transition(
        reason=EventReason.VERDICT_CHANGED,
        subject=verdict,
        note=f"the verdict is {change}: {message}",
        is_warning=verdict != Bottleneck.NONE,
    )
