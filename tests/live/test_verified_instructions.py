"""Bounds for the work of the verifier, which grows faster than the code does.

A kernel refuses a program of more than a million verified instructions. How many there are depends
on its verifier, so some room is left for those of other kernels. A node without a compiler spends
most of the time from Apply to attached on the instructions of all programs.
"""

from __future__ import annotations

import pytest

from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.request import Request
from tests.live.compiled_once import compiled_once

MOST_INSTRUCTIONS = 200_000
# A tenth each for pending waits, for programs on devices, and for recoveries, paths and queries. A
# fortieth for what joins drops to retransmissions, and fragments and MPTCP to their target.
MOST_OF_ALL = 835_000


@pytest.mark.own_build
@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(False, id="measuring", marks=pytest.mark.thorough),
        pytest.param(True, id="tracing"),  # the same programs and more in them
    ],
)
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
@pytest.mark.parametrize(
    "modules",
    [
        pytest.param(DEFAULT_MODULES, id="default", marks=pytest.mark.thorough),
        pytest.param(tuple(Module), id="all"),  # these and more
    ],
)
async def test_no_program_takes_the_verifier_more_instructions(
    modules: tuple[Module, ...], typed: bool, trace: bool
) -> None:
    request = Request(tuple(map(str, modules)), host_netns=1, typed=typed, trace=trace)
    built = await compiled_once().build(request)
    try:
        owned = built._owned
        # EPERM: the kernel's, of a kind of program that it lacks, and not its verifier's
        refused = [
            reason
            for reason in built.refused.values()
            if "cannot load" in reason and "(EPERM)" not in reason
        ]
        verified = {
            function: int(libbpf.program_info(descriptor).verified_instructions)
            for function, descriptor in {
                **owned.programs,
                **owned.cgroup_programs,
                **owned.device_programs,
            }.items()
        }
    finally:
        built.close()
    assert refused == []
    assert min(verified.values()) > 0
    assert sum(verified.values()) <= MOST_OF_ALL
    assert {name: count for name, count in verified.items() if count > MOST_INSTRUCTIONS} == {}
