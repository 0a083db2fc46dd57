"""The cluster of the test session."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.cluster import helm_programs, programs
from tests.cluster.environment import Cluster
from tests.cluster.layout import FOR_TESTS


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Found or built before any test's deadline runs: the first time it takes minutes."""
    programs.obtain(programs.say_on_stderr)
    helm_programs.obtain_helm(programs.say_on_stderr)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A clean cluster, the session's own. One that `make cluster` started may run beside it."""
    cluster = Cluster(FOR_TESTS)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def two_nodes(cluster: Cluster) -> Cluster:
    """The session's cluster, once a second node has joined it, which stays."""
    cluster.join()
    return cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on two nodes come last, since the second one stays."""
    items.sort(key=lambda item: "two_nodes" in getattr(item, "fixturenames", ()))


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own, which goes with its pods after it."""
    name = f"test-{uuid4().hex[:8]}"
    cluster.create_namespace(name)
    yield name
    # Without waiting: names are not used twice, and the node has room for 110 pods.
    cluster.kubectl("delete", "namespace", name, "--wait=false")
