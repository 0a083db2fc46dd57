"""Candidates for one Lease, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latencyprobe_operator.kube.cluster import ApiError
from latencyprobe_operator.leadership import LeadershipLostError, LeaseTiming
from tests.unit.operator_.shared_lease import Candidate, SharedLease, Trip
from tests.unit.operator_.virtual_time import VirtualTimeLoop

LOOP = VirtualTimeLoop
TIMING = LeaseTiming(15, 10.0, 2.0)
AWAY = OSError("no route to host")


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def lease() -> SharedLease:
    return SharedLease()


def candidate(name: str, lease: SharedLease, trips: Iterator[Trip] | None = None) -> Candidate:
    """A candidate whose requests arrive at once."""
    return Candidate(name, lease, trips or itertools.repeat(Trip()), timing=TIMING)


@asynccontextmanager
async def running(*candidates: Candidate) -> AsyncIterator[list[asyncio.Task[None]]]:
    """They take part; each ends with the Lease lost, or here."""
    tasks = [asyncio.create_task(each.run()) for each in candidates]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def leads(who: Candidate) -> None:
    """Wait until it leads."""
    await _until(lambda: who.leads, who)


async def _until(condition: object, who: Candidate) -> None:
    deadline = now() + 120
    while not condition():  # type: ignore[operator]
        assert now() < deadline, f"{who.name} does not lead"
        await asyncio.sleep(0.05)


async def test_the_first_candidate_leads_and_goes_on(lease: SharedLease) -> None:
    one, two = candidate("one", lease), candidate("two", lease)
    async with running(one, two):
        await _until(lambda: one.leads or two.leads, one)
        first = lease.holders[0]
        for _ in range(600):
            await asyncio.sleep(1)
            assert one.leads != two.leads
        assert lease.holders == [first]


async def test_another_takes_the_lease_of_one_that_has_died(lease: SharedLease) -> None:
    one, two = candidate("one", lease), candidate("two", lease)
    async with running(one) as (dying,):
        await leads(one)
        async with running(two):
            await asyncio.sleep(20)
            dying.cancel()
            died = now()
            await leads(two)
            assert 12 < now() - died < 18
    (_, before), (_, after) = lease.holders
    assert after > before


async def test_a_released_lease_is_taken_at_the_next_poll(lease: SharedLease) -> None:
    one, two = candidate("one", lease), candidate("two", lease)
    async with running(one) as (ending,):
        await leads(one)
        async with running(two):
            await asyncio.sleep(20)
            ending.cancel()
            await one.election.release()
            released = now()
            assert not one.leads
            await leads(two)
            assert now() - released < 2.5


async def test_a_standby_releases_nothing(lease: SharedLease) -> None:
    one, two = candidate("one", lease), candidate("two", lease)
    async with running(one):
        await leads(one)
        async with running(two):
            await asyncio.sleep(20)
        await two.election.release()
        assert lease.record
        assert lease.record.holder == "one"


async def test_a_release_that_fails_is_left_to_the_end_of_the_lease(
    lease: SharedLease, caplog: pytest.LogCaptureFixture
) -> None:
    one = candidate("one", lease)
    async with running(one):
        await leads(one)
    one.path.away = AWAY
    await one.election.release()
    assert "cannot release the Lease" in caplog.text
    assert not one.leads


async def test_a_leader_that_cannot_renew_writes_no_more_and_the_other_takes_over(
    lease: SharedLease, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, two = candidate("one", lease), candidate("two", lease)
    async with running(one) as (first,):
        await leads(one)
        async with running(two):
            one.path.away = AWAY
            began = now()
            await _until(lambda: not one.leads, one)
            assert 8 <= now() - began <= 10.1
            assert not two.leads
            await leads(two)
            assert now() - began < 18

            one.path.away = None
            with pytest.raises(LeadershipLostError, match="two holds it"):
                await first
    assert "cannot renew the Lease latencyprobe-system/latencyprobe-operator; no status" in (
        caplog.text
    )


async def test_an_outage_of_the_api_server_ends_no_term(lease: SharedLease) -> None:
    one, two = candidate("one", lease), candidate("two", lease)
    async with running(one):
        await leads(one)
        term = one.leadership.term
        async with running(two):
            one.path.away = two.path.away = ApiError(503, "", "etcd is away")
            await asyncio.sleep(600)
            assert not one.leads
            assert not two.leads
            one.path.away = None
            await leads(one)
            two.path.away = None
            await asyncio.sleep(60)
            assert (one.leads, one.leadership.term) == (True, term)
    assert len(lease.holders) == 1


async def test_a_deleted_lease_is_lost_and_taken_with_a_higher_term(lease: SharedLease) -> None:
    one, two = candidate("one", lease), candidate("two", lease)
    async with running(one) as (first,):
        await leads(one)
        await asyncio.sleep(20)
        lease.record = None
        with pytest.raises(LeadershipLostError, match="it was deleted"):
            await first
    async with running(two):
        await asyncio.sleep(20)
        await leads(two)
    (_, before), (_, after) = lease.holders
    assert after > before


async def test_a_change_beside_the_spec_costs_no_leadership(lease: SharedLease) -> None:
    one = candidate("one", lease)
    async with running(one):
        await leads(one)
        for _ in range(30):
            lease.touch()
            await asyncio.sleep(1)
            assert one.leads


async def test_a_renewal_whose_answer_is_lost_costs_no_leadership(lease: SharedLease) -> None:
    trips = itertools.cycle([Trip(), Trip(), Trip(answered=False), Trip()])
    one = candidate("one", lease, trips)
    async with running(one):
        await leads(one)
        for _ in range(100):
            await asyncio.sleep(1)
            assert one.leads
    assert len(lease.holders) == 1


async def test_a_taken_lease_whose_answer_is_lost_is_recognised(lease: SharedLease) -> None:
    trips = itertools.chain([Trip(), Trip(answered=False)], itertools.repeat(Trip()))
    one = candidate("one", lease, trips)
    async with running(one):
        await leads(one)
        assert now() < 10
    assert len(lease.holders) == 1


async def test_a_refusal_is_logged_once_and_tried_again(
    lease: SharedLease, caplog: pytest.LogCaptureFixture
) -> None:
    one = candidate("one", lease)
    one.path.away = ApiError(403, "Forbidden", "leases is forbidden")
    async with running(one):
        await asyncio.sleep(600)
        assert caplog.text.count("leases is forbidden") == 1
        one.path.away = None
        await leads(one)


async def test_a_bug_is_not_swallowed(lease: SharedLease) -> None:
    one = candidate("one", lease)
    async with running(one) as (task,):
        await leads(one)
        one.path.away = AssertionError("a bug")
        with pytest.raises(AssertionError, match="a bug"):
            await task


async def test_it_can_be_cancelled_at_any_time(lease: SharedLease) -> None:
    for moment in range(40):
        one = candidate("one", lease, itertools.repeat(Trip(0.3, 0.3)))
        async with running(one) as (task,):
            await asyncio.sleep(moment / 10)
        assert task.cancelled()


# Up to a minute: longer than the Lease, so that a frozen process misses a whole term.
_SECONDS = st.sampled_from([0.001, 0.001, 0.5, 3.0, 9.0, 14.0, 16.0, 60.0])
_TRIPS = st.builds(
    Trip,
    there_s=_SECONDS,
    back_s=_SECONDS,
    answered=st.sampled_from([True, True, True, False]),
    arrives=st.sampled_from([True, True, True, False]),
    frozen=st.booleans(),
)
_PATHS = st.lists(st.lists(st.one_of(st.just(Trip()), _TRIPS), max_size=60), min_size=2, max_size=3)
# Clocks of good machines differ by parts of a million; these by a tenth, and by any offset.
_CLOCKS = st.tuples(st.floats(-1e6, 1e6), st.sampled_from([0.95, 1.0, 1.05]), st.floats(0, 1e9))


@pytest.mark.parametrize("examples", [50, pytest.param(500, marks=pytest.mark.thorough)])
def test_two_never_lead_at_once_even_if_requests_or_processes_are_late_lost_or_frozen(
    examples: int,
) -> None:
    @given(paths=_PATHS, clocks=st.lists(_CLOCKS, min_size=3, max_size=3))
    @settings(deadline=None, max_examples=examples)
    def hold(paths: list[list[Trip]], clocks: list[tuple[float, float, float]]) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(_compete(paths, clocks))

    hold()


async def _compete(paths: list[list[Trip]], clocks: list[tuple[float, float, float]]) -> None:
    lease = SharedLease()

    def next_candidate(number: int) -> Candidate:
        offset_s, rate, wall_s = clocks[number]
        trips = itertools.chain(paths[number], itertools.repeat(Trip()))
        return Candidate(
            f"{number}-{next(names)}",
            lease,
            trips,
            timing=TIMING,
            offset_s=offset_s,
            rate=rate,
            wall_s=wall_s,
        )

    names = itertools.count()
    present: dict[int, Candidate] = {}

    async def stay(number: int) -> None:
        while True:
            present[number] = next_candidate(number)
            paths[number] = []
            with suppress(LeadershipLostError):
                await present[number].run()

    tasks = [asyncio.create_task(stay(number)) for number in range(len(paths))]
    for _ in range(4000):
        await asyncio.sleep(0.1)
        leaders = [each.name for each in present.values() if each.leads]
        assert len(leaders) <= 1, leaders
    assert any(each.leads for each in present.values()), "in the end there is one"
    terms = [term for _, term in lease.holders]
    assert terms == sorted(set(terms))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
