"""Two operators and one agent, over real gRPC: the newest leader has the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.lease import TERM_S, Lease, StaleTermError
from tests.unit.agent.running import Running, until
from tests.unit.agent.states import probe, seconds

if TYPE_CHECKING:
    Stream = grpc.aio.UnaryStreamCall[pb.WatchReportsRequest, pb.Report]

LEASE_S = 300.0


def state(*, term: int, generation: int = 1, lease_s: float = LEASE_S) -> pb.DesiredState:
    """The state that the leader of this term wants."""
    return pb.DesiredState(
        term=term, generation=generation, probes=[probe()], lease=seconds(lease_s)
    )


def watch(running: Running, term: int) -> Stream:
    """Open a stream of reports in this term."""
    call: Any = running.stub.WatchReports(iter([pb.WatchReportsRequest(term=term)]))
    return cast("Stream", call)


async def next_report(stream: Stream) -> pb.Report:
    """The next report; the stream must not have ended."""
    report = await stream.read()
    assert isinstance(report, pb.Report)
    return report


async def end_of(stream: Stream) -> grpc.aio.AioRpcError:
    """The error that ends a stream."""
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await _read_to_end(stream)
    return ended.value


async def _read_to_end(stream: Stream) -> None:
    async with asyncio.timeout(10):
        while await stream.read() is not grpc.aio.EOF:
            pass


async def refusal_of(running: Running, desired: pb.DesiredState) -> str:
    """The message of the refusal of this state."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Apply(desired)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    return refused.value.details() or ""


async def test_a_state_of_an_older_term_is_refused_with_any_generation(
    running: Running,
) -> None:
    await running.stub.Apply(state(term=8, generation=1))

    message = await refusal_of(running, state(term=7, generation=10**18))

    assert "term 7 is older than 8" in message
    assert (running.agent.term, running.agent.generation) == (8, 1)
    assert running.engine.slots


async def test_a_newer_term_is_taken_with_any_generation(running: Running) -> None:
    await running.stub.Apply(state(term=7, generation=10**18))
    slots = dict(running.engine.slots)

    await running.stub.Apply(state(term=8, generation=3))

    assert (running.agent.term, running.agent.generation) == (8, 3)
    assert running.engine.slots == slots, "nothing was detached"


async def test_generations_of_one_term_grow(running: Running) -> None:
    await running.stub.Apply(state(term=8, generation=5))

    assert "generation 4 is older than 5" in await refusal_of(running, state(term=8, generation=4))


async def test_an_operator_without_terms_is_older_than_one_with(running: Running) -> None:
    await running.stub.Apply(state(term=0, generation=10**18))
    await running.stub.Apply(state(term=1))

    assert "term 0 is older than 1" in await refusal_of(running, state(term=0, generation=10**19))


async def test_a_deposed_operator_does_not_take_the_stream(running: Running) -> None:
    await running.stub.Apply(state(term=7))
    old = watch(running, 7)
    await next_report(old)

    new = watch(running, 8)
    await next_report(new)

    assert (await end_of(old)).code() == grpc.StatusCode.ABORTED
    for _ in range(3):
        refused = await end_of(watch(running, 7))
        assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "term 7 is older than 8" in (refused.details() or "")
    await running.stub.Apply(state(term=8, generation=5))
    assert [(r.term, r.generation) async for r in _until_generation(new, 5)][-1] == (8, 5)


async def _until_generation(stream: Stream, generation: int) -> Any:
    async with asyncio.timeout(10):
        while True:
            report = await next_report(stream)
            yield report
            if report.generation == generation:
                return


async def test_the_stream_of_a_new_leader_refuses_the_old_ones_state(running: Running) -> None:
    await running.stub.Apply(state(term=7))
    await next_report(watch(running, 8))

    assert "term 7 is older than 8" in await refusal_of(running, state(term=7, generation=2))


async def test_a_stream_of_the_same_term_supersedes(running: Running) -> None:
    await running.stub.Apply(state(term=7))
    old = watch(running, 7)
    await next_report(old)

    await next_report(watch(running, 7))

    assert (await end_of(old)).code() == grpc.StatusCode.ABORTED


async def test_a_term_is_forgotten_when_the_lease_ends(running: Running) -> None:
    stream = watch(running, 8)
    await next_report(stream)
    await running.stub.Apply(state(term=8, generation=9, lease_s=0.3))
    stream.cancel()
    await until(lambda: not running.engine.slots, "the lease ended")

    await running.stub.Apply(state(term=3, generation=1))

    assert (running.agent.term, running.agent.generation) == (3, 1)


async def test_a_stream_of_an_older_term_does_not_renew_a_lease_that_has_just_ended(
    running: Running,
) -> None:
    await running.stub.Apply(state(term=8, lease_s=0.3))
    async with running.agent._lock:
        # The agent cannot detach yet.
        await until(_has_ended(running), "the lease ended")
        refused = await end_of(watch(running, 3))
        assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert running.engine.slots
    await until(lambda: not running.engine.slots, "the state was let go")

    await next_report(watch(running, 3))


def _has_ended(running: Running) -> Callable[[], bool]:
    agent = running.agent
    return lambda: (agent._lease_ends_at() or 0) <= agent._clock()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_term_without_any_state_is_forgotten_too() -> None:
    clock = Clock()
    lease = Lease(clock)
    lease.enter(8, 0)

    clock.now += TERM_S - 1
    with pytest.raises(StaleTermError, match="term 3 is older than 8"):
        lease.enter(3, 0)
    clock.now += 1
    lease.enter(3, 0)


def test_a_new_term_begins_with_a_whole_lease() -> None:
    clock = Clock()
    lease = Lease(clock)
    clock.now += 10 * TERM_S
    lease.enter(8, 0)

    with pytest.raises(StaleTermError):
        lease.enter(7, 0)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0, 200.0, 299.0])), max_size=30)
)
def test_terms_never_fall_within_a_lease(calls: list[tuple[int, float]]) -> None:
    clock = Clock()
    lease = Lease(clock)
    newest, since = 0, clock.now
    for term, pause_s in calls:
        clock.now += pause_s
        expired = clock.now - since >= LEASE_S
        try:
            lease.enter(term, LEASE_S)
        except StaleTermError:
            assert term < newest
            assert not expired
        else:
            assert term >= newest or expired
            since = clock.now if term > newest else since
            newest = term
