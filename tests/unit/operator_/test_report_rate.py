"""The rate of an agent's reports: enough for every sound agent, and no more."""

from __future__ import annotations

import logging
import random

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.fairness import MAX_PROBES, MAX_TARGETS
from latencyprobe.process.backoff import Backoff
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents import report_rate
from latencyprobe_operator.agents.messages import slices
from latencyprobe_operator.agents.news import BURST
from latencyprobe_operator.agents.report_rate import (
    EXCESS_RETRY_S,
    EXTRA_BYTES,
    EXTRA_MESSAGES,
    EXTRA_PARTS,
    ExcessiveReportsError,
    ReportRate,
)
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.metrics import OperatorMetrics
from tests.unit.operator_.listening import NODE, SOUND, UID, Listening
from tests.unit.operator_.waiting import until
from tools.fakes.agent import FakeAgent
from tools.fakes.samples import target_id

HALF_MIB = 1 << 19


class Clock:
    """A monotonic clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rate(clock: Clock) -> ReportRate:
    return ReportRate(clock.monotonic)


def asked(
    *intervals_s: int, targets: int = 1, pods: int = 0, window_s: int = 0, max_pods: int = 0
) -> list[pb.Probe]:
    """Probes with these intervals. `pods`: the number of those without a running container."""
    return [
        pb.Probe(
            id=f"{number}",
            interval=Duration(seconds=each),
            targets=[pb.Target()] * targets,
            pods=[pb.Pod()] * pods,
            window=Duration(seconds=window_s),
            max_pods=max_pods,
        )
        for number, each in enumerate(intervals_s)
    ]


def messages_until_excess(rate: ReportRate, size: int, parts: int = 1) -> int:
    """How many messages of this size are taken at once."""
    for count in range(10**6):
        try:
            rate.take(size)
            rate.take_parts(parts)
        except ExcessiveReportsError:
            return count
    raise AssertionError("there is no limit")


def test_small_messages_are_limited_by_their_number_and_large_ones_by_their_bytes(
    rate: ReportRate,
) -> None:
    assert messages_until_excess(rate, 100) == EXTRA_MESSAGES
    assert messages_until_excess(ReportRate(Clock().monotonic), HALF_MIB) == EXTRA_BYTES // HALF_MIB


def test_messages_of_many_parts_are_limited_by_these(rate: ReportRate, clock: Clock) -> None:
    rate.mark_applied(asked(1))
    assert messages_until_excess(rate, 100, MAX_PROBES) == EXTRA_PARTS // MAX_PROBES
    clock.now += EXCESS_RETRY_S
    assert messages_until_excess(rate, 100, MAX_PROBES) == 0


def test_all_probes_of_an_agent_may_share_messages(rate: ReportRate, clock: Clock) -> None:
    probes = asked(*[1] * MAX_PROBES)
    rate.mark_applied(probes)
    for _ in range(100):
        for _ in range(4):
            rate.take(HALF_MIB)
            rate.take_parts(MAX_PROBES)
        clock.now += 1


def test_after_an_excess_an_agent_may_send_what_its_intervals_justify_since(
    rate: ReportRate, clock: Clock
) -> None:
    rate.expect(asked(10, 10))
    rate.mark_applied(asked(10, 10))
    messages_until_excess(rate, 100)
    clock.now += EXCESS_RETRY_S
    again = messages_until_excess(rate, 100)
    # Of each probe: a summary, the pods that were chosen meanwhile, and another part of either.
    assert 2 * 3 * EXCESS_RETRY_S / 10 <= again < 2 * 5 * EXCESS_RETRY_S / 10


def test_without_probes_nothing_is_added(rate: ReportRate, clock: Clock) -> None:
    messages_until_excess(rate, 100)
    clock.now += 3600
    assert messages_until_excess(rate, 100) == 0


def test_while_a_state_is_applied_the_one_before_still_counts(
    rate: ReportRate, clock: Clock
) -> None:
    rate.mark_applied(asked(1))
    messages_until_excess(rate, 100)
    rate.expect(asked(600))
    clock.now += 60
    assert messages_until_excess(rate, 100) >= 60
    rate.mark_applied(asked(600))
    clock.now += 60
    assert messages_until_excess(rate, 100) < 2


@given(st.lists(st.integers(1, 600), min_size=1, max_size=20), st.integers(1, 200))
def test_an_agent_that_keeps_to_its_intervals_is_never_refused(
    intervals_s: list[int], targets: int
) -> None:
    clock = Clock()
    rate = ReportRate(clock.monotonic)
    probes = asked(*intervals_s, targets=targets)
    rate.expect(probes)
    rate.mark_applied(probes)
    for second in range(1, 700):
        clock.now += 1
        for interval_s in intervals_s:
            if second % interval_s == 0:  # each due probe in messages of its own
                size = 4096 * targets + 10_000
                for _ in range(size // HALF_MIB):
                    rate.take(HALF_MIB)
                rate.take(size % HALF_MIB)
                rate.take_parts(1 + size // HALF_MIB)


def test_the_largest_report_is_within_the_rate_of_any_interval(
    rate: ReportRate, clock: Clock
) -> None:
    rate.expect(asked(10, targets=MAX_TARGETS))
    rate.mark_applied(asked(10, targets=MAX_TARGETS))
    for _ in range(20):
        clock.now += 10
        for _ in range(5 * MAX_TARGETS * 1024 // HALF_MIB):
            rate.take(HALF_MIB)


@pytest.mark.parametrize(
    "probes",
    [
        asked(10, targets=1, window_s=60, max_pods=100),
        asked(10, targets=0, window_s=3600, max_pods=100),
        asked(10, targets=0, pods=100, window_s=60, max_pods=20),
    ],
    ids=["one runs", "all have left", "they wait"],
)
def test_pods_without_a_running_container_may_be_reported_in_full(
    rate: ReportRate, clock: Clock, probes: list[pb.Probe]
) -> None:
    rate.expect(probes)
    rate.mark_applied(probes)
    for _ in range(360):
        clock.now += 10
        rate.take(310 << 10)
        rate.take_parts(1)


def test_without_a_window_only_running_pods_are_reported(rate: ReportRate, clock: Clock) -> None:
    rate.mark_applied(asked(10, targets=1, max_pods=100))
    messages_until_excess(rate, 310 << 10)
    clock.now += 100
    assert messages_until_excess(rate, 310 << 10) <= 2


@pytest.fixture
def timeless(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the meter that stands still."""
    clock = Clock()
    monkeypatch.setattr(report_rate, "time", clock)
    return clock


async def test_a_flood_of_sound_reports_ends_its_stream(
    timeless: Clock,
    listening: Listening,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2 * EXTRA_MESSAGES):
        listening.agent.report(UID, {target_id("a"): SOUND})
    await until(
        lambda: listening.fleet.view(NODE).state is NodeState.UNREACHABLE,
        what=lambda: len(listening.reports),
    )
    assert len(listening.reports) == EXTRA_MESSAGES
    assert "more reports than the intervals" in listening.fleet.view(NODE).message
    assert excesses(listening.metrics) == 1
    lines = [r for r in caplog.records if "stream of reports is ended" in r.getMessage()]
    assert [line.levelno for line in lines] == [logging.WARNING]
    assert NODE in lines[0].getMessage()


async def test_many_reports_on_one_probe_in_each_message_end_their_stream(
    timeless: Clock, listening: Listening
) -> None:
    probe = pb.ProbeReport(id=UID, summary=pb.ProbeSummary())
    full = pb.Report(probes=[probe] * MAX_PROBES, overhead=pb.Overhead())
    for _ in range(20):
        listening.send(full)
    await until(lambda: excesses(listening.metrics), what=lambda: len(listening.reports))
    assert len(listening.reports) == EXTRA_PARTS


async def test_a_flood_of_large_reports_ends_its_stream(
    timeless: Clock,
    listening: Listening,
) -> None:
    target = pb.TargetReport(status=pb.TargetStatus(id=target_id("a")))
    probe = pb.ProbeReport(id=UID, targets=[target] * 4)
    large = pb.Report(probes=[probe], overhead=pb.Overhead())
    large.probes[0].targets[0].netns_counters.update({f"{n:064}": 1 for n in range(5000)})
    assert large.ByteSize() > 300_000
    for _ in range(100):
        listening.send(large)
    await until(lambda: excesses(listening.metrics), what=lambda: len(listening.reports))
    assert len(listening.reports) == EXTRA_BYTES // sent_size(large, listening.agent)


def sent_size(report: pb.Report, agent: FakeAgent) -> int:
    """Its bytes as the agent sends it."""
    report.instance_id, report.generation = agent.instance_id, agent.applied[-1].generation
    return report.ByteSize()


def excesses(metrics: OperatorMetrics) -> float:
    """The streams that were ended for their rate."""
    value = metrics.registry.get_sample_value(
        "latencyprobe_operator_excessive_streams_total", {"agent_node": NODE}
    )
    return value or 0.0


async def test_another_instance_with_every_session_is_tried_ever_more_seldom(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []
    next_delay = Backoff.next

    def no_delay(backoff: Backoff) -> float:
        delays.append(next_delay(backoff))
        return 0.0

    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    monkeypatch.setattr(Backoff, "next", no_delay)
    for number in range(6):
        await until(lambda: listening.agent.listeners, what=lambda: delays)
        listening.agent.send(pb.Report(instance_id=f"other-{number}"))
        await applied_again(listening, number + 2)
    assert delays == [0.25, 0.5, 1, 2, 4, 8]


async def applied_again(listening: Listening, times: int) -> None:
    """Wait until the agent has applied a state so many times, and sends reports."""
    await until(lambda: len(listening.agent.applied) == times, what=lambda: listening.agent.applied)
    await listening.ready()


def covered(state: pb.StageCoverage.State) -> pb.Report:
    """A report with the coverage of one stage."""
    return pb.Report(coverage=[pb.StageCoverage(name="rx.total", state=state)])


async def test_coverage_that_flaps_is_passed_on_a_few_times(listening: Listening) -> None:
    for number in range(200):
        listening.send(covered(pb.StageCoverage.PARTIAL if number % 2 else pb.StageCoverage.ACTIVE))
    listening.send(covered(pb.StageCoverage.UNAVAILABLE))
    await until(
        lambda: states(listening) == [CoverageState.UNAVAILABLE], what=lambda: states(listening)
    )
    assert BURST <= listening.changes < BURST + 10


async def test_the_same_coverage_with_every_report_is_no_news(listening: Listening) -> None:
    listening.send(covered(pb.StageCoverage.ACTIVE))
    await until(lambda: states(listening), what=lambda: listening.fleet.view(NODE))
    before = listening.changes
    for _ in range(10):
        listening.send(covered(pb.StageCoverage.ACTIVE))
    await listening.goes_on()
    assert listening.changes == before


def states(listening: Listening) -> list[CoverageState]:
    """The states of the covered stages."""
    return [stage.state for stage in listening.fleet.view(NODE).coverage.values()]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=200), st.booleans())
def test_slices_are_the_whole_and_small(ids: list[tuple[int, int]], more: bool) -> None:
    targets = [
        pb.TargetReport(status=pb.TargetStatus(id=f"{pod}/{number}")) for pod, number in sorted(ids)
    ]
    node = pb.NodeContext(counters={"squeezed": 1})
    whole = pb.ProbeReport(id=UID, targets=targets, node=node, more=more)
    parts = list(slices(whole))
    assert [target for part in parts for target in part.targets] == targets
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [more]
    assert [part.HasField("node") for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(len(part.targets) <= 64 for part in parts)
    assert len(parts) <= 1 + len(targets) // 16
