"""Fixtures of the live tier: engines on the running kernel, and pods to measure."""

from __future__ import annotations

import pytest

from tests.live.fixtures import bridged, pair, start_engine
from tests.live.pods import require_tools

__all__ = ["bridged", "pair", "start_engine"]


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    require_tools()
