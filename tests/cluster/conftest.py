"""The cluster of the test session."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from devcluster import cert_manager_programs, programs
from devcluster.environment import Cluster
from devcluster.layout import FOR_TESTS
from tests.chart.helm import Helm
from tests.cluster.operator_process import install
from tests.cluster.product import Product, make_certificates, running_product
from tests.cluster.release import Release, secrets_of
from tests.cluster.shop import Shop
from tests.cluster.site import Site, running_site
from tools.helm.programs import obtain_helm
from tools.images import build
from tools.images.components import COMPONENTS, own_architecture
from tools.progress import say_on_stderr


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Found or built before any test's deadline runs: the first time it takes minutes."""
    programs.obtain(say_on_stderr)
    obtain_helm(say_on_stderr)
    cert_manager_programs.obtain(say_on_stderr)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A clean cluster, the session's own. One that `make cluster` started may run beside it."""
    cluster = Cluster(FOR_TESTS)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the operator and the agent beside the cluster."""
    return make_certificates(tmp_path_factory.mktemp("pki") / "certificates")


@pytest.fixture(scope="session")
def kubeconfig(cluster: Cluster) -> Path:
    """The operator's, once the CRD and its permissions are there; a release removes them first."""
    return install(cluster)


@pytest.fixture
def product(
    cluster: Cluster, kubeconfig: Path, namespace: str, certificates: Path, tmp_path: Path
) -> Iterator[Product]:
    """Operator and agent beside the cluster."""
    with running_product(cluster, kubeconfig, namespace, certificates, tmp_path) as made:
        yield made


@pytest.fixture
def site(cluster: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[Site]:
    """Operator and an agent without a kernel beside the cluster, with two pods app=checkout."""
    with running_site(cluster, kubeconfig, namespace, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def two_nodes(cluster: Cluster) -> Cluster:
    """The session's cluster, once a second node has joined it, which stays."""
    cluster.join()
    return cluster


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The real one."""
    return Helm(obtain_helm(say_on_stderr))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, build.Built]:
    """The images of this checkout, by component, as `make images` builds them."""
    folder = tmp_path_factory.mktemp("images")
    images = build.build(list(COMPONENTS), own_architecture(), folder, say_on_stderr)
    return dict(zip(COMPONENTS, images, strict=True))


@pytest.fixture(scope="session")
def secrets_before(two_nodes: Cluster) -> set[tuple[str, str]]:
    """The Secrets that there were before the release."""
    return secrets_of(two_nodes)


@pytest.fixture(scope="session")
def release(
    two_nodes: Cluster,
    helm: Helm,
    built: dict[str, build.Built],
    secrets_before: set[tuple[str, str]],
) -> Iterator[Release]:
    """The chart, installed on two nodes; what uninstalls it comes last."""
    for image in built.values():
        two_nodes.load_image(image.path)
    release = Release(two_nodes, helm)
    release.make_room()
    release.install()
    yield release
    if release.is_installed:
        release.uninstall()


@pytest.fixture(scope="session")
def shop(release: Release) -> Iterator[Shop]:
    """Pods of both nodes that ask each other, and are measured."""
    name = f"shop-{uuid4().hex[:8]}"
    release.cluster.create_namespace(name)
    shop = Shop(release, name)
    shop.open()
    yield shop
    release.cluster.kubectl("delete", "namespace", name, "--wait=false")


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
