"""Situations whose cause a kernel accounts for otherwise than the machine of tests/live."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.live.quotas import V1_CPU
from tests.live.situations.answers import Grade
from tests.live.situations.catalogue import CATALOGUE
from tests.live.situations.runner import observe
from tests.live.situations.situation import End, Situation
from tests.patience import patient

ASKS_S = 40  # a few requests a second are answered under emulation


def for_longer(situation: Situation) -> Situation:
    """The same, with as many packets as a verdict needs."""
    options = {**situation.client.options, "seconds": ASKS_S}
    return replace(situation, client=replace(situation.client, options=options))


@pytest.mark.second_choice
@pytest.mark.timeout(patient(120))
async def test_a_quota_of_the_v2_hierarchy_is_named_from_either_end(tmp_path: Path) -> None:
    assert not (V1_CPU / "cpu.stat").exists()
    situation = for_longer(CATALOGUE["cpu_quota"])
    outcome = await observe(situation, tmp_path)
    for end in End:
        verdict = outcome.verdict(end)
        assert situation.answer(end).grade(verdict) is Grade.RIGHT, (end, verdict, outcome.truth)
