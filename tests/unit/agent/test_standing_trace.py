"""The agent's own trace: of all targets, except while a client traces. It loads nothing twice."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from click.testing import CliRunner

from latencyprobe.domain.packets import TracedPacket
from latencyprobe.domain.stages import Module
from latencyprobe_agent import cli, main
from latencyprobe_agent.agent import Agent, NodeDescription, ShuttingDownError
from latencyprobe_agent.desired import InvalidStateError
from latencyprobe_agent.kernel.contract import EngineError, TraceSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.main import Settings
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.serving.service import SocketAddress
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.totals import Totals
from latencyprobe_agent.tracing import TraceBusyError, TraceWish
from tests.patience import patient
from tests.unit.agent.running import until
from tests.unit.agent.scripted import ScriptedEngine, ScriptedEvidence
from tests.unit.agent.states import probe, state
from tests.unit.traced_packets import RECEIVED

NODE = NodeDescription("blue", "6.18.0", "x86_64", "btf", "hybrid", host_netns=1)
LIMIT_NS = 1_000_000
TOTALS = {"rx.total": LIMIT_NS, "tx.total": LIMIT_NS}
WISH = TraceWish("p", {"rx.total": 5}, 7)
DEFAULT = frozenset({Module.RX, Module.TX, Module.TCP})


class CountingEngine(ScriptedEngine):
    """Counts what is loaded, and the callers that wait for packets."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[tuple[frozenset[Module], bool]] = []
        self.attempts = 0
        self.refused_next: int | None = None
        self.waiting = 0
        self.most_waiting = 0
        self.calls = 0

    async def use(
        self, modules: frozenset[Module], *, tracing: bool = False, udp: bool = True
    ) -> None:
        self.attempts += tracing
        code, self.refused_next = self.refused_next, None
        if code is not None:
            raise EngineError("not now") from OSError(code, os.strerror(code))
        await super().use(modules, tracing=tracing, udp=udp)
        self.loads.append((modules, tracing))

    async def traced(self) -> Any:
        self.calls += 1
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            return await super().traced()
        finally:
            self.waiting -= 1


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
async def agent(
    engine: CountingEngine, evidence: ScriptedEvidence, metrics: AgentMetrics, totals: Totals
) -> AsyncIterator[Agent]:
    """An agent that shows exemplars."""
    running = Agent(
        engine, Resolver(), NODE, metrics, evidence, totals=totals, exemplars_ns=LIMIT_NS
    )
    keeper = asyncio.create_task(running.keep())
    await until(lambda: running._reconciler.trace is not None, "the agent's own trace")
    yield running
    await running.close()
    keeper.cancel()
    await asyncio.wait({keeper})
    assert not engine.waiting


async def apply(agent: Agent, *probes: Any, generation: int = 1) -> None:
    await agent.apply(parse_desired(state(*probes, generation=generation)))


def kept(totals: Totals) -> dict[tuple[str, str], list[TracedPacket]]:
    """The packets that are exemplars, by probe and stage."""
    now = time.monotonic()
    return {
        (subject.probe, name): packets
        for subject, total in totals.current(now)
        for name, stage in total.stages.items()
        if (packets := stage.slow_packets(now))
    }


def slow_packet(engine: ScriptedEngine, **changes: Any) -> TracedPacket:
    slots = frozenset(engine.slots)
    return replace(RECEIVED, slots=slots, ended_unix_ns=time.time_ns(), **changes)


def standing(engine: ScriptedEngine) -> TraceSpec:
    return TraceSpec(TOTALS, frozenset(engine.slots), 100)


async def client(agent: Agent, wish: TraceWish = WISH) -> asyncio.Task[None]:
    """A client's trace that has begun."""
    send = AsyncMock()
    tracing = asyncio.create_task(agent.trace(wish, send))
    await until(lambda: send.called or tracing.done(), "an answer to the client")
    return tracing


async def cancelled(tracing: asyncio.Task[None]) -> None:
    tracing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await tracing


async def test_slow_packets_of_every_probe_are_exemplars_without_a_client(
    agent: Agent, engine: CountingEngine, totals: Totals
) -> None:
    await apply(agent, probe("p"), probe("q", ports=(443,)))
    assert len(engine.slots) == 2
    assert engine.trace_spec == standing(engine)
    assert engine.loads == [(DEFAULT, True)]

    packet = slow_packet(engine)
    engine.tell(packet, slow_packet(engine, stages_ns={"rx.total": LIMIT_NS - 1}))
    await until(lambda: kept(totals), "exemplars")
    assert kept(totals) == {("p", "rx.total"): [packet], ("q", "rx.total"): [packet]}


async def test_targets_that_come_later_are_traced_too(agent: Agent, engine: CountingEngine) -> None:
    await apply(agent, probe("p"))
    await apply(agent, probe("p"), probe("q", ports=(443,)), generation=2)
    assert len(engine.slots) == 2
    assert engine.trace_spec == standing(engine)
    assert len(engine.loads) == 1


async def test_an_agent_without_probes_loads_nothing_and_waits(
    agent: Agent, engine: CountingEngine
) -> None:
    await apply(agent, probe())
    await apply(agent, generation=2)
    assert engine.loads[-1] == (frozenset(), False)
    calls = engine.calls
    for _ in range(100):
        await asyncio.sleep(0)
    assert engine.calls - calls <= 1

    await apply(agent, probe(), generation=3)
    assert (engine.tracing, engine.trace_spec) == (True, standing(engine))
    assert engine.waiting == 1


async def test_modules_without_stages_of_packets_are_loaded_without_tracing(
    agent: Agent, engine: CountingEngine
) -> None:
    await apply(agent, probe(modules=("tcp",)))
    assert engine.loads == [(frozenset({Module.TCP}), False)]
    await apply(agent, probe(modules=("tcp", "tx")), generation=2)
    assert engine.loads[1:] == [(frozenset({Module.TCP, Module.TX}), True)]
    assert engine.trace_spec == standing(engine)


async def test_a_client_takes_the_place_of_the_agents_own_trace_until_it_goes(
    agent: Agent, engine: CountingEngine, totals: Totals
) -> None:
    await apply(agent, probe("p"), probe("q", ports=(443,)))
    tracing = await client(agent)
    assert engine.trace_spec is not None
    assert dict(engine.trace_spec.limits_ns) == WISH.limits_ns
    assert len(engine.trace_spec.slots) == 1
    await until(lambda: engine.waiting == 1, "the client's reader")

    await cancelled(tracing)
    await until(lambda: engine.trace_spec == standing(engine), "the agent's own trace")
    packet = slow_packet(engine)
    engine.tell(packet)
    await until(lambda: kept(totals), "exemplars")
    assert len(engine.loads) == 1
    assert engine.most_waiting == 1


async def test_a_trace_that_ends_by_itself_is_followed_by_the_agents_own(
    agent: Agent, engine: CountingEngine
) -> None:
    await apply(agent, probe("p"), probe("q", ports=(443,)))
    tracing = await client(agent)
    await apply(agent, probe("q", ports=(443,)), generation=2)
    await tracing
    await until(
        lambda: engine.tracing and engine.trace_spec == standing(engine), "the agent's own trace"
    )
    await until(lambda: engine.waiting == 1, "its reader")


async def test_a_second_client_is_refused_and_disturbs_neither(
    agent: Agent, engine: CountingEngine
) -> None:
    await apply(agent, probe("p"))
    tracing = await client(agent)
    spec = engine.trace_spec
    with pytest.raises(TraceBusyError, match="packets of probe 'p' are being traced already"):
        await agent.trace(replace(WISH, probe_id="q"), AsyncMock())
    assert engine.trace_spec is spec
    assert agent._reconciler.trace is not None
    assert agent._reconciler.trace.wish is WISH
    assert not tracing.done()
    await cancelled(tracing)
    await until(lambda: engine.trace_spec == standing(engine), "the agent's own trace")
    assert engine.most_waiting == 1


async def test_a_client_whose_trace_begins_while_the_agent_closes_is_refused(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = agent._own_trace.pause
    closing: list[asyncio.Task[None]] = []

    async def pause_while_it_closes() -> None:
        if not closing:
            closing.append(asyncio.create_task(agent.close()))
            await asyncio.sleep(0)
        await pause()

    monkeypatch.setattr(agent._own_trace, "pause", pause_while_it_closes)
    with pytest.raises(ShuttingDownError):
        await asyncio.wait_for(agent.trace(WISH, AsyncMock()), patient(10))
    await asyncio.wait(closing)
    assert agent._reconciler.trace is None


async def test_an_invalid_request_leaves_the_agents_own_trace_alone(
    agent: Agent, engine: CountingEngine
) -> None:
    await apply(agent, probe(modules=("rx",)))
    own = agent._reconciler.trace
    with pytest.raises(InvalidStateError):
        await agent.trace(replace(WISH, limits_ns={"tx.total": 1}), AsyncMock())
    assert agent._reconciler.trace is own
    assert engine.trace_spec == standing(engine)
    await until(lambda: engine.waiting == 1, "its reader")


async def test_a_client_that_goes_while_its_trace_begins_gives_the_place_back(
    agent: Agent, engine: CountingEngine
) -> None:
    await apply(agent, probe(modules=("tcp",)))
    engine.stall = asyncio.Event()
    applying = asyncio.create_task(apply(agent, probe(), generation=2))
    await until(lambda: engine.stalled == 1, "programs to be loaded")
    tracing = asyncio.create_task(agent.trace(WISH, AsyncMock()))
    await asyncio.sleep(0)
    engine.stall.set()
    await applying
    await cancelled(tracing)
    await until(lambda: engine.trace_spec == standing(engine), "the agent's own trace")
    await until(lambda: engine.waiting == 1, "its reader")
    assert engine.most_waiting == 1


async def test_a_kernel_that_refuses_is_reported_once_and_measuring_goes_on(
    agent: Agent, engine: CountingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.trace_refusal = "no BPF ring buffer"
    with caplog.at_level(logging.WARNING):
        await apply(agent, probe("p"))
        assert engine.modules == DEFAULT
        await apply(agent, probe("p"), probe("q", ports=(443,)), generation=2)
        await apply(agent, probe("p", modules=("rx",)), generation=3)
        await until(lambda: not agent._own_trace.is_wanted, "the end of the agent's own trace")
    assert engine.attempts == 1
    assert [each.getMessage() for each in caplog.records] == [
        "cannot trace packets; no exemplars until the agent starts again: no BPF ring buffer"
    ]
    engine.trace_refusal = None
    await cancelled(await client(agent))
    await until(lambda: not engine.tracing, "the end of the client's trace")
    assert agent._reconciler.trace is None


async def test_a_kernel_that_refuses_all_programs_is_no_reason_to_end_the_trace(
    agent: Agent, engine: CountingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refusal = "out of memory"
    with pytest.raises(Exception, match="out of memory"):
        await apply(agent, probe())
    engine.refusal = None
    await apply(agent, probe())
    assert (engine.tracing, engine.trace_spec) == (True, standing(engine))
    assert "no exemplars" not in caplog.text


async def test_a_refusal_of_programs_that_do_not_trace_is_no_reason_to_end_the_trace(
    agent: Agent, engine: CountingEngine
) -> None:
    engine.refused_next = errno.EPERM
    with pytest.raises(EngineError):
        await apply(agent, probe(modules=("tcp",)))
    await apply(agent, probe(), generation=2)
    assert (engine.tracing, engine.trace_spec) == (True, standing(engine))


async def test_a_lack_of_memory_only_delays_the_trace(
    agent: Agent, engine: CountingEngine, totals: Totals
) -> None:
    engine.refused_next = errno.ENOMEM
    await apply(agent, probe("p"))
    assert engine.loads == [(DEFAULT, False)]

    await apply(agent, probe("p"), probe("q", ports=(443,)), generation=2)
    assert engine.attempts == 1
    assert agent._reconciler.next_at is not None

    agent._reconciler._trace_again_at = time.monotonic()
    agent._wake.set()
    await until(lambda: engine.tracing, "the agent's own trace")
    assert engine.trace_spec == standing(engine)
    packet = slow_packet(engine)
    engine.tell(packet)
    await until(lambda: kept(totals), "exemplars")


async def test_an_unexpected_error_of_the_reader_is_logged_and_measuring_goes_on(
    agent: Agent,
    engine: CountingEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(agent.readings, "note_slow", Mock(side_effect=ZeroDivisionError))
    await apply(agent, probe())
    engine.tell(slow_packet(engine))
    await until(lambda: not agent._own_trace.is_wanted, "the end of the agent's own trace")
    assert "unexpected error; no exemplars until the agent starts again" in caplog.text
    await until(lambda: engine.trace_spec is None, "the end of the trace in the kernel")
    assert engine.modules == DEFAULT


@pytest.mark.parametrize(
    ("arguments", "expected_ns"),
    [
        (("--metrics-address=:1",), None),
        (("--metrics-address=:1", "--exemplars=5ms"), 5_000_000),
        (("--otlp-endpoint=collector:4317", "--exemplars=100us"), 100_000),
    ],
)
def test_exemplars_are_an_option_of_the_agent(
    arguments: tuple[str, ...], expected_ns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Settings] = []
    monkeypatch.setattr(cli, "_start", lambda settings, **_: started.append(settings))
    result = CliRunner().invoke(cli.agent_command, ["--socket=/s", *arguments])
    assert result.exit_code == 0, result.output
    assert [settings.exemplars_ns for settings in started] == [expected_ns]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--exemplars=5ms",), "--exemplars needs --metrics-address or --otlp-endpoint"),
        (("--metrics-address=:1", "--exemplars=5"), "'5' is not a duration"),
        (("--metrics-address=:1", "--exemplars=0s"), "0s is too short: the minimum is 1us"),
        (("--metrics-address=:1", "--exemplars=2m"), "2m is too long: the maximum is 60s"),
    ],
)
def test_a_limit_of_exemplars_that_cannot_be_used_is_refused(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_start", lambda *_, **__: pytest.fail("it has started"))
    result = CliRunner().invoke(cli.agent_command, ["--socket=/s", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("limit_ns", [None, LIMIT_NS])
def test_programs_that_trace_are_prepared_where_exemplars_are_wanted(
    limit_ns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(KernelEngine, "prepare", lambda _, *, tracing: asked.append(tracing))
    settings = Settings(SocketAddress(Path("/s")), "blue", exemplars_ns=limit_ns)
    main._kernel_engine(settings)(host_netns=1)
    assert asked == [limit_ns is not None]


async def test_without_the_option_nothing_is_traced(
    engine: CountingEngine, evidence: ScriptedEvidence, metrics: AgentMetrics, totals: Totals
) -> None:
    agent = Agent(engine, Resolver(), NODE, metrics, evidence, totals=totals)
    keeper = asyncio.create_task(agent.keep())
    await apply(agent, probe())
    assert engine.loads == [(DEFAULT, False)]
    assert engine.trace_spec is None
    await agent.close()
    keeper.cancel()
    await asyncio.wait({keeper})
