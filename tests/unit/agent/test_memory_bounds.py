"""An agent whose every window is full stays within the memory limit that the chart gives it."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from latencyprobe.domain.fairness import MAX_PROBES, MAX_TARGETS
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.stages import TARGET_STAGES, Module
from latencyprobe.domain.summary import PodChoice
from latencyprobe_agent.collector import Moment, ProbeFigures
from latencyprobe_agent.desired import (
    ContainerSelector,
    DesiredProbe,
    DesiredTarget,
    DesiredWindow,
)
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.plan import PodTargets
from latencyprobe_agent.totals import DEFAULT_MAX_PODS, Total
from latencyprobe_agent.windows.by_probe import MAX_ENDED_PODS
from latencyprobe_agent.windows.probe_window import SLOTS, ProbeWindow
from latencyprobe_agent.windows.running import RunningWindow

VALUES = Path(__file__).parents[3] / "charts" / "latencyprobe" / "values.yaml"
MIB = 1 << 20
# Beside the windows, as measured: the agent, the compiler, and the kernel's state of sockets.
AGENT, COMPILER, SOCKETS = 62 * MIB, 152 * MIB, 96 * MIB
# Seven octaves: the longest duration of a stage is 180 times as long as its shortest.
BUCKETS = 60
COUNTERS = [f"counter{number:02}" for number in range(16)]
PODS = 16


def _busy(seed: int) -> Measurement:
    """Return the measurement of an interval with packets in every stage."""
    chance = random.Random(seed)

    def counts() -> dict[str, int]:
        return {name: chance.randrange(1, 1000) for name in COUNTERS}

    def stage() -> StageMeasurement:
        buckets = {at: 1 + int(chance.expovariate(1 / 50)) for at in range(90, 90 + BUCKETS)}
        return StageMeasurement(Histogram(buckets, chance.randrange(10**12), 1000, 10**10))

    return Measurement({each.name: stage() for each in TARGET_STAGES}, counts(), counts())


def _bytes_of(make: Callable[[], object]) -> int:
    """Return the memory that an object holds."""
    gc.collect()
    tracemalloc.start()
    try:
        held = make()
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        del held
    finally:
        tracemalloc.stop()
    return size


def _at(seconds: float) -> Moment:
    return Moment(seconds, round(seconds * 1e9))


def _fill(window: ProbeWindow, figures: list[Mapping[str, Measurement]]) -> ProbeWindow:
    pods = [PodTargets(f"u{n}", f"pod-{n}", ("c",), True, False) for n in range(PODS)]
    probe, length = window.probe, window.probe.window
    assert length is not None
    window.follow(probe, length, pods, is_active=True, asked=_at(0), now=_at(0))
    for number, each in enumerate(figures, 1):
        window.add(ProbeFigures(probe, _at(10 * number - 10), _at(10 * number), each))
    return window


@pytest.fixture(scope="module")
def measured() -> Mapping[str, int]:
    """Return the bytes of what an agent keeps of one pod or probe."""
    intervals = [_busy(seed) for seed in range(SLOTS + 1)]
    targets = tuple(
        DesiredTarget(f"u{n}", ContainerSelector(f"u{n}", "c"), f"pod-{n}") for n in range(PODS)
    )
    length = DesiredWindow(10.0 * SLOTS, PODS, PodChoice(PODS))
    everything = frozenset(Module)
    probe = DesiredProbe("p", "shop/p", everything, SocketFilter(), 10, 0, targets, window=length)
    figures = [dict.fromkeys((each.id for each in targets), busy) for busy in intervals]
    windows = _bytes_of(lambda: _fill(ProbeWindow(probe, length, _at(0)), [*figures]))
    _fill(ProbeWindow(probe, length, _at(0)), [*figures]).report(())  # fills caches
    full = _fill(ProbeWindow(probe, length, _at(0)), [*figures])

    def running() -> RunningWindow:
        window = RunningWindow()
        for slot, busy in enumerate(intervals):
            window.advance(replace(busy, netns_counters={}), slot=slot, oldest=slot - SLOTS)
        return window

    def total() -> Total:
        of_all = Total()
        of_all.add(intervals[0])
        return of_all

    merged = _bytes_of(running)
    account = _bytes_of(lambda: intervals[0] + intervals[1])
    return {
        "window": (windows - merged) // PODS,
        "account": account,
        "report": (_bytes_of(lambda: full.report(())) - account) // PODS,
        # The report on a probe has the sum over its pods as objects, like an account.
        "probe": merged + account,
        "total": _bytes_of(total),
    }


def test_a_full_window_takes_less_than_its_figures_as_objects(
    measured: Mapping[str, int],
) -> None:
    assert measured["window"] < 80_000
    assert measured["window"] < SLOTS * measured["account"] / 8


def test_full_windows_of_a_whole_node_fit_into_the_memory_limit_of_the_chart(
    measured: Mapping[str, int],
) -> None:
    # An account is what a target adds up between two reports, since probes have other intervals.
    of_targets = MAX_TARGETS * (measured["window"] + measured["account"] + measured["report"])
    of_ended = MAX_ENDED_PODS * (measured["window"] + measured["report"])
    of_probes = MAX_PROBES * measured["probe"]
    # Sums for metrics: as many may have ended lately as there are now.
    of_sums = 2 * (MAX_PROBES + DEFAULT_MAX_PODS) * measured["total"]
    most = AGENT + COMPILER + SOCKETS + of_targets + of_ended + of_probes + of_sums
    limit = yaml.safe_load(VALUES.read_text())["agent"]["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert most <= int(limit.removesuffix("Mi")) * MIB, f"{most / MIB:.0f} MiB: {measured}"
