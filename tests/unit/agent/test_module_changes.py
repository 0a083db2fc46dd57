"""An agent with a pace for changes of modules, over real gRPC; the test moves its clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable

import grpc
import pytest

from latencyprobe.domain.stages import Module
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.targets.resolver import Resolver
from tests.patience import patient
from tests.unit.agent.running import Running, until
from tests.unit.agent.scripted import ScriptedEngine, ScriptedEvidence, samples
from tests.unit.agent.states import probe, state

NODE = NodeDescription("blue", "6.18.0", "x86_64", "btf", "hybrid", host_netns=1)
ALL = tuple(map(str, Module))
BUSY = (("rx", "irq"), ("rx", "sched"), ("tcp",), ALL)


class Engine(ScriptedEngine):
    """Keeps what it was asked to load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[frozenset[Module]] = []

    async def use(
        self, modules: frozenset[Module], *, tracing: bool = False, udp: bool = True
    ) -> None:
        self.loads.append(modules)
        await super().use(modules, tracing=tracing, udp=udp)


class MovedClock:
    """The monotonic clock, and what the test adds."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def agent(
    engine: Engine, evidence: ScriptedEvidence, metrics: AgentMetrics, clock: MovedClock
) -> AsyncIterator[Agent]:
    # One hour: no test can wait for it, however slow the machine is.
    running = Agent(
        engine, Resolver(), NODE, metrics, evidence, clock=clock, change_interval_s=3600
    )
    keeper = asyncio.create_task(running.keep())
    yield running
    await running.close()
    keeper.cancel()
    await asyncio.wait({keeper})


def waiting(coverage: Iterable[pb.StageCoverage]) -> dict[str, str]:
    """The reasons of the stages that are not available."""
    unavailable = pb.StageCoverage.UNAVAILABLE
    return {stage.name: stage.reason for stage in coverage if stage.state == unavailable}


async def test_a_probe_that_flips_its_modules_costs_one_load_and_the_others_no_figure(
    running: Running, engine: Engine
) -> None:
    steady = probe("steady", modules=("rx",))
    await running.stub.Apply(state(steady))
    (slot,) = engine.slots
    for generation in range(2, 102):
        flipping = probe("flipping", modules=BUSY[generation % len(BUSY)])
        engine.measure(samples(100), slot=slot)
        result = await running.stub.Apply(state(steady, flipping, generation=generation))
        assert "irq.hard" in waiting(result.coverage) or "irq" not in flipping.modules
        assert "rx.total" not in waiting(result.coverage)
    assert engine.loads == [{Module.RX}]
    assert set(engine.slots) == {slot}
    running.agent.readings.read()
    await running.agent.readings.until_due()
    (figures,) = (f for f in running.agent.readings.take_figures() if f.probe.id == "steady")
    assert figures.of("t").stage("rx.total").histogram.count == 100


async def test_a_waiting_change_is_loaded_when_it_is_due_and_the_stream_reports_it(
    running: Running, engine: Engine, clock: MovedClock
) -> None:
    await running.stub.Apply(state(probe(modules=("rx",))))
    result = await running.stub.Apply(state(probe(modules=ALL), generation=2))
    assert waiting(result.coverage)["irq.hard"].startswith(
        "modules tx, tcp, irq, sched not loaded yet: a node changes its modules at most once per"
    )
    call = running.stub.WatchReports(iter([pb.WatchReportsRequest()]))
    first = await call.read()
    assert isinstance(first, pb.Report)
    assert "irq.hard" in waiting(first.coverage)
    clock.ahead_s = 3600
    async with asyncio.timeout(patient(10)):
        while isinstance(report := await call.read(), pb.Report):
            if report.coverage:
                break
    assert isinstance(report, pb.Report)
    assert waiting(report.coverage) == {}
    assert report.generation == 2
    assert engine.modules == set(Module)
    call.cancel()


async def test_a_module_that_no_probe_wants_is_dropped_and_not_reported_to_others(
    running: Running, engine: Engine, clock: MovedClock
) -> None:
    await running.stub.Apply(state(probe(modules=("rx", "tcp"))))
    await running.stub.Apply(state(probe(modules=("rx",)), generation=2))
    assert engine.modules == {Module.RX, Module.TCP}
    engine.measure(samples(100) + samples(100, stage="tcp.rtt"))
    running.agent.readings.read()
    await running.agent.readings.until_due()
    (figures,) = running.agent.readings.take_figures()
    assert set(figures.of("t").stages) == {"rx.total"}
    clock.ahead_s = 3600
    await until(lambda: engine.modules == {Module.RX}, "the dropping of tcp")


async def test_the_empty_state_and_the_end_of_the_lease_detach_at_once(
    running: Running, engine: Engine, clock: MovedClock
) -> None:
    await running.stub.Apply(state(probe()))
    await running.stub.Apply(state(generation=2))
    assert engine.modules == set()
    await running.stub.Apply(state(probe(), generation=3, lease_s=30))
    assert engine.loads[-1]
    clock.ahead_s = 31
    await until(lambda: not engine.modules, "the end of the lease")


async def test_a_waiting_trace_answers_and_begins_when_it_is_due(
    running: Running, engine: Engine, clock: MovedClock
) -> None:
    await running.stub.Apply(state(probe(modules=("rx",))))
    limits = [pb.StageLimit(stage="rx.total", min_ns=0)]
    call = running.stub.Trace(pb.TraceRequest(probe_id="p", limits=limits))
    assert isinstance(await call.read(), pb.TraceEvents)
    assert engine.trace_spec is None
    clock.ahead_s = 3600
    await until(lambda: engine.tracing and engine.trace_spec is not None, "the trace")
    call.cancel()
    with pytest.raises((asyncio.CancelledError, grpc.RpcError)):
        await call.read()
