"""The Helm of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chart.helm import Helm
from tests.chart.upgrades import Cluster, empty_cluster
from tools.helm.programs import obtain_helm
from tools.progress import say_on_stderr


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Found, or built the first time."""
    return Helm(obtain_helm(say_on_stderr))


@pytest.fixture
def cluster(helm: Helm) -> Iterator[Cluster]:
    """Without a release as yet."""
    with empty_cluster(helm) as made:
        yield made
