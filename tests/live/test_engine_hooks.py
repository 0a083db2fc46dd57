"""Alternative hooks on the running kernel: a missing hook affects only its own stages."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import (
    CLIENT,
    SERVER,
    account_for,
    are_bound_by_btf,
    assert_all_left,
    both,
    measure,
)
from tests.live.pods import Pod
from tests.live.sockets import sent_again

Start = Callable[..., KernelEngine]

pytestmark = pytest.mark.unscoped


def stages(engine: KernelEngine) -> dict[str, StageCoverage]:
    return {stage.name: stage for stage in engine.coverage}


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_when_each_hook_of_a_stage_is_refused_every_answer_is_reported(
    start_engine: Start, pair: tuple[Pod, Pod], typed: bool
) -> None:
    """The first is left out on request, the others as this kernel has it."""
    first = f"{'tp_btf' if typed else 'raw_tp'}/tcp_sendmsg_locked"
    client, server = pair
    engine = start_engine(typed=typed, without=[first])
    engine.assign({CLIENT: client.spec(), SERVER: server.spec()})
    await engine.use(frozenset({Module.TX}))
    stage = stages(engine)["tx.socket"]
    pods = {CLIENT: client, SERVER: server}
    before = {slot: sent_again(pod.namespace) for slot, pod in pods.items()}
    measured, _ = await measure(engine, client, server, 100)
    for slot, pod in pods.items():
        again = sent_again(pod.namespace) - before[slot]
        assert_all_left(measured[slot], "tx.total", 100, again)
    if stage.state is CoverageState.UNAVAILABLE:
        answers = [answer.partition(": ")[0] for answer in stage.reason.split("; ")]
        assert answers[:3] == [
            first,
            "fentry/tcp_sendmsg_locked",
            "kprobe/tcp_sendmsg_locked",
        ]
        assert "tx.socket" not in measured[CLIENT].stages
    else:
        following = "fentry" if are_bound_by_btf(engine) else "kprobe"
        assert f"{following}/tcp_sendmsg_locked" in stage.hook.split(", ")
        assert account_for(measured[CLIENT], "tx.socket") == (100, 0)


async def test_a_stage_without_any_hook_is_unavailable_and_the_others_work_on(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server, without=["tp_btf/net_dev_start_xmit"])
    covered = stages(engine)
    assert covered["tx.total"].state is CoverageState.UNAVAILABLE
    assert covered["tx.total"].reason == "tp_btf/net_dev_start_xmit: excluded by request"
    assert covered["rx.total"].state is CoverageState.ACTIVE
    measured, _ = await measure(engine, client, server, 100)
    for slot in (CLIENT, SERVER):
        assert account_for(measured[slot], "rx.total") == (100, 0)
        assert not any(name.startswith("tx.") for name in measured[slot].stages)


async def test_a_counter_without_its_hook_is_reported_beside_the_stages(
    start_engine: Start,
) -> None:
    engine = start_engine(without=["tp_btf/tcp_send_reset"])
    await engine.use(frozenset({Module.TCP}))
    reset = stages(engine)["resetsSent"]
    assert reset.state is CoverageState.UNAVAILABLE
    assert reset.reason == "tp_btf/tcp_send_reset: excluded by request"
    assert "resetsReceived" not in stages(engine)
