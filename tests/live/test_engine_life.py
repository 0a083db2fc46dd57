"""The engine's life: what comes, goes and stays."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import BY_NAME, Module
from latencyprobe_agent.kernel.contract import MAX_SLOTS, EngineError, SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.loaded_programs import existing_programs, killed_agent, programs_of, wait_until_gone
from tests.live.measuring import CLIENT, SERVER, both, count, measure
from tests.live.pods import Pod
from tests.live.sockets import sent_from

Start = Callable[..., KernelEngine]


@pytest.mark.every_kernel
@pytest.mark.own_build
async def test_nothing_is_left_once_no_module_is_used(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    before = programs_of(os.getpid())
    engine = await both(start_engine, *pair)
    ours = programs_of(os.getpid()) - before
    assert ours <= existing_programs()
    assert len(ours) > 5
    await engine.use(frozenset())
    assert programs_of(os.getpid()) <= before
    wait_until_gone(ours)


def test_a_killed_agent_leaves_nothing_attached() -> None:
    wait_until_gone(killed_agent().programs)


async def test_figures_survive_a_change_of_modules(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: client.spec(), SERVER: server.spec()})
    await engine.use(frozenset({Module.RX}))
    serving = server.start("server", server.address, "7000", "50")
    asking = client.start("client", server.address, "7000", "50")
    asking.go()
    serving.result()
    asking.result()
    await engine.use(frozenset({Module.RX, Module.TX}))
    more, _ = await measure(engine, client, server, 30)
    assert count(more[SERVER], "rx.total") == 80
    assert count(more[SERVER], "tx.total") in sent_from(server, 30)


async def test_a_slot_given_to_someone_else_starts_from_zero(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    await measure(engine, client, server, 20)
    engine.assign({})
    nobody, _ = await measure(engine, client, server, 20)
    assert nobody == {}
    engine.assign({SERVER: server.spec()})
    assert engine.read() == {}
    again, _ = await measure(engine, client, server, 20)
    assert count(again[SERVER], "rx.total") == 20


async def test_children_of_a_target_process_are_targets(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = start_engine()
    serving = server.start("server", server.address, "7000", "30")
    asking = client.start("client", server.address, "7000", "30", "--fork")
    try:
        netns = frozenset({client.namespace.inode})
        engine.assign({CLIENT: SlotSpec(tgids=frozenset({asking.pid}), netns=netns)})
        await engine.use(frozenset(Module))
        asking.go()
        serving.result()
        asking.result()
    finally:
        serving.stop()
        asking.stop()
    measured = engine.read()
    assert count(measured[CLIENT], "rx.total") == 30
    assert count(measured[CLIENT], "tx.total") in sent_from(client, 30)


async def test_coverage_names_every_stage_and_its_hooks(start_engine: Start) -> None:
    engine = start_engine()
    assert [stage.name for stage in engine.coverage] == list(BY_NAME)
    assert {stage.state for stage in engine.coverage} == {CoverageState.IDLE}
    await engine.use(frozenset({Module.TCP}))
    states = {stage.name: stage for stage in engine.coverage}
    assert states["tcp.connect"].state is CoverageState.ACTIVE
    assert states["tcp.connect"].hook.endswith("/inet_sock_set_state")
    assert states["rx.total"].state is CoverageState.IDLE


async def test_overhead_is_known_after_a_second(start_engine: Start, pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    assert engine.overhead().cpu_percent is None
    await measure(engine, client, server, 500)
    deadline = time.monotonic() + 10
    while (overhead := engine.overhead()).cpu_percent is None and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert overhead.cpu_percent is not None
    assert overhead.cpu_percent > 0
    assert overhead.figure == 1


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_sampling_measures_a_part_and_says_which(
    start_engine: Start, pair: tuple[Pod, Pod], protocol: str
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    engine.sample(2)
    measured, _ = await measure(engine, client, server, 2000, "--protocol", protocol)
    for slot in (CLIENT, SERVER):
        for name in ("rx.total", "tx.total"):
            stage = measured[slot].stage(name)
            assert 350 < stage.histogram.count < 650  # 500 expected, 20 the standard deviation
            assert stage.sampling_ratio == 0.25
        assert measured[slot].stage("rx.socket").unmatched <= 3
    engine.sample(0)
    whole, _ = await measure(engine, client, server, 50)
    assert whole[SERVER].stage("rx.total").sampling_ratio == 1.0
    assert count(whole[SERVER], "rx.total") == 50


async def test_more_slots_than_there_are_is_an_error(start_engine: Start) -> None:
    with pytest.raises(EngineError, match="slots are numbered"):
        start_engine().assign({MAX_SLOTS: SlotSpec()})


async def test_five_filters_on_one_target_are_an_error(start_engine: Start) -> None:
    engine = start_engine()
    await engine.use(frozenset({Module.TCP}))
    with pytest.raises(EngineError, match="for more than 4 probes with different filters"):
        engine.assign({slot: SlotSpec(cgroup_ids=frozenset({1})) for slot in range(5)})
