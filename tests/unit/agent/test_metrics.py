"""The agent's own figures: they show what is the case, and nothing that is over."""

from __future__ import annotations

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.serving.metrics import AgentMetrics


def value(metrics: AgentMetrics, name: str) -> float:
    found = metrics.registry.get_sample_value(name)
    assert found is not None, name
    return found


def test_the_run_time_of_programs_that_are_gone_is_not_shown() -> None:
    metrics = AgentMetrics()
    metrics.note_reading(3.0, 0)
    assert value(metrics, "latencyprobe_program_cpu_ratio") == 0.03

    metrics.show_modules([Module.RX])
    assert value(metrics, "latencyprobe_program_cpu_ratio") == 0.03
    metrics.show_modules(())
    assert value(metrics, "latencyprobe_program_cpu_ratio") == 0


def test_run_time_that_is_not_known_any_more_is_not_shown() -> None:
    metrics = AgentMetrics()
    metrics.note_reading(3.0, 0)
    metrics.note_reading(None, 0)
    assert value(metrics, "latencyprobe_program_cpu_ratio") == 0


def test_missed_runs_are_those_since_the_start() -> None:
    metrics = AgentMetrics()
    for missed_runs in (0, 3, 3, 10):
        metrics.note_reading(None, missed_runs)
    assert value(metrics, "latencyprobe_missed_program_runs_total") == 10


def test_only_a_state_that_is_in_force_counts_as_applied() -> None:
    metrics = AgentMetrics()
    with pytest.raises(RuntimeError, match="refused"), metrics.time_apply():
        raise RuntimeError("refused")
    assert value(metrics, "latencyprobe_apply_seconds_count") == 0

    with metrics.time_apply():
        pass
    assert value(metrics, "latencyprobe_apply_seconds_count") == 1
