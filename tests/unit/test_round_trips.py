"""The distance to the peers, also where handshakes were no round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.verdict import judge
from tests.unit.equal_packets import MS, US, measured

QUICK = measured(500, rx_socket=20 * US, tx_stack=10 * US)


def window(handshakes_ns: list[int], later_ns: list[int], later_least_ns: int) -> Measurement:
    """A server's window: handshakes, each the least so far, and the round trips after them."""
    trips = StageMeasurement(Histogram.of([*handshakes_ns, *later_ns]))
    handshakes = StageMeasurement(Histogram.of(handshakes_ns))
    least_ns = sum(handshakes_ns) + later_least_ns * len(later_ns)
    stages = {"tcp.rtt": trips, "tcp.handshake": handshakes}
    return QUICK + Measurement(stages, {"rttLeastNs": least_ns})


@given(
    st.lists(st.integers(MS, 600 * MS), min_size=20, max_size=200),
    st.integers(1, 5),
    st.integers(20 * US, 300 * US),
)
def test_handshakes_that_end_late_are_no_distance(
    handshakes_ns: list[int], trips_of_each: int, near_ns: int
) -> None:
    """TCP_DEFER_ACCEPT: the ACK that ends a handshake comes with the client's first data."""
    later_ns = [near_ns] * (trips_of_each * len(handshakes_ns))
    verdict = judge(window(handshakes_ns, later_ns, near_ns))
    assert verdict.bottleneck is Bottleneck.NONE
    assert verdict.next_step.startswith("Nothing to do")


@pytest.mark.parametrize("later", [0, 300])
def test_handshakes_by_cookies_are_no_distance(later: int) -> None:
    """Their time-stamps are up to 64 ms too old."""
    cookies_ns = [30 * US + (number % 64) * MS for number in range(1000)]
    verdict = judge(window(cookies_ns, [40 * US] * later, 40 * US))
    assert verdict.bottleneck is Bottleneck.NONE


@given(
    st.integers(10 * MS, 300 * MS),
    st.integers(20, 300),
    st.integers(0, 5),
    st.floats(1, 1.5),
)
def test_a_distance_is_one_however_many_of_the_round_trips_are_handshakes(
    far_ns: int, connections: int, trips_of_each: int, jitter: float
) -> None:
    handshakes_ns = [round(far_ns * jitter)] * connections
    later_ns = [round(far_ns * jitter)] * (connections * trips_of_each)
    verdict = judge(window(handshakes_ns, later_ns, far_ns))
    assert verdict.bottleneck is Bottleneck.NETWORK


def test_some_far_peers_are_a_distance() -> None:
    """A median is no bound for the mean least: most peers are near."""
    far = Measurement(
        {"tcp.rtt": StageMeasurement(Histogram.of([100 * US] * 700 + [40 * MS] * 300))},
        {"rttLeastNs": 700 * 100 * US + 300 * 40 * MS},
    )
    verdict = judge(QUICK + far)
    assert verdict.bottleneck is Bottleneck.NETWORK
    assert "the path's least round trip is 12.1ms; this node's stack takes 30us" in verdict.evidence
