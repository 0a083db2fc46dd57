"""What the agent says of itself on this kernel; the matrix is made of it."""

from __future__ import annotations

from collections.abc import Callable

from latencyprobe.coverage import CoverageState
from latencyprobe.stages import BY_NAME, Module
from latencyprobe_agent.kernel.engine import KernelEngine
from latencyprobe_agent.kernel.headers import kernel_types_kind
from tests.kernels.inside.results import write_coverage

Start = Callable[..., KernelEngine]


async def test_every_stage_is_measured_or_says_why_not(start_engine: Start) -> None:
    engine = start_engine()
    await engine.use(frozenset(Module))
    write_coverage(kernel_types_kind(), engine.coverage)
    assert [stage.name for stage in engine.coverage] == list(BY_NAME)
    for stage in engine.coverage:
        if stage.state is CoverageState.ACTIVE:
            assert stage.hook, stage
        else:
            assert stage.state in (CoverageState.PARTIAL, CoverageState.UNAVAILABLE), stage
            assert stage.reason, stage
