"""Figures of LatencyProbes as metrics: those of the status, until the measurement ends."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.stages import TARGET_STAGES
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probe_figures import ObjectiveFigures, ProbeSnapshot
from tests.unit.operator_.probe_world import World, report, running, take
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tests.unit.operator_.waiting import until
from tools.fakes.agent import measurement
from tools.fakes.samples import pod, probe_body, target_id

DOCS = Path(__file__).parents[3] / "docs"
OBJECTIVES = [
    {"name": "reads", "stage": "rx.total", "percentile": "p99", "max": "5ms"},
    {"name": "writes", "stage": "tx.total", "percentile": "p50", "max": "1ms"},
]
OF_PROBE = {"namespace": "shop", "probe": "checkout"}


LOOP = VirtualTimeLoop


@pytest.fixture
def world() -> World:
    return World()


async def test_a_measuring_probe_has_the_figures_of_its_status(world: World) -> None:
    def value(name: str, **labels: str) -> float | None:
        full = f"latencyprobe_operator_{name}"
        return world.metrics.registry.get_sample_value(full, {**OF_PROBE, **labels})

    body = probe_body(interval="1s", objectives=OBJECTIVES)
    async with running(world, body) as probe:
        world.show(pod("a"))
        take(probe, "node-a", report({target_id("a"): measurement(*[1_000_000] * 200)}))
        await until(
            lambda: (
                value("probe_stage_seconds", stage="rx.total", percentile="p99")
                and (world.status.get("summary") or {}).get("p99")
            ),
            what=lambda: world.status,
        )

        assert value("probe_stage_seconds", stage="rx.total", percentile="p50") == 0.001
        assert value("probe_pods") == 1
        assert value("probe_unobserved_seconds") == 0
        verdict = world.status["summary"]["bottleneck"]
        name = "latencyprobe_operator_probe_verdict"
        assert value("probe_verdict", **{name: verdict}) == 1
        reads = {"objective": "reads", "stage": "rx.total", "percentile": "p99"}
        writes = {"objective": "writes", "stage": "tx.total", "percentile": "p50"}
        assert value("objective_limit_seconds", **reads) == 0.005
        assert value("objective_seconds", **reads) == 0.001
        outcome = "latencyprobe_operator_objective_outcome"
        assert value("objective_outcome", **reads, **{outcome: "met"}) == 1
        assert value("objective_outcome", **writes, **{outcome: "unknown"}) == 1
        assert value("objective_seconds", **writes) is None

        probe.update(probe_body(generation=2, interval="1s", suspend=True))
        assert value("probe_pods") is None


def test_a_probe_that_was_removed_has_no_series() -> None:
    metrics = OperatorMetrics()
    metrics.figures.show("uid", ProbeSnapshot("shop", "checkout", pods=3))
    metrics.figures.forget("uid")
    metrics.figures.forget("uid")
    assert metrics.registry.get_sample_value("latencyprobe_operator_probe_pods", OF_PROBE) is None


def test_the_series_of_a_probe_are_bounded_as_documented() -> None:
    metrics = OperatorMetrics()
    before = series_of(metrics)
    everything = ProbeSnapshot(
        "shop",
        "checkout",
        pods=10_000,
        nodes={str(state): 100 for state in NodeState},
        percentiles_ns={stage.name: (1, 2, 3) for stage in TARGET_STAGES},
        verdict=str(Bottleneck.PEER),
    )
    page = " ".join((DOCS / "metrics.md").read_text().split())
    (most, of_objective), *others = re.findall(
        r"A probe has at most (\d+) series here, and (\d+) more for each objective", page
    )
    assert not others

    metrics.figures.show("uid", everything)
    of_probe = series_of(metrics) - before
    assert 0.9 * int(most) <= of_probe <= int(most)

    objective = ObjectiveFigures("reads", "rx.total", 99, 1, 1, "met")
    metrics.figures.show("uid", replace(everything, objectives=(objective,)))
    assert series_of(metrics) - before - of_probe == int(of_objective)


def series_of(metrics: OperatorMetrics) -> int:
    return sum(len(family.samples) for family in metrics.registry.collect())


def test_two_objectives_of_one_stage_have_series_of_their_own() -> None:
    metrics = OperatorMetrics()
    objectives = tuple(
        ObjectiveFigures("reads", "rx.total", percentile, 10**9, 5 * 10**8, "met")
        for percentile in (99, 99.9)
    )
    metrics.figures.show("uid", ProbeSnapshot("shop", "checkout", objectives=objectives))
    for percentile in ("p99", "p99.9"):
        labels = {**OF_PROBE, "objective": "reads", "stage": "rx.total", "percentile": percentile}
        name = "latencyprobe_operator_objective_seconds"
        assert metrics.registry.get_sample_value(name, labels) == 0.5
