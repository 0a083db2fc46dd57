"""A faulty or hostile agent costs itself a counter and a line, and nobody else anything."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import grpc
import pytest

from latencyprobe.domain.fairness import MAX_PROBES, MAX_TARGETS
from latencyprobe.domain.stages import COUNTERS, DROPS, STAGES, Module
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.limits import LARGEST_NUMBER
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents import session
from latencyprobe_operator.agents.link import MAX_INCOMING_BYTES
from latencyprobe_operator.agents.messages import MAX_TEXT_LENGTH
from latencyprobe_operator.agents.misreports import LOG_INTERVAL_S, Misreports
from latencyprobe_operator.desired_state import NO_STATE, DesiredStates
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import UNKNOWN_TARGET
from tests.unit.operator_.listening import NODE, SOUND, UID, Listening
from tests.unit.operator_.waiting import until
from tools.fakes.samples import pod, probe_spec, target_id


def stage(**parts: object) -> pb.TargetReport:
    """A report on pod a with one stage of such parts."""
    return pb.TargetReport(
        status=pb.TargetStatus(id=target_id("a"), state=pb.TargetStatus.ATTACHED),
        stages=[pb.StageDelta(**{"name": "rx.total", "sampling_ratio": 1.0, **parts})],  # type: ignore[arg-type]
    )


def histogram(count: int = 1, **parts: int) -> pb.Histogram:
    """A histogram of one bucket, with these parts."""
    numbers = {"sum_ns": 100, "min_ns": 100, "max_ns": 100, **parts}
    return pb.Histogram(positions=[5], counts=[count], **numbers)


def counted(**parts: dict[str, int]) -> pb.TargetReport:
    """A report on pod a with such counters."""
    report = stage()
    report.MergeFrom(pb.TargetReport(**parts))  # type: ignore[arg-type]
    return report


@pytest.mark.parametrize(
    "target",
    [
        stage(sampling_ratio=5e-324),
        stage(sampling_ratio=2.0**-17),
        stage(sampling_ratio=math.nan),
        stage(sampling_ratio=-1.0),
        stage(lost=2**53),
        stage(unmatched=2**64 - 1),
        stage(clamped=2**64 - 1),
        stage(histogram=histogram(2**64 - 1)),
        stage(histogram=histogram(sum_ns=2**64 - 1)),
        stage(histogram=histogram(max_ns=2**64 - 1)),
        counted(counters={"retransmits": 2**64 - 1}),
        counted(counters={f"drops.R{number}": 1 for number in range(257)}),
        counted(netns_counters={"TcpExtListenDrops": 2**53}),
        pb.TargetReport(
            status=stage().status,
            stages=[pb.StageDelta(name=f"rx.{number}") for number in range(257)],
        ),
    ],
    ids=lambda target: str(target)[-60:].replace("\n", " "),
)
async def test_figures_that_no_agent_measures_are_left_out_and_counted(
    listening: Listening, target: pb.TargetReport
) -> None:
    listening.send(pb.Report(probes=[pb.ProbeReport(id=UID, targets=[target])]))

    (reported,) = (await listening.heard()).targets
    assert not reported.measurement
    assert reported.corruption
    assert listening.corrupt == 1
    await listening.goes_on()


async def test_the_largest_figures_and_the_lowest_sampling_are_taken(listening: Listening) -> None:
    target = stage(lost=LARGEST_NUMBER, sampling_ratio=2.0**-16)
    listening.send(pb.Report(probes=[pb.ProbeReport(id=UID, targets=[target])]))

    (reported,) = (await listening.heard()).targets
    assert reported.measurement.stage("rx.total").lost == LARGEST_NUMBER
    assert listening.corrupt == 0


@pytest.mark.parametrize(
    "node",
    [
        pb.NodeContext(counters={"softnetDropped": 2**64 - 1}),
        pb.NodeContext(stages=[pb.StageDelta(name="rx.total", sampling_ratio=5e-324)]),
        pb.NodeContext(stages=[pb.StageDelta(name=f"rx.{n}") for n in range(4097)]),
    ],
    ids=["counters", "ratio", "stages"],
)
async def test_a_nodes_figures_that_no_agent_measures_are_left_out_and_counted(
    listening: Listening, node: pb.NodeContext
) -> None:
    listening.send(pb.Report(probes=[pb.ProbeReport(id=UID, targets=[stage()], node=node)]))

    report = await listening.heard()
    assert not report.node
    assert report.node_corruption
    assert listening.corrupt == 1
    await listening.goes_on()


@pytest.mark.parametrize("cpu_percent", [math.nan, math.inf, -math.inf, -1.0, 1e300])
async def test_a_cpu_time_that_is_no_number_is_left_out(
    listening: Listening, cpu_percent: float
) -> None:
    listening.send(pb.Report(overhead=pb.Overhead(cpu_percent=0.5, measured=True)))
    listening.send(pb.Report(overhead=pb.Overhead(cpu_percent=cpu_percent, measured=True)))

    await listening.goes_on()
    assert listening.fleet.view(NODE).cpu_percent == 0.5
    assert listening.corrupt == 1


async def test_only_known_modules_are_stopped(listening: Listening) -> None:
    names = ["\x1b[2J", "tx", *(f"invented-{n}" for n in range(1000)), "sched", "tx"]
    listening.send(pb.Report(overhead=pb.Overhead(stopped_modules=names)))

    await listening.goes_on()
    assert listening.fleet.view(NODE).stopped_modules == (Module.TX, Module.SCHED)


async def test_only_targets_that_the_agent_was_asked_for_are_taken(listening: Listening) -> None:
    probe = pb.ProbeReport(id=UID, targets=[stage()])
    for name in ("b", "c"):
        probe.targets.add().status.id = target_id(name)
    listening.send(pb.Report(probes=[probe]))

    report = await listening.heard()
    assert [target.id for target in report.targets] == [target_id("a")]
    assert report.unasked == 2
    assert listening.corrupt == 1
    assert UID not in listening.fleet.view(NODE).others


async def test_an_answer_adds_no_targets(listening: Listening) -> None:
    listening.agent.status = lambda target: pb.TargetStatus(
        id=f"{target.id}-invented", state=pb.TargetStatus.ATTACHED
    )
    states = DesiredStates()
    states.set_probe(probe_spec(), [pod("a"), pod("b")])
    listening.fleet.want(NODE, states.of_node(NODE))
    assert await listening.fleet.settle([NODE], timeout_s=50)

    assert listening.fleet.view(NODE).others == {
        UID: {target_id("a"): UNKNOWN_TARGET, target_id("b"): UNKNOWN_TARGET}
    }


async def test_the_last_report_on_a_target_that_has_left_is_no_fault(listening: Listening) -> None:
    before = listening.agent.applied[-1].generation
    states = DesiredStates()
    states.set_probe(probe_spec(), [pod("b")])
    listening.fleet.want(NODE, states.of_node(NODE))
    assert await listening.fleet.settle([NODE], timeout_s=50)
    listening.agent.report(UID, {target_id("a"): SOUND}, generation=before)

    assert (await listening.heard()).unasked == 0
    assert listening.corrupt == 0


async def test_only_stages_and_counters_of_the_vocabulary_are_covered(
    listening: Listening,
) -> None:
    known = [*(each.name for each in STAGES), *(each.name for each in COUNTERS), DROPS]
    invented = [f"invented-{number}" for number in range(100)]
    listening.send(
        pb.Report(
            coverage=[
                pb.StageCoverage(name=name, state=pb.StageCoverage.ACTIVE)
                for name in [*invented, *known]
            ]
        )
    )

    await until(
        lambda: listening.fleet.view(NODE).coverage, what=lambda: listening.fleet.view(NODE)
    )
    assert listening.fleet.view(NODE).coverage.keys() == set(known)


async def test_covered_stages_that_are_unknown_are_kept_by_name(listening: Listening) -> None:
    states = {
        "rx.new": pb.StageCoverage.ACTIVE,
        "\x1bnew" + "x" * 100: pb.StageCoverage.PARTIAL,
        "idle.new": pb.StageCoverage.IDLE,
        "lost.new": pb.StageCoverage.UNAVAILABLE,
        "rx.total": pb.StageCoverage.ACTIVE,
    }
    for names in (states, ["rx.total"]):
        before = listening.changes
        listening.send(
            pb.Report(coverage=[pb.StageCoverage(name=name, state=states[name]) for name in names])
        )
        await until(lambda: listening.changes > before, what=lambda: listening.fleet.view(NODE))  # noqa: B023
        unknown = listening.fleet.view(NODE).unknown
        assert len(unknown) == (2 if names is states else 0)
        assert all(name.isprintable() and len(name) <= 64 for name in unknown)


async def test_an_agents_text_is_short_and_printable(listening: Listening) -> None:
    hostile = "\x1b[2J" + "x" * 10_000
    listening.send(
        pb.Report(
            coverage=[
                pb.StageCoverage(
                    name="rx.total",
                    state=pb.StageCoverage.UNAVAILABLE,
                    hook=hostile,
                    reason=hostile,
                )
            ],
            probes=[
                pb.ProbeReport(
                    id=UID,
                    targets=[
                        pb.TargetReport(
                            status=pb.TargetStatus(
                                id=target_id("a"), state=pb.TargetStatus.FAILED, message=hostile
                            ),
                            netns_counters={"\x1b": 1, "\\x1b": 2},
                        )
                    ],
                    node=pb.NodeContext(counters={"\x9b": 1}),
                )
            ],
        )
    )

    report = await listening.heard()
    view = listening.fleet.view(NODE)
    covered = view.coverage["rx.total"]
    status = view.others[UID][target_id("a")]
    assert status.state is TargetState.FAILED
    for text in (covered.hook, covered.reason, status.message):
        assert len(text) == MAX_TEXT_LENGTH
        assert text.isprintable()
    assert report.targets[0].measurement.netns_counters == {"\\x1b": 3}
    assert report.node.counters == {"\\x9b": 1}


@pytest.mark.parametrize(
    "flood",
    [
        pb.Report(coverage=[pb.StageCoverage(name=f"{number}") for number in range(20_000)]),
        pb.Report(probes=[pb.ProbeReport(id=UID, targets=[pb.TargetReport()] * 200_000)]),
        pb.Report(probes=[pb.ProbeReport(id=UID, targets=[pb.TargetReport()] * 9)] * MAX_TARGETS),
        pb.Report(probes=[pb.ProbeReport(id=UID)] * (MAX_PROBES + 1)),
    ],
    ids=["coverage", "targets", "targets of many probes", "probes"],
)
async def test_a_report_of_more_parts_than_there_can_be_is_left_out_whole(
    listening: Listening, flood: pb.Report
) -> None:
    listening.send(flood)

    await listening.goes_on()
    assert listening.corrupt == 1
    assert len(listening.reports) == 1
    assert not listening.fleet.view(NODE).coverage


@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip], ids=["plain", "gzip"]
)
async def test_a_message_beyond_the_limit_ends_the_session_and_the_next_works(
    listening: Listening,
) -> None:
    listening.send(pb.Report(coverage=[pb.StageCoverage(name="rx.total", reason="x" * 15_900_000)]))
    await until(lambda: listening.corrupt, what=lambda: listening.fleet.view(NODE))

    await until(
        lambda: listening.agent.listeners == 1 and len(listening.agent.applied) == 2,
        what=lambda: listening.fleet.view(NODE),
    )
    await listening.ready()
    await listening.goes_on()
    assert listening.corrupt == 1
    assert MAX_INCOMING_BYTES == 4 << 20


@pytest.mark.parametrize(
    "compression", list(grpc.Compression), ids=[each.name for each in grpc.Compression]
)
async def test_reports_are_taken_in_however_they_are_compressed(listening: Listening) -> None:
    await listening.goes_on()
    assert not listening.corrupt


async def test_a_report_that_breaks_its_reader_costs_that_report_alone(
    listening: Listening,
) -> None:
    listening.failure = ZeroDivisionError()
    listening.agent.report(UID, {target_id("a"): SOUND})
    await until(lambda: listening.corrupt, what=lambda: listening.fleet.view(NODE))

    listening.failure = None
    await listening.goes_on()
    assert len(listening.agent.applied) == 1


async def test_a_report_that_breaks_its_decoder_costs_that_report_alone(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(session, "reported_probe", fail)
        listening.agent.report_deltas(UID, {target_id("a"): SOUND})
        await until(lambda: listening.corrupt, what=lambda: listening.fleet.view(NODE))

    await listening.goes_on()
    assert len(listening.agent.applied) == 1


def unknown_stage(number: int) -> Callable[[pb.TargetReport], None]:
    """Turn a report into one on an invented stage."""

    def spoil(target: pb.TargetReport) -> None:
        target.stages[0].name = f"bogus{number}"

    return spoil


async def test_a_flood_of_invented_stages_is_one_line(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(300):
        listening.agent.report_deltas(UID, {target_id("a"): SOUND}, spoil=unknown_stage(number))
    await listening.heard(300)

    lines = [record for record in caplog.records if "bogus" in record.getMessage()]
    assert [record.levelno for record in lines] == [logging.WARNING]
    assert NODE in lines[0].getMessage()


async def test_a_flood_of_corrupt_reports_is_one_line(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(300):
        listening.send(
            pb.Report(probes=[pb.ProbeReport(id=UID, targets=[stage(sampling_ratio=5e-324)])])
        )
    await listening.heard(300)

    assert listening.corrupt == 300
    lines = [record for record in caplog.records if "corrupt" in record.getMessage()]
    assert len(lines) == 1


def test_a_line_a_minute_counts_those_that_were_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    misreports = Misreports(NODE, OperatorMetrics(), clock=lambda: now)
    for _ in range(5):
        misreports.note_corrupt("a")
    misreports.note_failed("b", "gone")
    now += LOG_INTERVAL_S
    misreports.note_corrupt("c")
    misreports.note_corrupt("d")

    assert [record.getMessage() for record in caplog.records] == [
        f"agent on node {NODE}: corrupt report left out: a",
        f"agent on node {NODE}: b: gone",
        (
            f"agent on node {NODE}: corrupt report left out: c "
            "(4 similar ones before it were not logged)"
        ),
    ]


async def test_faults_are_counted_for_their_node_until_it_is_gone(listening: Listening) -> None:
    def counted_nodes() -> dict[str, float]:
        (family,) = listening.metrics.corrupt_reports.collect()
        totals = (each for each in family.samples if each.name.endswith("_total"))
        return {each.labels["agent_node"]: each.value for each in totals}

    assert counted_nodes() == {}
    listening.send(pb.Report(probes=[pb.ProbeReport(id=UID, targets=[stage(lost=2**53)])]))
    await until(lambda: listening.corrupt, what=counted_nodes)
    assert counted_nodes() == {NODE: 1}

    # Its agent is replaced: the pods of the node still wait for one.
    listening.fleet.set_agent(NODE, None, "agent pod x is Pending")
    assert counted_nodes() == {NODE: 1}
    listening.fleet.want(NODE, NO_STATE)
    assert counted_nodes() == {}


async def test_the_last_faults_of_a_node_that_is_gone_leave_no_series(
    listening: Listening,
) -> None:
    listening.fleet.want(NODE, NO_STATE)
    listening.fleet.set_agent(NODE, None)
    # A report that was there before its link has ended.
    Misreports(NODE, listening.metrics).note_corrupt("late")
    assert listening.corrupt == 1
    await until(lambda: not listening.corrupt, what=lambda: listening.corrupt)
