"""Facts about a probe, as its status is built from them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    StageMeasurement,
)
from latencyprobe.domain.report import report_on
from latencyprobe.domain.stages import DEFAULT_MODULES, stages_of
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.probes.facts import NodeFacts, PodFacts, ProbeFacts
from tools.fakes.samples import probe_spec

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
SPEC = replace(probe_spec(), node_figures=True)
READY = NodeFacts("node-a", NodeState.READY, attached=2)
SLOW_READER = Measurement(
    {
        "rx.stack": StageMeasurement(Histogram.of([1_000_000] * 200)),
        "rx.socket": StageMeasurement(Histogram.of([9_000_000] * 200)),
        "rx.total": StageMeasurement(Histogram.of([10_000_000] * 200)),
    }
)


def noisy(chance: random.Random, spread: float = 0.5) -> Measurement:
    """The figures of an interval, of all stages, that differ from the last by about this."""
    scale = 10**6 * chance.lognormvariate(0, spread)
    histogram = Histogram.of([round(scale * (1 + n / 50)) for n in range(20)])
    stages = {stage.name: StageMeasurement(histogram) for stage in stages_of(DEFAULT_MODULES)}
    return Measurement(stages, {"retransmits": chance.randrange(100)})


def facts(**parts: Any) -> ProbeFacts:
    """A probe that measures two pods on one node, but for `parts`."""
    whole: dict[str, Any] = {
        "spec": SPEC,
        "generation": 3,
        "matched_pods": 2,
        "containers": 2,
        "nodes": [READY],
        "start_time": NOW,
        **parts,
    }
    return ProbeFacts(**whole)


def listed(
    name: str,
    node: str,
    containers: tuple[str, ...],
    measurement: Measurement,
    *,
    of_node: NodeMeasurement = NOTHING_OF_THE_NODE,
) -> PodFacts:
    """A pod whose agent has reported on this measurement."""
    return PodFacts(name, node, containers, report_on(measurement, SPEC.modules, of_node))
