"""The Helm of the tests."""

from __future__ import annotations

import pytest

from tests.chart.helm import Helm
from tools.helm.programs import obtain_helm
from tools.progress import say_on_stderr


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Found, or built the first time."""
    return Helm(obtain_helm(say_on_stderr))
