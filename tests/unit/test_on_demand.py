"""Work on demand: one task while there is something to do, and none else."""

from __future__ import annotations

import asyncio

import pytest

from latencyprobe.process.on_demand import OnDemand


class Work:
    """Does as many pieces as were ordered, one each time it is allowed to."""

    def __init__(self) -> None:
        self.ordered = self.done = self.running = 0
        self.allowed = asyncio.Semaphore(0)

    async def __call__(self) -> None:
        self.running += 1
        assert self.running == 1, "two at a time"
        try:
            while self.done < self.ordered:
                await self.allowed.acquire()
                self.done += 1
        finally:
            self.running -= 1


def ended() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_demands_while_it_works_are_met_by_the_same_task() -> None:
    work = Work()
    on_demand = OnDemand(work, ended())
    for _ in range(3):
        work.ordered += 1
        on_demand.start()
        await turns()
    assert (work.running, work.done) == (1, 0)
    for _ in range(3):
        work.allowed.release()
    await turns()

    assert (work.running, work.done) == (0, 3)


async def test_a_demand_in_the_turn_in_which_it_ends_is_met() -> None:
    work = Work()
    on_demand = OnDemand(work, ended())
    before = asyncio.all_tasks()
    on_demand.start()
    while work.running or asyncio.all_tasks() != before:
        await asyncio.sleep(0)
    work.ordered += 1
    work.allowed.release()
    on_demand.start()
    await turns()

    assert work.done == 1


async def test_no_task_is_left_between_two_demands() -> None:
    before = asyncio.all_tasks()
    on_demand = OnDemand(Work(), ended())
    on_demand.start()
    await turns()

    assert asyncio.all_tasks() == before


async def test_its_first_failure_is_reported() -> None:
    future = ended()

    async def fail() -> None:
        raise OSError("failed")

    on_demand = OnDemand(fail, future)
    on_demand.start()
    await turns()
    on_demand.start()
    with pytest.raises(OSError, match="failed"):
        await future
    await turns()


async def test_closed_work_has_ended_and_reports_nothing() -> None:
    work, future = Work(), ended()
    work.ordered = 1
    on_demand = OnDemand(work, future)
    await on_demand.close()
    on_demand.start()
    await turns()
    await on_demand.close()

    assert not work.running
    assert not future.done()
