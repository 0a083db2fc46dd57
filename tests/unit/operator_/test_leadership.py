"""Who leads, from records of the Lease and a monotonic clock alone."""

from __future__ import annotations

import dataclasses

import pytest

from latencyprobe_operator.kube.lease import FREE, MAX_TRANSITIONS, LeaseRecord
from latencyprobe_operator.leadership import Leadership, LeaseTiming, TimingError
from tests.unit.operator_.shared_lease import SetClock

TIMING = LeaseTiming(15, 10.0, 2.0)
# 2025-01-01T00:10:00Z: the clock stands for 300 transitions, below those of RECORD.
WALL = 1_735_690_200.0
RECORD = LeaseRecord(holder="b", duration_s=15, transitions=700, renewed="1")


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def candidate(clock: SetClock) -> Leadership:
    return Leadership("a", TIMING, clock)


def renewed(record: LeaseRecord, time: str) -> LeaseRecord:
    """The record after a renewal."""
    return dataclasses.replace(record, renewed=time)


def test_a_lease_is_free_if_it_does_not_exist_or_has_no_holder(candidate: Leadership) -> None:
    for record in (None, FREE, LeaseRecord("", 1, 700)):
        candidate.see(record)
        assert candidate.free_in_s() == 0


def test_a_held_lease_is_free_once_it_has_not_changed_for_its_duration(
    candidate: Leadership, clock: SetClock
) -> None:
    candidate.see(RECORD)
    assert candidate.free_in_s() == 15
    clock.now += 14
    candidate.see(RECORD)
    assert candidate.free_in_s() == 1
    candidate.see(renewed(RECORD, "2"))
    assert candidate.free_in_s() == 15
    clock.now += 15
    assert candidate.free_in_s() == 0


@pytest.mark.parametrize("renewed_at", ["1970-01-01T00:00:00Z", "2099-01-01T00:00:00Z", ""])
def test_the_holders_wall_clock_does_not_matter(
    candidate: Leadership, clock: SetClock, renewed_at: str
) -> None:
    candidate.see(renewed(RECORD, renewed_at))
    assert candidate.free_in_s() == 15
    clock.now += 15
    assert candidate.free_in_s() == 0


def test_the_holder_decides_how_long_its_lease_is(candidate: Leadership) -> None:
    candidate.see(LeaseRecord("b", 60, 700))
    assert candidate.free_in_s() == 60


def test_the_term_is_one_more_than_the_transitions_and_grows_with_each_holder(
    candidate: Leadership, clock: SetClock
) -> None:
    candidate.see(RECORD)
    proposal = candidate.proposal(WALL)
    assert (proposal.holder, proposal.transitions, proposal.duration_s) == ("a", 701, 15)

    candidate.hold(proposal, sent_at=clock.now)

    assert candidate.term == 702
    renewal = candidate.proposal(WALL + 2)
    assert (renewal.holder, renewal.transitions) == ("a", 701)


@pytest.mark.parametrize("before", [None, FREE, LeaseRecord("b", 15, 4)])
def test_a_lease_that_was_deleted_or_restored_continues_above_all_earlier_terms(
    candidate: Leadership, before: LeaseRecord | None
) -> None:
    an_hour, a_few_seconds = 3600.0, 4.0
    candidate.see(RECORD)
    newest = candidate.proposal(WALL + an_hour).transitions

    another = Leadership("c", TIMING)
    another.see(before)

    assert another.proposal(WALL + an_hour + a_few_seconds).transitions > newest


def test_a_candidate_that_knows_a_term_goes_beyond_it(candidate: Leadership) -> None:
    candidate.see(RECORD)
    candidate.see(None)
    assert candidate.proposal(WALL).transitions == RECORD.transitions + 1


def test_transitions_stay_within_the_apis_field(candidate: Leadership) -> None:
    candidate.see(LeaseRecord("b", 15, MAX_TRANSITIONS))
    assert candidate.proposal(2e11).transitions == MAX_TRANSITIONS


def test_the_lease_is_held_from_before_the_request_that_renewed_it(
    candidate: Leadership, clock: SetClock
) -> None:
    sent_at = clock.now
    clock.now += 4
    candidate.hold(RECORD, sent_at=sent_at)
    assert candidate.remaining_s() == 11
    clock.now += 5.9
    assert candidate.remaining_s() > 5
    clock.now += 0.1
    assert candidate.remaining_s() == 0, "past the renew deadline"


def test_an_answer_that_comes_after_the_lease_makes_no_leader(
    candidate: Leadership, clock: SetClock
) -> None:
    sent_at = clock.now
    clock.now += 3600
    candidate.hold(RECORD, sent_at=sent_at)
    assert candidate.remaining_s() == 0


def test_a_lost_lease_is_not_held(candidate: Leadership, clock: SetClock) -> None:
    candidate.hold(RECORD, sent_at=clock.now)
    candidate.lose()
    assert (candidate.remaining_s(), candidate.term) == (0, 0)


def test_only_its_own_record_of_the_same_term_continues_it(
    candidate: Leadership, clock: SetClock
) -> None:
    mine = LeaseRecord("a", 15, 700, renewed="1")
    assert not candidate.still_holds(mine), "it has not led yet"
    candidate.hold(mine, sent_at=clock.now)
    assert candidate.still_holds(renewed(mine, "2"))
    for other in (None, RECORD, LeaseRecord("a", 15, 699), LeaseRecord("", 1, 700)):
        assert not candidate.still_holds(other)


@pytest.mark.parametrize(
    "times", [(15, 15.0, 2.0), (15, 10.0, 10.0), (15, 10.0, 0.0), (5, 10.0, 2)]
)
def test_times_that_contradict_each_other_are_refused(times: tuple[int, float, float]) -> None:
    with pytest.raises(TimingError, match="must be longer than the renew deadline"):
        LeaseTiming(*times)
