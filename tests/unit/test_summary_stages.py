"""Stages of a summary are decoded in few calls, as the functions for all other messages do it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latencyprobe.domain.histogram import POSITIONS, Histogram
from latencyprobe.domain.measurement import StageMeasurement
from latencyprobe.domain.packed_stages import PackedStages, pack
from latencyprobe.domain.stages import STAGES
from latencyprobe.protocol.limits import check_stages
from latencyprobe.protocol.measurements import CorruptMessageError, measurement_from_proto
from latencyprobe.protocol.summary_stages import stages_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

NAMES = [stage.name for stage in STAGES]
NUMBERS = st.sampled_from([0, 1, 5, 2**16 - 1, 2**16, 2**32, 2**53 - 1, 2**53, 2**64 - 1])
POSITIONS_OF_A_PEER = st.integers(0, POSITIONS + 1) | st.sampled_from([0, 241, 242, 300, 2**32 - 1])
histograms = st.builds(
    pb.Histogram,
    sum_ns=NUMBERS,
    min_ns=st.sampled_from([0, 1, 2**53]),
    max_ns=NUMBERS,
    positions=st.lists(POSITIONS_OF_A_PEER, max_size=6)
    | st.sets(st.integers(0, POSITIONS - 1), max_size=6).map(sorted),
    counts=st.lists(NUMBERS, max_size=6),
)
deltas = st.builds(
    pb.StageDelta,
    name=st.sampled_from([*NAMES[:4], "", "rx.teleport"]),
    histogram=histograms,
    lost=NUMBERS,
    unmatched=st.sampled_from([0, 7]),
    clamped=st.sampled_from([0, 7]),
    sampling_ratio=st.sampled_from([1.0, 0.5, 2.0**-16, 2.0**-17, 0.0, -1.0, 2.0, float("nan")]),
)


def sound(name: str, buckets: dict[int, int]) -> pb.StageDelta:
    """A stage with these buckets."""
    histogram = pb.Histogram(
        sum_ns=9, min_ns=1, max_ns=5, positions=list(buckets), counts=list(buckets.values())
    )
    return pb.StageDelta(name=name, histogram=histogram, lost=1, sampling_ratio=0.25)


def outcome_by_parts(stages: Sequence[pb.StageDelta]) -> object:
    """The stages, or the fault, by the functions for any message."""
    try:
        check_stages(stages, "stages")
        return measurement_from_proto(stages, {}).stages
    except CorruptMessageError as error:
        return str(error)


def outcome(stages: Sequence[pb.StageDelta]) -> object:
    """The stages, or the fault, by the function for summaries."""
    try:
        return dict(stages_from_proto(stages, "stages"))
    except CorruptMessageError as error:
        return str(error)


@given(st.lists(deltas, max_size=4))
@example([sound("rx.total", {3: 5, 4: 1}), sound("rx.total", {3: 5})])
@example([sound("rx.total", {3: 5, 9: 2**40}), sound("tcp.rtt", {})])
@example([sound("rx.teleport", {3: 5}), sound("tcp.rtt", {241: 1})])
@example([sound("rx.total", {4: 5, 3: 1})])
@example([sound("rx.total", {241: 1, 242: 1})])
def test_stages_are_taken_and_refused_as_in_any_other_message(
    stages: list[pb.StageDelta],
) -> None:
    assert outcome(stages) == outcome_by_parts(stages)


stage_measurements = st.builds(
    StageMeasurement,
    st.builds(
        Histogram,
        st.dictionaries(st.integers(0, POSITIONS - 1), st.integers(1, 2**53 - 1), max_size=9),
        st.integers(0, 2**63 - 1),
        st.just(0),
        st.integers(0, 2**63 - 1),
    ),
    *[st.integers(0, 2**63 - 1)] * 3,
    st.floats(2.0**-16, 1),
)


@given(st.dictionaries(st.sampled_from(NAMES), stage_measurements))
def test_packed_stages_are_a_mapping_of_the_same_measurements(
    stages: dict[str, StageMeasurement],
) -> None:
    packed = pack(stages)

    assert packed == stages
    assert list(packed) == list(stages)
    assert len(packed) == len(stages)
    assert bool(packed) == bool(stages)
    assert packed.get("rx.teleport") is None
    assert pack(packed) is packed


def test_a_stage_that_was_not_packed_is_missing() -> None:
    with pytest.raises(KeyError, match=r"tcp\.rtt"):
        pack({"rx.total": StageMeasurement()})["tcp.rtt"]
    assert not PackedStages()
