"""The compiler process: the object that it hands over."""

from __future__ import annotations

from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.hooks import PACKET_HOOKS
from latencyprobe_agent.kernel.load.object_file import decode
from latencyprobe_agent.kernel.request import Request
from tests.live.compiled_once import compile_here, compiled_once


async def test_programs_that_two_processes_compile_are_those_that_one_compiles() -> None:
    # The programs of most tests, which two processes have compiled already.
    request = Request(tuple(map(str, DEFAULT_MODULES)), host_netns=1, without=PACKET_HOOKS)
    handed_over = decode((await compiled_once().compile(request)).content)
    assert len(handed_over.programs) > 20
    assert handed_over == decode((await compile_here(request)).content)
