"""Situations whose cause a kernel accounts for otherwise than the machine of tests/live."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.quotas import V1_CPU
from tests.live.situations.answers import Grade
from tests.live.situations.catalogue import CATALOGUE
from tests.live.situations.runner import observe
from tests.live.situations.situation import End
from tests.patience import patient

QUOTA = "cpu_quota"


@pytest.mark.second_choice
@pytest.mark.timeout(patient(120))
async def test_a_quota_of_the_v2_hierarchy_is_named_from_either_end(tmp_path: Path) -> None:
    assert not (V1_CPU / "cpu.stat").exists()
    situation = CATALOGUE[QUOTA]
    outcome = await observe(situation, tmp_path)
    for end in End:
        verdict = outcome.verdict(end)
        assert situation.answer(end).grade(verdict) is Grade.RIGHT, (end, verdict, outcome.truth)
