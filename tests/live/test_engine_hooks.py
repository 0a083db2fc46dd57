"""Alternative hooks on the running kernel: one that is not to be had costs its stages alone."""

from __future__ import annotations

from collections.abc import Callable

from latencyprobe.coverage import CoverageState, StageCoverage
from latencyprobe_agent.kernel.engine import KernelEngine
from tests.live.pods import Pod
from tests.live.test_engine_accuracy import CLIENT, SERVER, account_for, both, count, measure

Start = Callable[..., KernelEngine]


def stages(engine: KernelEngine) -> dict[str, StageCoverage]:
    return {stage.name: stage for stage in engine.coverage}


async def test_a_stage_without_any_hook_is_unavailable_and_the_others_work_on(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server, without=["tp_btf/net_dev_start_xmit"])
    covered = stages(engine)
    assert covered["tx.total"].state is CoverageState.UNAVAILABLE
    assert covered["tx.total"].reason == "tp_btf/net_dev_start_xmit: not to be used, on request"
    assert covered["rx.total"].state is CoverageState.ACTIVE
    measured, _ = await measure(engine, client, server, 100)
    for slot in (CLIENT, SERVER):
        assert account_for(measured[slot], "rx.total") == (100, 0)
        assert count(measured[slot], "tx.total") == 0
