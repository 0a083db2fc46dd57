"""Steps of many probes: one at a time, and namespaces in turns."""

from __future__ import annotations

import asyncio

from latencyprobe_operator.probes.turns import NamespaceTurns


class Steps:
    """Tasks that take steps, and the namespaces in the order of these steps."""

    def __init__(self) -> None:
        self.turns = NamespaceTurns()
        self.taken: list[str] = []
        self._are_running = 0

    async def step(self, namespace: str) -> None:
        async with self.turns.of(namespace):
            self._are_running += 1
            assert self._are_running == 1
            await asyncio.sleep(0)
            self.taken.append(namespace)
            self._are_running -= 1


async def test_a_namespace_with_many_steps_delays_another_by_one() -> None:
    steps = Steps()
    async with asyncio.TaskGroup() as tasks:
        for namespace in [*["flood"] * 50, "shop", *["bank"] * 2]:
            tasks.create_task(steps.step(namespace))
    assert steps.taken[:7] == ["flood", "flood", "shop", "bank", "flood", "bank", "flood"]
    assert len(steps.taken) == 53


async def test_a_step_that_is_cancelled_before_or_in_its_turn_holds_up_no_other() -> None:
    steps = Steps()
    async with steps.turns.of("shop"):
        tasks = [asyncio.create_task(steps.step(namespace)) for namespace in "abcd"]
        await asyncio.sleep(0)
        tasks[1].cancel()
    tasks[0].cancel()  # it has the turn, but has not run yet
    await asyncio.gather(*tasks, return_exceptions=True)
    assert steps.taken == ["c", "d"]
    await steps.step("e")
    assert steps.taken == ["c", "d", "e"]
