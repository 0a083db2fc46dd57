"""The size and cost of an agent's metrics: python -m bench.scrapes.

Every pod has samples in 100 buckets of each stage of rx, tx and tcp, and a verdict. Sums and
exposition are the agent's own; nothing else of it runs. Prints series, bytes and CPU time of one
scrape, for pods with and without series of their own, in two formats. Prometheus stores a native
histogram as one series.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import NOTHING_OF_THE_NODE, Measurement, StageMeasurement
from latencyprobe.domain.stages import DEFAULT_MODULES, STAGES, stages_of
from latencyprobe.domain.summary import ProbeSummary
from latencyprobe.exposition.page import ClassicView, metrics_page
from latencyprobe.exposition.protobuf import CONTENT_TYPE
from latencyprobe_agent.collector import Collector, Moment
from latencyprobe_agent.desired import Desired, DesiredProbe, DesiredTarget, PodSelector
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.plan import TargetKey
from latencyprobe_agent.serving.figures import FigureCollector
from latencyprobe_agent.totals import Totals
from latencyprobe_agent.windows.probe_window import WindowReport

NATIVE = CONTENT_TYPE.replace(" ", "")
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
BUCKETS = 100
PACKETS_OF_A_BUCKET = 20
# Pods, and those that may have series of their own.
SETTINGS = ((20, 110), (110, 110), (110, 0))
_ROUNDS = 5
_COUNTERS = ("retransmits", "zeroWindows", "delayedAcks", "drops.NO_SOCKET")


@dataclass(frozen=True, slots=True)
class Scrape:
    """One answer of the agent. `cpu_ms`: the least of some rounds."""

    series: int
    size: int
    cpu_ms: float


class BusyAgent:
    """The sums of an agent with one probe on these pods, each of which had one reading."""

    def __init__(self, pods: int, max_pods: int) -> None:
        self._probe = _probe_on([f"checkout-7d4b9c6f5-{number:05}" for number in range(pods)])
        totals = Totals(max_pods)
        self._collector = Collector(totals)
        self._collector.follow(Desired(1, (self._probe,)), _NOW)
        self._collector.own(
            {
                slot: (TargetKey(self._probe.id, target.id),)
                for slot, target in enumerate(self._probe.targets)
            }
        )
        self.registry = CollectorRegistry()
        self.registry.register(FigureCollector(self, totals, "node-1"))
        self.sampling_ratio = 1.0
        self.coverage = [StageCoverage(stage.name, CoverageState.ACTIVE) for stage in STAGES]
        self.read()

    def read(self) -> None:
        """Add a reading of all pods to the sums."""
        reading = _reading()
        self._collector.add({slot: reading for slot, _ in enumerate(self._probe.targets)})

    def newest_reports(self) -> Iterator[WindowReport]:
        """Yield the report on the probe: every pod has a verdict."""
        verdicts = {target.pod_name: Bottleneck.PEER for target in self._probe.targets}
        summary = ProbeSummary(verdicts={str(Bottleneck.PEER): len(verdicts)})
        yield WindowReport(self._probe, _NOW, _NOW, summary, (), NOTHING_OF_THE_NODE, verdicts)

    def scrape(self, accept: str) -> Scrape:
        """Answer in this format."""
        times = []
        for page in [
            metrics_page(self.registry) for _ in range(_ROUNDS)
        ]:  # a page is kept for a second
            began = time.process_time()
            page({"accept": accept})
            times.append(time.process_time() - began)
        size = len(metrics_page(self.registry)({"accept": accept}).body)
        return Scrape(series_of(self.registry, accept), size, 1000 * min(times))


def series_of(registry: CollectorRegistry, accept: str) -> int:
    """Return the number of series that Prometheus stores of a scrape in this format."""
    if accept == NATIVE:
        families = list(registry.collect())
        native = sum(len(getattr(family, "histograms", ())) for family in families)
        samples = [sample for family in families for sample in family.samples]
        # The time when a series began is a field of it there.
        return native + sum(not sample.name.endswith("_created") for sample in samples)
    return sum(len(family.samples) for family in ClassicView(registry).collect())


_NOW = Moment(0.0, 0)


def _probe_on(pods: Sequence[str]) -> DesiredProbe:
    return DesiredProbe(
        id="bench",
        name="shop/checkout",
        modules=frozenset(DEFAULT_MODULES),
        socket_filter=SocketFilter(),
        interval_s=10.0,
        max_cpu_percent=0.0,
        targets=tuple(DesiredTarget(f"uid of {pod}", PodSelector(pod), pod) for pod in pods),
        namespace="shop",
        per_pod=True,
    )


def _reading() -> Measurement:
    first = 60
    counts = dict.fromkeys(range(first, first + BUCKETS), PACKETS_OF_A_BUCKET)
    histogram = Histogram(counts, sum_ns=10**9, min_ns=10**4, max_ns=10**8)
    stages = {stage.name: StageMeasurement(histogram) for stage in stages_of(DEFAULT_MODULES)}
    return Measurement(stages, dict.fromkeys(_COUNTERS, 3))


def main() -> None:
    """Print the figures."""
    table = Table("pods", "with series", "format", "series", "bytes", "CPU ms")
    for pods, max_pods in SETTINGS:
        agent = BusyAgent(pods, max_pods)
        for name, accept in (("protobuf", NATIVE), ("OpenMetrics", OPENMETRICS)):
            found = agent.scrape(accept)
            table.add_row(
                str(pods),
                str(min(pods, max_pods)),
                name,
                f"{found.series:,}",
                f"{found.size:,}",
                f"{found.cpu_ms:.1f}",
            )
        began = time.process_time()
        agent.read()
        table.caption = f"one reading of {pods} pods: {1000 * (time.process_time() - began):.0f} ms"
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


if __name__ == "__main__":
    main()
