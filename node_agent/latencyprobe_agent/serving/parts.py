"""Parts: the reports on probes, packed into messages of a bounded size.

A report that does not fit into one message goes in several parts. The containers of a pod share a
network namespace, whose counters must not be added up. So a pod's targets stay in one part, unless
they are too large for that.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.fairness import MAX_PROBES, MAX_TARGETS
from latencyprobe.domain.measurement import NodeMeasurement, NodeStage
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.collector import ProbeFigures
from latencyprobe_agent.desired import (
    ContainerSelector,
    DesiredProbe,
    DesiredTarget,
    PodSelector,
)
from latencyprobe_agent.serving.messages import (
    CgroupsOf,
    node_context,
    report_frame,
    target_report,
)
from latencyprobe_agent.targets.facts import TargetFacts

# The operator takes four times as much. The largest piece is a target: less than 200 KB.
MESSAGE_BYTES = 1 << 19

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

Standings = Mapping[str, TargetFacts]


class StateNumber(NamedTuple):
    """The number of a state that was in force."""

    term: int
    generation: int


class NumberedPart(NamedTuple):
    """A report, or a part of one, and the state that its figures were measured in."""

    number: StateNumber
    report: pb.ProbeReport


def _no_cgroups(_probe: DesiredProbe, _counters: Mapping[str, int]) -> tuple[Cgroup, ...]:
    return ()


def messages(
    due: Iterable[ProbeFigures],
    standings: Callable[[DesiredProbe], Standings],
    cgroups_of: CgroupsOf = _no_cgroups,
) -> Iterator[list[pb.ProbeReport]]:
    """Pack these figures, with all targets; encode each message when it is asked for.

    `cgroups_of` returns the known cgroups in the counters of a target.
    """
    packed: list[pb.ProbeReport] = []
    size = 0
    for figures in due:
        part, is_begun = report_frame(figures), False
        if packed and size + _framed(part) > MESSAGE_BYTES:
            yield packed
            packed, size = [], 0
        size += _framed(part)
        for piece in _pieces(figures, standings(figures.probe), cgroups_of):
            more = piece.ByteSize()
            if size + more > MESSAGE_BYTES and (packed or is_begun):
                if is_begun:
                    part.more = True
                    packed.append(part)
                yield packed
                packed, part, is_begun = [], report_frame(figures), False
                size = _framed(part)
            part.MergeFrom(piece)
            size += more
            is_begun = True
        packed.append(part)
    if packed:
        yield packed


def bundles(
    parts: Iterable[NumberedPart],
) -> Iterator[tuple[StateNumber, list[pb.ProbeReport]]]:
    """Put summaries together in their order, as many in a message as the operator takes.

    Those of a message are of one state. A part that is left over may be sent much later than it was
    made.
    """
    together: list[pb.ProbeReport] = []
    size = targets = 0
    of_state: StateNumber | None = None
    for number, part in parts:
        more_bytes, more_targets = _framed(part), max(len(part.summary.statuses), len(part.pods))
        is_full = size + more_bytes > MESSAGE_BYTES or targets + more_targets > MAX_TARGETS
        if of_state and (is_full or len(together) == MAX_PROBES or number != of_state):
            yield of_state, together
            together, size, targets = [], 0, 0
        of_state = number
        together.append(part)
        size += more_bytes
        targets += more_targets
    if of_state:
        yield of_state, together


def divided(figures: ProbeFigures, part: pb.ProbeReport) -> tuple[ProbeFigures, ProbeFigures]:
    """Return the figures that this part holds, and those of the parts after it."""
    targets = {target.status.id for target in part.targets}
    stages = {NodeStage(stage.name, stage.detail) for stage in part.node.stages}
    held, later = _split(figures.measurements, targets)
    node_held, node_later = _split(figures.node.stages, stages)
    # The first part has all counters.
    counters = figures.node.counters if part.node.counters else {}
    return (
        replace(figures, measurements=held, node=NodeMeasurement(node_held, counters)),
        replace(figures, measurements=later, node=NodeMeasurement(node_later)),
    )


def _split(
    figures: Mapping[_Key, _Value], keys: Container[_Key]
) -> tuple[dict[_Key, _Value], dict[_Key, _Value]]:
    """Return the figures of these keys, and all others."""
    held: dict[_Key, _Value] = {}
    later: dict[_Key, _Value] = {}
    for key, value in figures.items():
        (held if key in keys else later)[key] = value
    return held, later


def _pieces(
    figures: ProbeFigures, standings: Standings, cgroups_of: CgroupsOf
) -> Iterator[pb.ProbeReport]:
    """Encode what parts are made of, without their frame; the counters of the node come first."""
    if figures.probe.node_figures:
        yield from _node_pieces(figures)
    for pod in _pods(figures.probe.targets):
        targets = [target_report(figures, each, standings[each], cgroups_of) for each in pod]
        together = pb.ProbeReport(targets=targets)
        if together.ByteSize() <= MESSAGE_BYTES // 2:
            yield together
        else:
            yield from (pb.ProbeReport(targets=[target]) for target in targets)


def _node_pieces(figures: ProbeFigures) -> Iterator[pb.ProbeReport]:
    context = node_context(figures)
    if context.counters:
        yield pb.ProbeReport(node=pb.NodeContext(counters=context.counters))
    for stage in context.stages:
        yield pb.ProbeReport(node=pb.NodeContext(stages=[stage]))


def _pods(targets: Iterable[DesiredTarget]) -> Iterable[list[str]]:
    """Return the ids of these targets, those of one pod together."""
    pods: dict[object, list[str]] = {}
    for target in targets:
        match target.selector:
            case ContainerSelector(pod_uid=pod_uid) | PodSelector(pod_uid=pod_uid):
                pods.setdefault(pod_uid, []).append(target.id)
            case _:
                pods[target] = [target.id]
    return pods.values()


def _framed(part: pb.ProbeReport) -> int:
    """Return the size of an empty part within its message: its tag and length are 8 at most."""
    return part.ByteSize() + 8
