"""News of an agent: heard at once, and seldom from one whose states flap."""

from __future__ import annotations

import asyncio

from latencyprobe_operator.agents.news import BURST, PACE_S, PacedNews
from tests.unit.operator_.virtual_time import VirtualTimeLoop

LOOP = VirtualTimeLoop


class Heard:
    """Notes when news were passed on."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.news = PacedNews(self.hear)

    def hear(self) -> None:
        self.times.append(asyncio.get_running_loop().time())


async def test_a_burst_is_heard_at_once_and_the_rest_together() -> None:
    heard = Heard()
    for _ in range(10 * BURST):
        heard.news.note()
    assert len(heard.times) == BURST
    await asyncio.sleep(3 * PACE_S)
    assert len(heard.times) == BURST + 1
    assert heard.times[-1] - heard.times[0] >= PACE_S


async def test_news_that_flaps_for_an_hour_is_heard_at_a_steady_pace() -> None:
    heard = Heard()
    for _ in range(7200):
        heard.news.note()
        await asyncio.sleep(0.5)
    assert 3600 / PACE_S <= len(heard.times) <= 3600 / PACE_S + BURST + 1


async def test_after_quiet_times_news_are_heard_at_once_again() -> None:
    heard = Heard()
    for _ in range(10 * BURST):
        heard.news.note()
    await asyncio.sleep(2 * BURST * PACE_S)
    before = len(heard.times)
    heard.news.note()
    assert len(heard.times) == before + 1


async def test_cancelled_news_is_not_heard() -> None:
    heard = Heard()
    for _ in range(10 * BURST):
        heard.news.note()
    heard.news.cancel()
    await asyncio.sleep(3 * PACE_S)
    assert len(heard.times) == BURST
