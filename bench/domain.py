"""The arithmetic over 1,000 nodes' summaries of 12 stages each, on one core.

In every interval each node's summary is decoded, and all of them are added up. The rates give the
share of a core for that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.progress import Progress
from rich.table import Table

from bench.outcome import Outcome
from bench.ratio import MEDIAN, Spread, verdict
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.report import report_on
from latencyprobe.domain.stages import COUNTERS, DEFAULT_MODULES, STAGES
from latencyprobe.domain.summary import PodScore, ProbeSummary
from latencyprobe.protocol.summaries import summary_from_proto, summary_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.observed_state import ReportedProbe
from latencyprobe_operator.probes.summaries import NodeSummaries
from latencyprobe_operator.probes.sums import RunningSum, packed

DEFAULT_ROUNDS = 5
NODES, PODS = 1_000, 10_000
INTERVAL_S = 10.0
WINDOW_S = 60.0
_DIFFERENT_PODS = 250
_SAMPLES_OF_A_STAGE = 400
_SLICE = 1000  # operations timed together; a round does each task once, in turns


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of work. `times`: its number in an interval of all pods; None: part of another."""

    name: str
    work: Callable[[int], object]
    times: int | None = None
    slice_operations: int = _SLICE


async def run(rounds: int, progress: Progress) -> Outcome:
    """Time every task in turns."""
    tasks = _tasks(_pods())
    bar = progress.add_task("domain", total=rounds * len(tasks))
    rates: dict[str, list[float]] = {task.name: [] for task in tasks}
    for _ in range(rounds):
        for task in tasks:
            rates[task.name].append(_rate(task))
            progress.advance(bar)
    return _outcome(tasks, {name: Spread.of(values) for name, values in rates.items()})


def _pods() -> Sequence[Measurement]:
    """Return one interval of pods whose stages spread over some 25 buckets, like real ones."""
    chance = random.Random(1)
    return [_pod(chance) for _ in range(_DIFFERENT_PODS)]


def _pod(chance: random.Random) -> Measurement:
    def durations(typical_ns: float) -> list[int]:
        return [
            max(1, round(chance.lognormvariate(0, 0.7) * typical_ns))
            for _ in range(_SAMPLES_OF_A_STAGE)
        ]

    stages = {
        stage.name: StageMeasurement(Histogram.of(durations(10 ** chance.uniform(3, 6))))
        for stage in STAGES
    }
    return Measurement(stages, {counter.name: 1 for counter in COUNTERS[:3]})


def _tasks(pods: Sequence[Measurement]) -> tuple[Task, ...]:
    histograms = [measured.histogram for pod in pods for measured in pod.stages.values()]
    messages = [_summary(pod).SerializeToString() for pod in pods]
    reports = [_report(pod) for pod in pods]
    stored = [packed(pod) for pod in pods]
    summaries, running = NodeSummaries(), RunningSum()

    def histogram(index: int) -> Histogram:
        return histograms[index % len(histograms)]

    def pod(index: int) -> Measurement:
        return pods[index % len(pods)]

    def decode(index: int) -> ProbeSummary:
        return summary_from_proto(pb.ProbeSummary.FromString(messages[index % len(messages)]))

    def take(index: int) -> None:
        report = reports[index % len(reports)]
        assert report.summary
        summaries.take(f"node {index}", report, report.summary, at=0.0, window_s=WINDOW_S)

    return (
        Task("add two histograms", lambda i: histogram(i) + histogram(i + 1), None, 20 * _SLICE),
        Task("percentile of a histogram", lambda i: histogram(i).percentile(99), None, 20 * _SLICE),
        Task("add two pods", lambda i: pod(i) + pod(i + 1)),
        Task("report on a pod", lambda i: report_on(pod(i), DEFAULT_MODULES)),
        Task("decode a node's summary", decode, NODES),
        Task("take a node's summary in", take, NODES),
        Task("add a node's summary", lambda i: running.add(stored[i % len(stored)]), NODES),
    )


def _report(pod: Measurement) -> ReportedProbe:
    return ReportedProbe(probe_uid="probe", summary=ProbeSummary(merged=pod))


def _summary(pod: Measurement) -> pb.ProbeSummary:
    scores = tuple(PodScore(number, f"{number:036}") for number in range(PODS // NODES))
    return summary_to_proto(ProbeSummary(merged=pod, scores=scores))


def _rate(task: Task) -> float:
    began = time.process_time()
    for index in range(task.slice_operations):
        task.work(index)
    return task.slice_operations / (time.process_time() - began)


def _outcome(tasks: Sequence[Task], rates: dict[str, Spread]) -> Outcome:
    table = Table(title=f"{NODES:,} nodes x {len(STAGES)} stages every {INTERVAL_S:.0f} s")
    table.add_column("task")
    for heading in (f"a second: {MEDIAN}", "times an interval", "% of a core"):
        table.add_column(heading, justify="right")
    percents = {
        task.name: 100 * task.times / rates[task.name].median / INTERVAL_S
        for task in tasks
        if task.times is not None
    }
    for task in tasks:
        rate = rates[task.name]
        table.add_row(
            task.name,
            f"{rate.median:,.0f}  ({rate.lower:,.0f} to {rate.upper:,.0f})",
            "" if task.times is None else f"{task.times:,}",
            "" if task.times is None else f"{percents[task.name]:.1f}",
        )
    whole = sum(percents.values())
    table.add_row("all of it", "", "", f"{whole:.1f}", end_section=True)
    return Outcome(
        (
            table,
            f"Target: the whole operator within a core; this takes {whole:.0f} % of one: "
            + verdict(met=whole < 100),
        ),
        {
            "nodes": NODES,
            "stages": len(STAGES),
            "per_second": {name: rate.document() for name, rate in rates.items()},
            "percent_of_a_core": {name: round(value, 2) for name, value in percents.items()},
            "percent_of_a_core_in_all": round(whole, 2),
        },
    )
