"""Verdicts on generated windows of healthy loads: no cause is named."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latencyprobe.domain.causes import NO_ACCUSATION
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, NodeMeasurement, StageMeasurement
from latencyprobe.domain.pending import PENDING_KINDS, Pending
from latencyprobe.domain.stages import TARGET_STAGES
from latencyprobe.domain.verdict import NEXT_STEPS, judge

US, MS = 1_000, 1_000_000
# Failures and waits to be sent have rules of their own; these are noise, or say nothing of waits.
COUNTERS = (
    "headOfLineSegments",
    "resetsSent",
    "resetsReceived",
    "connectAborted",
    "connectAbortedNs",
    "delayedAcks",
    "drops.TCP_OLD_DATA",
    "cpuPressureNs",
    "requestsUnanswered",
    "requestsUnansweredNs",
    "lateGreetings",
    "lateGreetingsNs",
    "lateEnds",
    "lateEndsNs",
    "connectionsWithoutData",
    "connectionsWithoutDataNs",
)


@st.composite
def quick(draw: st.DrawFn) -> StageMeasurement:
    """A stage of which 99 in 100 take under half a millisecond, and the others under 5 ms."""
    count = draw(st.integers(0, 20_000))
    slow = draw(st.integers(0, count // 100))
    usual_ns = draw(st.integers(1, 500 * US))
    parts = [
        Histogram({position: number}, number * ns, ns, ns)
        for ns, number in (
            (usual_ns, count - slow - slow // 2),
            (draw(st.integers(usual_ns, 5 * MS)), slow - slow // 2),
            (draw(st.integers(usual_ns, 5 * MS)), 2 * (slow // 2)),
        )
        if number
        for position in Histogram.of([ns]).buckets
    ]
    return StageMeasurement(sum(parts[1:], parts[0]) if parts else Histogram())


@st.composite
def healthy(draw: st.DrawFn) -> Measurement:
    """A window of a healthy target: any stages of it, with noise and requests under way."""
    names = [stage.name for stage in TARGET_STAGES if stage.name != "tcp.recovery"]
    stages = {name: draw(quick()) for name in draw(st.sets(st.sampled_from(names)))}
    counters = draw(st.dictionaries(st.sampled_from(COUNTERS), st.integers(0, 10**6)))
    asked = draw(st.integers(0, 10_000))
    # A resolver may not need every second reply, and a client may give up a few polls.
    counters |= {"dnsQueries": asked, "dnsQueriesEnded": draw(st.integers((asked + 1) // 2, asked))}
    counters |= {"dnsQueriesRepeated": draw(st.integers(0, 4))}
    counters |= {"dnsQueriesRepeatedNs": draw(st.integers(0, 20_000 * MS))}
    given_up_ns = draw(st.integers(0, 240_000 * MS))
    counters |= {"requestsAbandoned": draw(st.integers(0, 4)), "requestsAbandonedNs": given_up_ns}
    young = st.builds(
        Pending,
        st.integers(1, 50),
        st.integers(1, 50),
        oldest_ns=st.integers(0, 999 * MS),
        waiting_ns=st.integers(0, 10_000 * MS),
    )
    kinds = st.sampled_from([kind.name for kind in PENDING_KINDS if kind.name[:5] not in LATE])
    patient = st.builds(Pending, st.integers(1, 50), oldest_ns=st.integers(0, 600_000 * MS))
    pending = draw(st.dictionaries(kinds, young))
    pending |= draw(st.dictionaries(st.sampled_from(UNDER_WAY), patient))
    return Measurement(stages, counters, pending=pending)


# They are there only if an answer is late.
LATE = ("missi", "stuck", "first")
UNDER_WAY = ("unansweredRequests", "requestsInService")


def hold(measurement: Measurement, node: NodeMeasurement) -> None:
    verdict = judge(measurement, node)
    assert verdict.bottleneck in NO_ACCUSATION, verdict
    assert verdict.next_step in NEXT_STEPS


NODES = st.builds(
    lambda steal: NodeMeasurement(counters={"cpuTimeNs": 100 * MS, "cpuStealNs": steal}),
    st.integers(0, 50 * MS),
)


@settings(max_examples=200)
@given(healthy(), NODES)
def test_a_healthy_window_is_never_accused(measurement: Measurement, node: NodeMeasurement) -> None:
    hold(measurement, node)


@pytest.mark.thorough
@pytest.mark.timeout(900)
@settings(max_examples=10_000)
@given(healthy(), NODES)
def test_ten_thousand_healthy_windows_are_never_accused(
    measurement: Measurement, node: NodeMeasurement
) -> None:
    hold(measurement, node)
