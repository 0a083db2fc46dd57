"""An agent's figures as metrics, one of each kind."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.measurement import Measurement, NodeMeasurement
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.summary import ProbeSummary
from latencyprobe_agent.collector import Moment
from latencyprobe_agent.serving.figures import FigureCollector
from latencyprobe_agent.totals import Totals
from latencyprobe_agent.windows.probe_window import WindowReport
from tests.unit.agent.scripted import samples
from tests.unit.agent.totals_of import Followed, probe_on

HOSTILE = 'a"} 1\n# HELP x\\ \udc80\x00\u202e{'


class Source:
    """An agent's state."""

    coverage = (
        StageCoverage("rx.total", CoverageState.ACTIVE),
        StageCoverage(HOSTILE, CoverageState.PARTIAL),
    )
    sampling_ratio = 0.25

    def __init__(self, *reports: WindowReport) -> None:
        self._reports = reports

    def newest_reports(self) -> tuple[WindowReport, ...]:
        return self._reports


def registry_of(totals: Totals, *reports: WindowReport, node: str = "blue") -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(FigureCollector(Source(*reports), totals, node, clock=lambda: 0.0))
    return registry


def window_report(**verdicts: Bottleneck) -> WindowReport:
    summary = ProbeSummary(verdicts={"SlowReader": 2}, unobserved_ns=1_500_000_000)
    at = Moment(0, 0)
    return WindowReport(probe_on("a"), at, at, summary, (), NodeMeasurement(), verdicts)


def measured() -> Totals:
    followed = Followed()
    followed.follow(probe_on("a"))
    one = Measurement(
        {"rx.total": replace(samples(5_000).stages["rx.total"], lost=2, clamped=1)},
        {"retransmits": 3, "drops.NO_SOCKET": 4, "rtos": 0},
        pending={"unreadSegments": Pending(7, oldest_ns=2_000_000_000)},
    )
    followed.read(one)
    # Not in this vocabulary: the collector leaves it out.
    (total,) = (each for subject, each in followed.current().items() if subject.pod)
    total.add(
        Measurement(counters={"behindWindowNs": 1_500_000_000, "waitedForCgroup.7": 250_000_000})
    )
    return followed.totals


def sample_figures() -> CollectorRegistry:
    """Every figure."""
    return registry_of(measured(), window_report(a=Bottleneck.SLOW_READER))
