"""What an agent says of itself on this kernel; the matrix is made of it."""

from __future__ import annotations

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import BY_NAME, Module, counters_of
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.typeinfo import kernel_types_kind
from tests.kernels.inside.results import write_coverage
from tests.live.compiled_once import compiled_once
from tests.live.loaded_programs import KilledAgent, killed_agent, wait_until_gone


@pytest.fixture(scope="module")
def agent() -> KilledAgent:
    """An agent whose programs serve later tests: compiling them takes a minute here."""
    killed = killed_agent()
    like = killed.compiled.request
    assert like is not None
    request = KernelEngine(host_netns=0)._builder.request(
        like.modules, tracing=like.trace, udp=like.udp
    )
    compiled_once().keep(request, killed.compiled.content)
    return killed


def test_every_stage_is_measured_or_says_why_not(agent: KilledAgent) -> None:
    write_coverage(kernel_types_kind(), agent.coverage)
    assert [stage.name for stage in agent.coverage[: len(BY_NAME)]] == list(BY_NAME)
    for stage in agent.coverage[: len(BY_NAME)]:
        if stage.state is CoverageState.ACTIVE:
            assert stage.hook, stage
        else:
            assert stage.state in (CoverageState.PARTIAL, CoverageState.UNAVAILABLE), stage
            assert stage.reason, stage


def test_counters_that_lack_something_say_what(agent: KilledAgent) -> None:
    counters = counters_of(Module)
    for counter in agent.coverage[len(BY_NAME) :]:
        assert counter.name in counters
        assert counter.state in (CoverageState.PARTIAL, CoverageState.UNAVAILABLE), counter
        assert counter.reason, counter


def test_a_killed_agent_leaves_nothing_attached(agent: KilledAgent) -> None:
    wait_until_gone(agent.programs)
