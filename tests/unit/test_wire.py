"""What is sent arrives as it was, and what contradicts itself is refused by field."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.stages import CGROUP_COUNTERS, COUNTERS, STAGES
from latencyprobe.protocol.measurements import (
    MAX_NAME_LENGTH,
    MAX_OPEN_COUNTERS,
    CorruptMessageError,
    measurement_from_proto,
    measurement_to_proto,
    node_from_proto,
    node_to_proto,
)
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

counts = st.integers(0, 2**40)
stage_measurements = st.builds(
    StageMeasurement,
    st.lists(st.integers(0, 2**37), max_size=20).map(Histogram.of),
    counts,
    counts,
    counts,
    st.floats(0, 1, exclude_min=True),
)
measurements = st.builds(
    Measurement,
    st.dictionaries(st.sampled_from([stage.name for stage in STAGES]), stage_measurements),
    st.dictionaries(
        st.sampled_from([*(counter.name for counter in COUNTERS), *CGROUP_COUNTERS]), counts
    ),
    st.dictionaries(st.text("abc", min_size=1, max_size=9), counts, max_size=9),
)
# Others arrive as escapes.
printable_names = st.text(
    st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=20
)
node_measurements = st.builds(
    NodeMeasurement,
    st.dictionaries(
        st.builds(NodeStage, st.sampled_from([stage.name for stage in STAGES]), printable_names),
        stage_measurements,
        max_size=5,
    ),
    st.dictionaries(st.text("abc", min_size=1, max_size=9), counts, max_size=9),
)


@given(measurements)
def test_a_measurement_survives_the_wire(measurement: Measurement) -> None:
    stages, counters = measurement_to_proto(measurement)
    sent = pb.TargetReport(
        stages=stages, counters=counters, netns_counters=measurement.netns_counters
    ).SerializeToString()
    received = pb.TargetReport.FromString(sent)
    assert (
        measurement_from_proto(received.stages, received.counters, received.netns_counters)
        == measurement
    )


@given(node_measurements)
def test_measurements_of_a_node_survive_the_wire(measurement: NodeMeasurement) -> None:
    sent = pb.ProbeReport(node=node_to_proto(measurement)).SerializeToString()
    assert node_from_proto(pb.ProbeReport.FromString(sent).node) == measurement


def test_an_agent_that_says_nothing_of_its_node_measured_nothing_of_it() -> None:
    assert not node_from_proto(pb.ProbeReport(id="p").node)


@pytest.mark.parametrize(
    ("context", "complaint"),
    [
        (
            pb.NodeContext(stages=[pb.StageDelta(detail="eth0", sampling_ratio=1)]),
            "node.stages[0].name: is empty",
        ),
        (
            pb.NodeContext(
                stages=2 * [pb.StageDelta(name="rx.total", detail="eth0", sampling_ratio=1)]
            ),
            "node.stages[1]: 'rx.total' with 'eth0' is repeated",
        ),
        (
            pb.NodeContext(stages=[pb.StageDelta(name="rx.total", detail="x" * 65)]),
            f"node.stages[0].detail: is longer than {MAX_NAME_LENGTH} characters",
        ),
        (
            pb.NodeContext(stages=[pb.StageDelta(name="rx.total", sampling_ratio=2)]),
            "node.stages[0]: invalid sampling ratio",
        ),
        (pb.NodeContext(counters={"": 1}), "node.counters: a name has 0 characters, not 1 to 64"),
        (
            pb.NodeContext(counters={"x" * 65: 1}),
            "node.counters: a name has 65 characters, not 1 to 64",
        ),
        (
            pb.NodeContext(counters={f"n{n}": 1 for n in range(257)}),
            f"node.counters: 257 counters, but at most {MAX_OPEN_COUNTERS} are allowed",
        ),
    ],
)
def test_a_corrupt_field_of_the_node_is_refused_by_its_name(
    context: pb.NodeContext, complaint: str
) -> None:
    with pytest.raises(CorruptMessageError) as refused:
        node_from_proto(context)
    assert str(refused.value).startswith(complaint)


def test_namespaces_have_no_endless_counters() -> None:
    with pytest.raises(
        CorruptMessageError, match="netns_counters: 257 counters, but at most 256 are allowed"
    ):
        measurement_from_proto([], {}, {f"n{n}": 1 for n in range(257)})


def test_stages_of_the_node_that_only_a_newer_agent_knows_are_left_out() -> None:
    stages = [
        pb.StageDelta(name="irq.new", detail="eth0"),
        pb.StageDelta(name="rx.total", detail="eth0", sampling_ratio=1),
    ]
    assert node_from_proto(pb.NodeContext(stages=stages)).stages.keys() == {
        NodeStage("rx.total", "eth0")
    }


def _histogram(
    positions: list[int], bucket_counts: list[int], *, min_ns: int = 64, max_ns: int = 100
) -> pb.Histogram:
    return pb.Histogram(
        sum_ns=100, min_ns=min_ns, max_ns=max_ns, positions=positions, counts=bucket_counts
    )


@pytest.mark.parametrize(
    ("histogram", "field"),
    [
        (_histogram([1, 2], [1]), "stages[0].histogram:"),
        (_histogram([2, 1], [1, 1]), "stages[0].histogram.positions:"),
        (_histogram([1, 1], [1, 1]), "stages[0].histogram.positions:"),
        (_histogram([242], [1]), "stages[0].histogram:"),
        (_histogram([1], [0]), "stages[0].histogram:"),
        (_histogram([1], [1], min_ns=101), "stages[0].histogram:"),
    ],
)
def test_a_corrupt_histogram_is_refused_by_field(histogram: pb.Histogram, field: str) -> None:
    delta = pb.StageDelta(name="rx.total", histogram=histogram, sampling_ratio=1)
    with pytest.raises(CorruptMessageError) as refused:
        measurement_from_proto([delta], {})
    assert str(refused.value).startswith(field)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.5, math.nan, math.inf])
def test_a_sampling_ratio_outside_of_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(CorruptMessageError, match=r"stages\[0\]: invalid sampling ratio"):
        measurement_from_proto([pb.StageDelta(name="rx.total", sampling_ratio=ratio)], {})


def test_a_stage_that_comes_twice_or_without_a_name_is_refused() -> None:
    delta = pb.StageDelta(name="rx.total", sampling_ratio=1)
    with pytest.raises(CorruptMessageError, match=r"stages\[1\].name: 'rx.total' is repeated"):
        measurement_from_proto([delta, delta], {})
    with pytest.raises(CorruptMessageError, match=r"stages\[0\].name: is empty"):
        measurement_from_proto([pb.StageDelta(sampling_ratio=1)], {})


def test_stages_that_only_a_newer_agent_knows_are_left_out() -> None:
    stages = [pb.StageDelta(name="rx.new"), pb.StageDelta(name="rx.total", sampling_ratio=1)]
    received = measurement_from_proto(stages, {"newCounter": 3, "retransmits": 1})
    assert received == Measurement({"rx.total": StageMeasurement()}, {"retransmits": 1})
