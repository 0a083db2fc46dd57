"""An agent whose every window is full stays within the memory limit that the chart gives it."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

from latencyprobe.domain.fairness import MAX_PROBES, MAX_TARGETS
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.slots import SLOTS
from latencyprobe.domain.stages import TARGET_STAGES, Module
from latencyprobe.domain.summary import PodChoice
from latencyprobe_agent.collector import Moment, ProbeFigures
from latencyprobe_agent.desired import (
    ContainerSelector,
    Desired,
    DesiredProbe,
    DesiredTarget,
    DesiredWindow,
    PodSelector,
)
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.plan import PodTargets, TargetKey
from latencyprobe_agent.readings import Readings
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.totals import DEFAULT_MAX_PODS, Total
from latencyprobe_agent.windows import by_probe
from latencyprobe_agent.windows.by_probe import MAX_ENDED_PODS
from latencyprobe_agent.windows.early_figures import EarlyFigures
from latencyprobe_agent.windows.probe_window import MAX_LEFT_CONTAINERS, ProbeWindow
from latencyprobe_agent.windows.running import RunningWindow
from tests.unit.agent.scripted import ScriptedEngine, ScriptedEvidence

VALUES = Path(__file__).parents[3] / "charts" / "latencyprobe" / "values.yaml"
MIB = 1 << 20
# Beside the windows, as measured: the agent, the compiler, and the kernel's state of sockets.
AGENT, COMPILER, SOCKETS = 62 * MIB, 152 * MIB, 96 * MIB
# Seven octaves: the longest duration of a stage is 180 times as long as its shortest.
BUCKETS = 60
COUNTERS = [f"counter{number:02}" for number in range(16)]
PODS = 16
Made = TypeVar("Made")


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


def _peak_of(make: Callable[[], Made], act: Callable[[Made], object]) -> int:
    """Return the most memory that a call takes at any time, beside what it is called with."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        act(made)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


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

    def early() -> EarlyFigures:
        figures = EarlyFigures()
        figures.put(intervals[0])
        figures.pack()
        return figures

    def left() -> ProbeWindow:
        window = _fill(ProbeWindow(probe, length, _at(0)), [*figures])
        departed = dict(zip(targets, [_busy(seed) for seed in range(PODS)], strict=True))
        empty, now = replace(probe, targets=()), _at(10 * SLOTS + 11)
        window.follow(empty, length, (), departed, is_active=True, asked=now, now=now)
        window.pack()
        return window

    def end_interval(window: ProbeWindow) -> None:
        begin, end = _at(10 * SLOTS + 10), _at(10 * SLOTS + 20)
        window.add(ProbeFigures(window.probe, begin, end, {}))

    merged = _bytes_of(running)
    account = _bytes_of(lambda: intervals[0] + intervals[1])
    return {
        "window": (windows - merged) // PODS,
        "account": account,
        "report": (_bytes_of(lambda: full.report(())) - account) // PODS,
        # The report on a probe has the sum over its pods as objects, like an account.
        "probe": merged + account,
        "total": _bytes_of(total),
        "early": _bytes_of(early),
        "end": _peak_of(left, end_interval),
    }


def test_a_full_window_takes_less_than_its_figures_as_objects(
    measured: Mapping[str, int],
) -> None:
    assert measured["window"] < 80_000
    assert measured["window"] < SLOTS * measured["account"] / 3


def test_full_windows_of_a_whole_node_fit_into_the_memory_limit_of_the_chart(
    measured: Mapping[str, int],
) -> None:
    # An account is what a target adds up between two reports, since probes have other intervals.
    of_targets = MAX_TARGETS * (measured["window"] + measured["account"] + measured["report"])
    of_ended = MAX_ENDED_PODS * (measured["window"] + measured["report"])
    of_probes = MAX_PROBES * measured["probe"]
    # Sums for metrics: as many may have ended lately as there are now.
    of_sums = 2 * (MAX_PROBES + DEFAULT_MAX_PODS) * measured["total"]
    # Containers of each pod, pods of each probe, and ended pods may have left in an interval.
    kept = MAX_LEFT_CONTAINERS * (MAX_TARGETS + MAX_ENDED_PODS) + MAX_PROBES
    of_left = kept * measured["early"]
    of_left += measured["end"]
    most = AGENT + COMPILER + SOCKETS + of_targets + of_ended + of_probes + of_sums + of_left
    limit = yaml.safe_load(VALUES.read_text())["agent"]["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert most <= int(limit.removesuffix("Mi")) * MIB, f"{most / MIB:.0f} MiB: {measured}"


def test_the_end_of_an_interval_unpacks_the_figures_of_one_pod_at_a_time(
    measured: Mapping[str, int],
) -> None:
    assert measured["end"] < PODS * measured["account"]


def _after(pods: int) -> Readings:
    """Return what an agent keeps when so many pods came and went within one interval."""
    engine = ScriptedEngine()
    readings = Readings(engine, ScriptedEvidence(), AgentMetrics(), lambda: 0.0)
    everything, length = frozenset(Module), DesiredWindow(3600, PODS, PodChoice(PODS))
    probe = DesiredProbe("p", "shop/p", everything, SocketFilter(), 600, 0, (), window=length)
    for number in range(pods):
        uid = f"u{number}"
        wanted = replace(probe, targets=(DesiredTarget(uid, PodSelector(uid), f"pod-{number}"),))
        found = {"p": [PodTargets(uid, f"pod-{number}", ("c",), True, False)]}
        owners = {number: [TargetKey("p", uid)]}
        readings.follow(Desired(number, (wanted,)), _at(0), owners, found)
        engine.measured = {number: _busy(number)}
        readings.read()
    return readings


def test_pods_that_come_and_go_within_an_interval_take_no_memory_beyond_the_bound(
    measured: Mapping[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 4)
    _after(12)  # fills caches
    assert _bytes_of(lambda: _after(36)) - _bytes_of(lambda: _after(12)) < measured["account"]
