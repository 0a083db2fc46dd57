"""Reports in parts: each message is small, and together they are the whole, whatever fails."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.fairness import MAX_TARGETS
from latencyprobe.domain.histogram import POSITIONS, Histogram
from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.stages import STAGES, Module
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.measurements import measurement_from_proto, node_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Applied
from latencyprobe_agent.collector import Moment, ProbeFigures
from latencyprobe_agent.desired import ContainerSelector, DesiredTarget, PidSelector
from latencyprobe_agent.serving import parts
from latencyprobe_agent.serving.messages import MAX_PIDS_SHOWN, apply_result, status_message
from latencyprobe_agent.serving.parts import (
    MESSAGE_BYTES,
    NumberedPart,
    StateNumber,
    bundles,
    divided,
    messages,
)
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.targets.facts import TargetFacts
from tests.unit.agent.scripted import samples
from tests.unit.agent.states import probe, state

OPERATOR_TAKES = 4 << 20
SMALL = 1500
"""A size of messages that needs many parts for little data."""
ATTACHED = TargetFacts(TargetState.ATTACHED, pids=tuple(range(100_000, 110_000)))
FIRST = StateNumber(1, 1)
BEGIN, END = Moment(100.0, 10**18), Moment(110.0, 10**18 + 10**10)

pods = st.lists(st.integers(1, 4), max_size=8)
"""The numbers of containers of pods; those with an odd index are processes instead."""
measurements = st.builds(
    Measurement,
    st.dictionaries(
        st.sampled_from(["rx.total", "rx.socket"]),
        st.builds(
            StageMeasurement,
            st.lists(st.integers(0, 2**30), min_size=1, max_size=9).map(Histogram.of),
        ),
    ),
    st.just({}),
    st.dictionaries(st.sampled_from(["UdpInErrors", "TcpExtListenDrops"]), st.integers(1, 9)),
)
few_measurements = st.lists(measurements, min_size=1, max_size=5)
nodes = st.builds(
    NodeMeasurement,
    st.dictionaries(
        st.builds(NodeStage, st.just("irq.hard"), st.from_regex("[a-z]{1,9}", fullmatch=True)),
        st.builds(StageMeasurement, st.just(Histogram.of([1, 2, 3]))),
        max_size=20,
    ),
    st.dictionaries(st.sampled_from(["eth0:rx_dropped", "squeezed"]), st.integers(1, 9)),
)


def figures(
    name: str,
    containers: list[int],
    measure: Callable[[], Measurement],
    node: NodeMeasurement = NOTHING_OF_THE_NODE,
) -> ProbeFigures:
    """Figures of a probe on pods with this many containers each."""
    (desired,) = parse_desired(state(probe(name, modules=("rx", "irq")))).probes
    targets = tuple(
        DesiredTarget(
            f"{pod}/{number}",
            PidSelector(1000 * pod + number)
            if pod % 2
            else ContainerSelector(f"{pod}", f"{number}"),
        )
        for pod, count in enumerate(containers)
        for number in range(count)
    )
    desired = dataclasses.replace(desired, targets=targets)
    measured = {target.id: measure() for target in targets}
    return ProbeFigures(desired, BEGIN, END, measured, node)


def all_attached(desired: object) -> dict[str, TargetFacts]:
    """Every target of the probe, with more processes than a report has."""
    return {target.id: ATTACHED for target in desired.targets}  # type: ignore[attr-defined]


def target_sums(reports: list[pb.ProbeReport]) -> dict[str, Measurement]:
    """What these parts say of the targets, each of which is in one of them."""
    found: dict[str, Measurement] = {}
    for target in (target for report in reports for target in report.targets):
        assert target.status.id not in found
        found[target.status.id] = measurement_from_proto(
            target.stages, target.counters, target.netns_counters
        )
    return found


def node_sum(reports: list[pb.ProbeReport]) -> NodeMeasurement:
    """What these parts say of the node."""
    return sum((node_from_proto(each.node) for each in reports), NOTHING_OF_THE_NODE)


@given(few_measurements, st.lists(st.tuples(pods, nodes), max_size=3))
def test_every_message_is_small_and_the_parts_are_the_whole(
    measured: list[Measurement], probes: list[tuple[list[int], NodeMeasurement]]
) -> None:
    each = itertools.cycle(measured)
    due = [
        figures(f"p{number}", containers, lambda: next(each), node)
        for number, (containers, node) in enumerate(probes)
    ]
    with patch.object(parts, "MESSAGE_BYTES", SMALL):
        sent = list(messages(due, all_attached))

    assert bool(sent) == bool(due)
    for message in sent:
        pieces = sum(len(part.targets) + len(part.node.stages) for part in message)
        assert pb.Report(probes=message).ByteSize() <= SMALL or pieces == 1
        assert len({part.id for part in message}) == len(message) > 0
    for one in due:
        of_one = [part for message in sent for part in message if part.id == one.probe.id]
        assert [part.more for part in of_one] == [True] * (len(of_one) - 1) + [False]
        assert {(p.begin.ToNanoseconds(), p.end.ToNanoseconds()) for p in of_one} == {
            (BEGIN.unix_ns, END.unix_ns)
        }
        assert target_sums(of_one) == {each.id: one.of(each.id) for each in one.probe.targets}
        assert node_sum(of_one) == one.of_node()


@given(few_measurements, pods, nodes, st.integers(0, 20))
def test_the_sent_and_the_left_parts_are_the_whole_after_any_message(
    measured: list[Measurement], containers: list[int], node: NodeMeasurement, sent: int
) -> None:
    each = itertools.cycle(measured)
    whole = figures("p", containers, lambda: next(each), node)
    with patch.object(parts, "MESSAGE_BYTES", SMALL):
        delivered = [
            part for message in list(messages([whole], all_attached))[:sent] for part in message
        ]
    left = whole
    for part in delivered:
        before, (held, left) = left, divided(left, part)
        for target in whole.probe.targets:
            assert held.of(target.id) + left.of(target.id) == before.of(target.id)
        assert held.of_node() + left.of_node() == before.of_node()
    told = target_sums(delivered)
    for target in whole.probe.targets:
        assert told.get(target.id, NOTHING) + left.of(target.id) == whole.of(target.id)
    if delivered:
        assert node_sum(delivered) + left.of_node() == whole.of_node()


def test_the_containers_of_a_pod_stay_in_one_part() -> None:
    whole = figures("p", [3] * 40, lambda: samples(*range(1, 10**6, 10**5)))
    with patch.object(parts, "MESSAGE_BYTES", 8 * SMALL):
        sent = list(messages([whole], all_attached))
    homes: dict[str, set[int]] = {}
    for number, (part,) in enumerate(sent):
        for target in part.targets:
            pod = target.status.id.partition("/")[0]
            homes.setdefault(pod, set()).add(number)
    assert len(sent) > 2
    assert all(len(home) == 1 for pod, home in homes.items() if int(pod) % 2 == 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90)), max_size=30))
def test_summaries_share_messages_within_the_operators_limits(
    sizes: list[tuple[int, int]],
) -> None:
    reports = [
        pb.ProbeReport(
            id=str(number),
            summary=pb.ProbeSummary(statuses=[pb.TargetStatus(id="t")] * statuses),
            pods=[pb.PodReport(pod_uid="p" * 10)] * in_full,
        )
        for number, (statuses, in_full) in enumerate(sizes)
    ]
    with (
        patch.object(parts, "MESSAGE_BYTES", SMALL),
        patch.object(parts, "MAX_TARGETS", 100),
        patch.object(parts, "MAX_PROBES", 5),
    ):
        numbered = list(bundles(NumberedPart(FIRST, each) for each in reports))

    assert {number for number, _ in numbered} <= {FIRST}
    together = [bundle for _, bundle in numbered]
    assert [each.id for bundle in together for each in bundle] == [each.id for each in reports]
    for bundle in together:
        assert 1 <= len(bundle) <= 5
        message = pb.Report(probes=bundle)
        assert len(bundle) == 1 or message.ByteSize() <= SMALL
        assert sum(max(len(e.summary.statuses), len(e.pods)) for e in bundle) <= 100
    for before, after in itertools.pairwise(together):
        overfull = [*before, after[0]]
        assert (
            len(overfull) > 5
            or pb.Report(probes=overfull).ByteSize() > SMALL - 8 * len(overfull)
            or sum(max(len(e.summary.statuses), len(e.pods)) for e in overfull) > 100
        )


def test_summaries_of_different_states_share_no_message() -> None:
    numbers = (FIRST, FIRST, StateNumber(1, 2), StateNumber(2, 2), StateNumber(2, 2))
    reports = [NumberedPart(each, pb.ProbeReport(id=f"{n}")) for n, each in enumerate(numbers)]
    found = [(number, [each.id for each in bundle]) for number, bundle in bundles(reports)]

    assert found == [(FIRST, ["0", "1"]), ((1, 2), ["2"]), ((2, 2), ["3", "4"])]


def test_as_many_busy_targets_as_there_can_be_fit_into_small_messages() -> None:
    busy = Measurement(
        {
            stage.name: StageMeasurement(Histogram.of([round(1.1**n) for n in range(60, 240)]))
            for stage in STAGES
        }
    )
    whole = figures("p", [MAX_TARGETS // 8] * 8, lambda: busy)
    sent = list(messages([whole], all_attached))
    assert sum(part.ByteSize() for message in sent for part in message) > OPERATOR_TAKES
    assert max(pb.Report(probes=message).ByteSize() for message in sent) <= MESSAGE_BYTES
    assert len([target for (part,) in sent for target in part.targets]) == MAX_TARGETS
    assert MESSAGE_BYTES <= OPERATOR_TAKES // 4


def test_the_largest_target_fits_into_a_message() -> None:
    full = Histogram(dict.fromkeys(range(POSITIONS), 2**40), 2**50, 0, 2**50)
    names = {f"{n:064}": 2**50 for n in range(256)}
    largest = Measurement({s.name: StageMeasurement(full) for s in STAGES}, {}, names)
    whole = dataclasses.replace(
        figures("p", [1], lambda: largest),
        probe=dataclasses.replace(
            figures("p", [1], lambda: largest).probe, modules=frozenset(Module)
        ),
    )
    ((part,),) = messages([whole], all_attached)
    assert part.ByteSize() < MESSAGE_BYTES // 2


def test_a_target_names_its_smallest_process_ids_and_counts_the_others() -> None:
    status = status_message("t", ATTACHED)
    assert list(status.pids) == list(ATTACHED.pids[:MAX_PIDS_SHOWN])
    assert status.omitted_pids == len(ATTACHED.pids) - MAX_PIDS_SHOWN


@pytest.mark.parametrize("message", ["", "x" * 10_000], ids=["attached", "long messages"])
def test_the_answer_on_as_many_targets_as_there_can_be_is_within_the_operators_limit(
    message: str,
) -> None:
    facts = dataclasses.replace(ATTACHED, message=message, cgroup="/kubepods/" + "x" * 250)
    standings = {"p": {f"{n:0100}": facts for n in range(MAX_TARGETS)}}
    answer = apply_result(Applied(1, standings, {}, ()))
    assert answer.ByteSize() < OPERATOR_TAKES
    assert len(answer.probes[0].targets) == MAX_TARGETS
