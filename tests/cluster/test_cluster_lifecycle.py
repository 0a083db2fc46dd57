"""A cluster comes up after any end of the last one, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from tests.cluster import cgroups, manifests
from tests.cluster.environment import Cluster, ClusterInUseError
from tests.cluster.layout import Layout
from tests.cluster.node import SYSCTLS
from tests.cluster.waiting import wait_until

# Another than the session's, since it is stopped here.
BRIEF = Layout("brief", IPv4Network("10.253.8.0/22"), cgroup_parent="/latencyprobe-brief")

START = """
from tests.cluster.environment import Cluster
from tests.cluster.test_cluster_lifecycle import BRIEF
Cluster(BRIEF).start()
"""


@pytest.fixture
def brief_cluster() -> Iterator[Cluster]:
    """Not started yet."""
    cluster = Cluster(BRIEF)
    yield cluster
    cluster.stop()


def _sysctls() -> dict[str, str]:
    return {name: (Path("/proc/sys") / name).read_text() for name in SYSCTLS}


def _inodes_of_network_namespaces() -> set[int]:
    """Of all that a process is in. A dying process has none."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inodes.add((process / "ns/net").stat().st_ino)
        except OSError:
            continue
    return inodes


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

        wait_until("an API server", unmet, seconds=60)
        starter.send_signal(signal.SIGKILL)


def test_it_starts_after_a_killed_start_and_leaves_nothing(brief_cluster: Cluster) -> None:
    sysctls = _sysctls()
    mounts = Path("/proc/mounts").read_text()
    namespaces = _inodes_of_network_namespaces()
    _kill_starter_of(brief_cluster)
    left_over = set(brief_cluster.process_ids().values())
    assert left_over

    brief_cluster.start()
    brief_cluster.apply(manifests.server_deployment("server", namespace="default", replicas=2))
    brief_cluster.wait_for_pods("default", "app=server", count=2)
    containers = _processes_in(BRIEF.kubepods_cgroup)
    components = _processes_in(BRIEF.components_cgroup)
    own_namespaces = _inodes_of_network_namespaces() - namespaces
    assert len(containers) == 4  # two servers and the pause process of each pod
    assert set(brief_cluster.process_ids().values()) < components
    assert len(own_namespaces) == 3  # the node's and the pods'

    brief_cluster.stop()

    assert [pid for pid in left_over | containers | components if _runs(pid)] == []
    assert _inodes_of_network_namespaces() & own_namespaces == set()
    assert Path("/proc/mounts").read_text() == mounts
    assert _sysctls() == sysctls
    assert not Path("/sys/class/net", BRIEF.host_interface).exists()
    for cgroup in (BRIEF.components_cgroup, BRIEF.cgroup_parent.removeprefix("/")):
        assert not cgroups.exists_anywhere(cgroup)
    assert not BRIEF.state_directory.exists()


def test_a_cluster_that_another_process_runs_is_left_alone(cluster: Cluster) -> None:
    with pytest.raises(ClusterInUseError, match=str(os.getpid())):
        Cluster(cluster.layout).start()

    assert cluster.is_ready()
