"""The CPU time of our programs, where the kernel's statistics are not available at first."""

from __future__ import annotations

import errno
import os

import pytest

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.runtime import overhead
from latencyprobe_agent.kernel.runtime.overhead import OverheadClock
from tests.unit.agent.running import until


class Programs:
    """Programs that have run for a while, each time that they are read."""

    def __init__(self) -> None:
        self._run_time_ns = 0

    def run_time_ns(self) -> int:
        self._run_time_ns += 1000
        return self._run_time_ns


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
    monkeypatch.setattr(overhead, "REST_SECONDS", 0.01)
    monkeypatch.setattr(overhead, "LOOK_SECONDS", 0.01)
    clock = OverheadClock()
    clock.follow(Programs())  # type: ignore[arg-type]
    await until(lambda: clock.overhead.cpu_percent is not None, "a figure")
    clock.stop()
