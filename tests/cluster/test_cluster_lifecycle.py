"""A cluster comes up after any end of the last one, and leaves nothing behind."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from devcluster import cgroups
from devcluster.environment import Cluster, ClusterInUseError
from devcluster.layout import Layout
from devcluster.node import MASKED_DIRECTORIES, SYSCTLS
from devcluster.waiting import wait_until
from tests.cluster import manifests

# Another than the session's, since it is stopped here.
BRIEF = Layout("brief", IPv4Network("10.253.8.0/22"))

START = f"""
from ipaddress import IPv4Network
from devcluster.environment import Cluster
from devcluster.layout import Layout
Cluster(Layout({BRIEF.name!r}, {BRIEF.subnets!r})).start()
"""


@pytest.fixture
def brief_cluster() -> Iterator[Cluster]:
    """Not started yet."""
    cluster = Cluster(BRIEF)
    yield cluster
    cluster.stop()


def _sysctls() -> dict[str, str]:
    return {name: (Path("/proc/sys") / name).read_text() for name in SYSCTLS}


def _network_namespaces_of(pids: Iterable[int]) -> set[int]:
    """Their inodes, this process's own aside."""
    inodes = set()
    for pid in pids:
        # A process that is ending, or has ended, is in none.
        with suppress(OSError):
            inodes.add(Path(f"/proc/{pid}/ns/net").stat().st_ino)
    return inodes - {Path("/proc/self/ns/net").stat().st_ino}


def _all_pids() -> list[int]:
    return [int(process.name) for process in Path("/proc").glob("[0-9]*")]


def _mounts() -> set[str]:
    """Those that are ours if they are new: other tests may mount things meanwhile."""
    ours = (str(BRIEF.state_directory), *MASKED_DIRECTORIES)
    mounts = Path("/proc/mounts").read_text().splitlines()
    # Those of `ip netns` are in the node's own mount namespace; what is seen here is others'.
    return {
        mount
        for mount in mounts
        if (path := mount.split()[1]).startswith(ours) and not path.startswith("/run/netns")
    }


def _processes_in(cgroup: str) -> set[int]:
    found = (cgroups.unified_hierarchy() / cgroup).rglob("cgroup.procs")
    return {int(pid) for procs in found for pid in procs.read_text().split()}


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kill_starter_of(cluster: Cluster) -> None:
    """Starts the cluster in another process, which is killed when the API server runs."""
    with subprocess.Popen([sys.executable, "-c", START]) as starter:

        def unmet() -> str | None:
            running = cluster.process_ids()
            return None if "kube-apiserver" in running else f"{list(running)} run"

        try:
            wait_until("an API server", unmet, seconds=60)
        finally:
            starter.kill()


def test_it_starts_after_a_killed_start_and_leaves_nothing(brief_cluster: Cluster) -> None:
    sysctls = _sysctls()
    mounts = _mounts()
    _kill_starter_of(brief_cluster)
    left_over = set(brief_cluster.process_ids().values())
    assert left_over

    brief_cluster.start(nodes=2)
    for node in brief_cluster.nodes:
        brief_cluster.apply(manifests.server_pod(node.name, namespace="default", node=node.name))
    brief_cluster.wait_for_pods("default", "app=server", count=2)
    containers: set[int] = set()
    components: set[int] = set()
    for node in brief_cluster.nodes:
        on_node = _processes_in(node.kubepods_cgroup)
        assert len(on_node) == 2  # the server and the pod's pause process
        containers |= on_node
        components |= _processes_in(node.components_cgroup)
    namespaces = _network_namespaces_of(containers | components)
    assert set(brief_cluster.process_ids().values()) < components
    assert len(namespaces) == 4  # the nodes' and the pods'

    brief_cluster.stop()

    assert [pid for pid in left_over | containers | components if _runs(pid)] == []
    assert _network_namespaces_of(_all_pids()) & namespaces == set()
    assert _mounts() == mounts
    assert _sysctls() == sysctls
    assert not list(Path("/sys/class/net").glob(f"{BRIEF.bridge}*"))
    assert not cgroups.exists_anywhere(BRIEF.cgroup)
    assert not BRIEF.state_directory.exists()


def test_a_cluster_that_another_process_runs_is_left_alone(cluster: Cluster) -> None:
    with pytest.raises(ClusterInUseError, match=str(os.getpid())):
        Cluster(cluster.layout).start()

    assert cluster.is_ready()
