"""Tracing over real gRPC: who is told of, how it begins and ends, and what is refused."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock

import grpc
import pytest

from latencyprobe.domain.packets import TracedPacket
from latencyprobe.domain.stages import Module
from latencyprobe.protocol.packets import packet_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.kernel.contract import TraceSpec
from latencyprobe_agent.totals import Totals
from latencyprobe_agent.tracing import TraceWish
from tests.unit.agent.running import Running, next_reading, until
from tests.unit.agent.states import probe, state
from tests.unit.traced_packets import RECEIVED, SENT

if TYPE_CHECKING:
    Stream = grpc.aio.UnaryStreamCall[pb.TraceRequest, pb.TraceEvents]

TOTALS = {"rx.total": 1000, "tx.total": 1000}


def trace(
    running: Running,
    probe_id: str = "p",
    limits_ns: dict[str, int] = TOTALS,
    per_second: int = 0,
) -> Stream:
    """Ask for a trace."""
    limits = [pb.StageLimit(stage=stage, min_ns=ns) for stage, ns in limits_ns.items()]
    call: Any = running.stub.Trace(
        pb.TraceRequest(probe_id=probe_id, limits=limits, max_packets_per_second=per_second)
    )
    return cast("Stream", call)


async def begun(stream: Stream) -> Stream:
    """The stream, after the message that says that packets are told of."""
    first = await stream.read()
    assert isinstance(first, pb.TraceEvents)
    assert not first.packets
    return stream


async def events(stream: Stream) -> AsyncIterator[pb.TraceEvents]:
    """All that comes until the stream ends."""
    async with asyncio.timeout(10):
        while isinstance(message := await stream.read(), pb.TraceEvents):
            yield message


async def code_of(stream: Stream) -> tuple[grpc.StatusCode, str]:
    """How a stream ends that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in events(stream):
            pass
    return refused.value.code(), refused.value.details() or ""


async def test_packets_come_as_they_are_reported_and_the_last_counts_are_exact(
    running: Running,
) -> None:
    await running.stub.Apply(state(probe()))
    stream = await begun(trace(running, per_second=50))
    slot = next(iter(running.engine.slots))
    assert running.engine.tracing
    assert running.engine.trace_spec == TraceSpec(TOTALS, frozenset({slot}), 50)
    running.engine.tell(RECEIVED, SENT)
    message = await stream.read()
    assert isinstance(message, pb.TraceEvents)
    assert [packet_from_proto(each) for each in message.packets] == [RECEIVED, SENT]
    running.engine.tell(SENT, limited=3, lost=4)
    await running.stub.Apply(state(generation=2))
    seen: list[TracedPacket] = []
    counts = pb.TraceCounts()
    async for message in events(stream):
        seen += map(packet_from_proto, message.packets)
        counts = message.counts
    assert seen == [SENT]
    assert (counts.reported, counts.rate_limited, counts.lost) == (3, 3, 4)
    assert counts.sampling_ratio == 1
    assert await stream.code() == grpc.StatusCode.OK
    assert not running.engine.tracing


async def test_slow_packets_are_kept_beside_the_sums_for_metrics(
    running: Running, totals: Totals
) -> None:
    await running.stub.Apply(state(probe("p"), probe("q")))
    stream = await begun(trace(running, "p", {"rx.total": 1_000_000, "rx.stack": 1_000_000}))
    slot = next(iter(running.engine.slots))
    slow = replace(RECEIVED, slots=frozenset({slot}), ended_unix_ns=time.time_ns())
    running.engine.tell(slow, replace(slow, slots=frozenset()))
    await stream.read()

    kept = {
        (subject.probe, name): packets
        for subject, total in totals.current(time.monotonic())
        for name, stage in total.stages.items()
        if (packets := stage.slow_packets(time.monotonic()))
    }
    assert kept == {("p", "rx.total"): [slow]}


async def test_a_client_that_goes_ends_its_trace(running: Running) -> None:
    await running.stub.Apply(state(probe()))
    stream = await begun(trace(running))
    stream.cancel()
    await until(lambda: not running.engine.tracing, "tracing ends")
    assert running.engine.trace_spec is None
    assert running.engine.modules == {Module.RX, Module.TX, Module.TCP}


async def test_reports_go_on_beside_a_trace(running: Running) -> None:
    await running.stub.Apply(state(probe("p"), probe("q", ports=(443,))))
    stream = await begun(trace(running, "q"))
    numbers = running.engine.slots
    (slot,) = (n for n, spec in numbers.items() if spec.socket_filter.ports)
    assert running.engine.trace_spec is not None
    assert running.engine.trace_spec.slots == {slot}
    await next_reading(running.engine)
    stream.cancel()


async def test_one_trace_goes_on_at_a_time(running: Running) -> None:
    await running.stub.Apply(state(probe("p"), probe("q")))
    first = await begun(trace(running))
    code, details = await code_of(trace(running, "q"))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "packets of probe 'p' are being traced already" in details
    first.cancel()
    await until(lambda: running.agent._reconciler.trace is None, "the end of the first")
    await begun(trace(running, "q"))


async def test_a_trace_ends_with_the_module_that_measures_what_it_asks_for(
    running: Running,
) -> None:
    await running.stub.Apply(state(probe(modules=("rx", "tx"))))
    stream = await begun(trace(running))
    await running.stub.Apply(state(probe(modules=("rx",)), generation=2))
    assert [len(message.packets) async for message in events(stream)] == [0]
    assert await stream.code() == grpc.StatusCode.OK
    assert not running.engine.tracing


async def test_a_kernel_that_refuses_leaves_the_measurement_as_it_was(running: Running) -> None:
    await running.stub.Apply(state(probe(modules=("rx",))))
    running.engine.trace_refusal = "no BPF ring buffer"
    code, details = await code_of(trace(running, limits_ns={"rx.total": 0}))
    assert (code, details) == (grpc.StatusCode.INTERNAL, "no BPF ring buffer")
    assert running.engine.modules == {Module.RX}
    assert not running.engine.tracing
    running.engine.trace_refusal = None
    await begun(trace(running, limits_ns={"rx.total": 0}))


async def test_a_trace_that_is_cancelled_while_it_begins_leaves_nothing(running: Running) -> None:
    await running.stub.Apply(state(probe()))
    running.engine.stall = asyncio.Event()
    wish = TraceWish("p", TOTALS, per_second=0)
    first = asyncio.create_task(running.agent.trace(wish, AsyncMock()))
    await until(lambda: running.engine.stalled == 1, "the modules to be loaded for the trace")
    first.cancel()
    running.engine.stall.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not running.engine.tracing
    assert running.engine.trace_spec is None
    await begun(trace(running))


async def test_a_trace_may_be_asked_for_before_its_probe(running: Running) -> None:
    stream = await begun(trace(running))
    await running.stub.Apply(state(probe("q")))
    assert running.engine.trace_spec is None
    await running.stub.Apply(state(probe("p"), probe("q"), generation=2))
    assert running.engine.tracing
    running.engine.tell(SENT)
    message = await stream.read()
    assert isinstance(message, pb.TraceEvents)
    assert len(message.packets) == 1
    await running.stub.Apply(state(probe("q"), generation=3))
    assert [len(message.packets) async for message in events(stream)] == [0]


async def test_a_probe_is_applied_though_the_kernel_can_not_trace(running: Running) -> None:
    stream = await begun(trace(running))
    running.engine.trace_refusal = "no BPF ring buffer"
    await running.stub.Apply(state(probe()))
    assert running.engine.modules == {Module.RX, Module.TX, Module.TCP}
    assert await code_of(stream) == (grpc.StatusCode.INTERNAL, "no BPF ring buffer")


async def test_a_trace_that_waits_ends_with_the_agent(running: Running) -> None:
    stream = await begun(trace(running))
    await running.agent.close()
    code, _ = await code_of(stream)
    assert code == grpc.StatusCode.UNAVAILABLE


async def test_the_sampling_of_the_worst_moment_is_reported(running: Running) -> None:
    running.engine.cpu_percent = 50
    running.engine.figure = 1
    message = state(probe())
    message.probes[0].max_cpu_percent = 1
    await running.stub.Apply(message)
    await until(lambda: running.engine.slice_shift > 0, "sampling")
    stream = await begun(trace(running))
    running.engine.tell(SENT)
    told = await stream.read()
    assert isinstance(told, pb.TraceEvents)
    assert told.counts.sampling_ratio == 2.0 ** -(
        running.engine.sample_shift + running.engine.slice_shift
    )
    stream.cancel()


async def test_an_agent_that_goes_says_so(running: Running) -> None:
    await running.stub.Apply(state(probe(pid=os.getpid())))
    stream = await begun(trace(running))
    await running.agent.close()
    code, _ = await code_of(stream)
    assert code == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("probe_id", "limits_ns", "message"),
    [
        ("", TOTALS, "probe_id: is empty"),
        ("p", {}, "limits: is empty"),
        (
            "p",
            {"rx.sockets": 1},
            "limits[0].stage: 'rx.sockets' cannot be traced per packet; choose",
        ),
        ("p", {"tcp.rtt": 1}, "limits[0].stage: 'tcp.rtt' cannot be traced per packet"),
        ("p", {"rx.total": 1, "tx.qdisc": 1}, "limits[1].stage: tx.qdisc needs module tx"),
        (
            "p",
            {"rx.total": 10**11},
            "limits[0].min_ns: 100000000000 is too long: the maximum is 60000000000",
        ),
    ],
)
async def test_an_invalid_request_is_refused_by_its_field(
    running: Running, probe_id: str, limits_ns: dict[str, int], message: str
) -> None:
    await running.stub.Apply(state(probe(modules=("rx",))))
    code, details = await code_of(trace(running, probe_id, limits_ns))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(message)
    assert not running.engine.tracing
