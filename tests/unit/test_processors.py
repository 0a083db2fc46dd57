"""Waits for a CPU whose user the scheduler does not name."""

from __future__ import annotations

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.verdict import judge

MS = 10**6
# Each reader waits 20 ms, nearly all of it for a CPU, and module sched names hardly any of that.
LATE = Measurement(
    {
        name: StageMeasurement(Histogram.of([20 * MS] * 200))
        for name in ("rx.total", "rx.socket", "rx.wakeup", "sched.runqueue")
    },
    {"waitedForOwnNs": 5 * MS},
)
THROTTLED = {"cpuPeriods": 63, "cpuThrottledPeriods": 60, "cpuThrottledNs": 60 * 80 * MS}


def test_contention_without_a_name_does_not_ask_for_the_module_that_measures() -> None:
    verdict = judge(LATE)
    assert verdict.bottleneck is Bottleneck.CPU_CONTENTION
    assert "Add module sched" not in verdict.next_step


def test_a_quota_is_the_cause_where_the_scheduler_names_none() -> None:
    verdict = judge(LATE + Measurement(counters=THROTTLED))
    assert verdict.bottleneck is Bottleneck.CPU_THROTTLED
    assert any("60 of 63 periods" in line for line in verdict.evidence)
