"""Directories that seem to be a user's, so that a test needs no root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from latencyprobe_agent.targets import cgroups, survey
from latencyprobe_agent.targets.cgroups import status_of

USER_ID = 54321
Give = Callable[..., None]


def owned_by_a_user(root: Path, monkeypatch: pytest.MonkeyPatch) -> Give:
    """Return a function that gives directories below the root to a user."""
    owned: set[str] = set()

    def status(path: str) -> os.stat_result | None:
        found = status_of(path)
        if found is None or path not in owned:
            return found
        return os.stat_result((*found[:4], USER_ID, *found[5:10]))

    def give(*paths: str) -> None:
        owned.update(str(root / path) for path in paths)

    for module in (cgroups, survey):
        monkeypatch.setattr(module, "status_of", status)
    return give
