"""Measurements add up the same whatever the order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
    total,
)
from latencyprobe.domain.pending import PENDING_KINDS, Pending
from latencyprobe.domain.stages import COUNTERS, STAGES

counts = st.integers(0, 2**32)
stage_measurements = st.builds(
    StageMeasurement,
    st.lists(st.integers(0, 2**37), max_size=10).map(Histogram.of),
    counts,
    counts,
    counts,
    st.sampled_from([1.0, 0.5, 0.25, 1 / 64]),
)
measurements = st.builds(
    Measurement,
    st.dictionaries(st.sampled_from([stage.name for stage in STAGES]), stage_measurements),
    st.dictionaries(st.sampled_from([counter.name for counter in COUNTERS]), counts),
    st.dictionaries(st.sampled_from(["TcpExtListenDrops", "UdpRcvbufErrors"]), counts),
)
snapshots = st.none() | st.dictionaries(
    st.sampled_from([kind.name for kind in PENDING_KINDS]), st.builds(Pending, counts)
)
node_stages = st.builds(NodeStage, st.just("rx.total"), st.sampled_from(["", "eth0", "NET_RX"]))
node_measurements = st.builds(
    NodeMeasurement,
    st.dictionaries(node_stages, stage_measurements),
    st.dictionaries(st.sampled_from(["softnetDropped", "eth0:rx_missed_errors"]), counts),
)


def assert_same(one: Measurement, other: Measurement) -> None:
    assert one.counters == other.counters
    assert one.netns_counters == other.netns_counters
    assert_same_stages(one.stages, other.stages)


def assert_same_stages(
    one: Mapping[Any, StageMeasurement], other: Mapping[Any, StageMeasurement]
) -> None:
    assert one.keys() == other.keys()
    for name, stage in one.items():
        twin = other[name]
        assert stage.histogram == twin.histogram
        assert (stage.lost, stage.unmatched, stage.clamped) == (
            twin.lost,
            twin.unmatched,
            twin.clamped,
        )
        assert stage.sampling_ratio == pytest.approx(twin.sampling_ratio)


@given(measurements, measurements, measurements)
def test_adding_is_associative_and_commutative(
    a: Measurement, b: Measurement, c: Measurement
) -> None:
    assert_same(a + b, b + a)
    assert_same((a + b) + c, a + (b + c))
    assert_same(NOTHING + a, a)
    assert_same(total([a, b, c]), c + b + a)


@given(measurements, st.lists(snapshots, min_size=3, max_size=3))
def test_a_sum_has_the_pending_figures_of_the_last_reading(
    measured: Measurement, read: list[Mapping[str, Pending] | None]
) -> None:
    a, b, c = (replace(measured, pending=each) for each in read)
    known = [each for each in read if each is not None]
    last = known[-1] if known else None
    assert ((a + b) + c).pending == (a + (b + c)).pending == total([a, b, c]).pending == last
    assert (NOTHING + a).pending == (a + NOTHING).pending == read[0]
    assert bool(Measurement(pending=read[0])) is (read[0] is not None)


@given(node_measurements, node_measurements, node_measurements)
def test_adding_of_nodes_is_associative_and_commutative(
    a: NodeMeasurement, b: NodeMeasurement, c: NodeMeasurement
) -> None:
    for one, other in (
        (a + b, b + a),
        ((a + b) + c, a + (b + c)),
        (NOTHING_OF_THE_NODE + a, a),
        (a + NOTHING_OF_THE_NODE, a),
    ):
        assert one.counters == other.counters
        assert_same_stages(one.stages, other.stages)


def test_the_joint_sampling_ratio_is_all_samples_over_all_packets() -> None:
    whole = StageMeasurement(Histogram.of([100] * 30), sampling_ratio=1.0)
    quarter = StageMeasurement(Histogram.of([100] * 10), sampling_ratio=0.25)
    assert (whole + quarter).sampling_ratio == pytest.approx(40 / 70)


@pytest.mark.parametrize("ratio", [0, -1, 1.01, math.nan])
def test_an_impossible_sampling_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="sampling ratio"):
        StageMeasurement(sampling_ratio=ratio)


def test_negative_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="negative count"):
        StageMeasurement(lost=-1)


def test_of_levels_a_sum_keeps_the_highest() -> None:
    full = [NodeMeasurement({}, {"conntrackFullPercent": percent}) for percent in (40, 90, 60)]
    counted = [NodeMeasurement({}, {"conntrackDrops": 1}), *full]
    total = NodeMeasurement()
    for each in counted:
        total += each
    assert total.counters == {"conntrackDrops": 1, "conntrackFullPercent": 90}
