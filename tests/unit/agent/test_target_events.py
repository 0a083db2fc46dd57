"""A change at a watched path wakes the task that follows the targets."""

from __future__ import annotations

import asyncio
from pathlib import Path

from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import NetnsSelector
from latencyprobe_agent.target_events import TargetEvents
from latencyprobe_agent.targets.resolver import Resolver
from tests.patience import patient
from tests.unit.agent.scripted import Clock


async def test_a_target_that_appears_wakes_the_task_and_is_polled_at_once(tmp_path: Path) -> None:
    resolver, wake = Resolver(clock=Clock()), asyncio.Event()  # the time of a poll never comes
    target = NetnsSelector(str(tmp_path / "blue"))
    resolver.track([target])
    assert resolver.facts_of(target).state is TargetState.FAILED
    resolver.refresh()
    with TargetEvents(resolver, wake) as events:
        events.listen()
        (tmp_path / "other").touch()
        (tmp_path / "blue").symlink_to("/proc/self/ns/net")
        async with asyncio.timeout(patient(60)):
            await wake.wait()
    assert resolver.refresh()
    assert resolver.facts_of(target).state is TargetState.ATTACHED
    resolver.close()


async def test_nothing_wakes_the_task_after_the_end(tmp_path: Path) -> None:
    resolver, wake = Resolver(clock=Clock()), asyncio.Event()
    resolver.track([NetnsSelector(str(tmp_path / "blue"))])
    with TargetEvents(resolver, wake) as events:
        events.listen()
    (tmp_path / "blue").touch()
    assert resolver.take_changes()  # it is still there to be read
    await asyncio.sleep(0)
    assert not wake.is_set()
    resolver.close()
    assert resolver.fileno() is None
