"""The CPU time of our programs, where the kernel's statistics are not available at first."""

from __future__ import annotations

import errno
import os

import pytest

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import Overhead
from latencyprobe_agent.kernel.runtime import overhead
from latencyprobe_agent.kernel.runtime.overhead import OverheadClock
from tests.unit.agent.running import until


class Programs:
    """Programs that have run for a while, each time that they are read."""

    def __init__(self, missed_runs: int = 0) -> None:
        self._run_time_ns = 0
        self.missed = missed_runs

    def run_time_ns(self) -> int:
        self._run_time_ns += 1000
        return self._run_time_ns

    def missed_runs(self) -> int:
        return self.missed


async def test_statistics_that_lack_a_descriptor_are_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts: list[int] = []

    def enable() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise libbpf.KernelRefusedError(errno.EMFILE, "enable the statistics")
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(libbpf, "enable_run_time_statistics", enable)
    monkeypatch.setattr(overhead, "PAUSE_S", 0.01)
    monkeypatch.setattr(overhead, "SAMPLE_S", 0.01)
    clock = OverheadClock()
    clock.follow(Programs())  # type: ignore[arg-type]
    await until(lambda: clock.overhead().cpu_percent is not None, "a figure")
    clock.stop()


async def test_missed_runs_are_kept_when_other_programs_are_loaded() -> None:
    clock, first, second = OverheadClock(), Programs(missed_runs=2), Programs(missed_runs=5)
    assert clock.overhead().missed_runs == 0
    clock.follow(first)  # type: ignore[arg-type]
    first.missed = 4
    assert clock.overhead().missed_runs == 4
    clock.follow(second)  # type: ignore[arg-type]
    assert clock.overhead().missed_runs == 9
    clock.stop()
    clock.stop()
    assert clock.overhead() == Overhead(None, missed_runs=9)
