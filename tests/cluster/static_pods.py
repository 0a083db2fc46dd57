"""A static pod: the kubelet runs it from a file on its node, and mirrors it in the API server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import cgroups
from devcluster.environment import Cluster
from devcluster.waiting import wait_until
from tests.cluster import manifests

HASH = "kubernetes.io/config.hash"

Mirror = dict[str, Any]


@dataclass(frozen=True)
class StaticPod:
    """A static pod of the first node, labelled app=APP, that answers at SERVER_PORT."""

    cluster: Cluster
    namespace: str
    app: str

    def write(self, *options: str) -> None:
        """Put the pod's file where the kubelet finds it, or replace it: that is another pod."""
        pod = manifests.server_pod(
            self.app,
            namespace=self.namespace,
            node=self.cluster.node_name,
            app=self.app,
            options=options,
        )
        # The kubelet overlooks names with a dot in front, and reads the others at once.
        part = self._file.with_name(f".{self._file.name}")
        part.write_text(json.dumps(pod))
        part.replace(self._file)

    def remove(self) -> None:
        """Have the kubelet end it."""
        self._file.unlink(missing_ok=True)

    def wait_for_mirror(self, what: str, holds: Callable[[Mirror], bool]) -> Mirror:
        """Wait until the API server shows it ready, and so; return the mirror."""
        seen: list[Mirror] = [{}]

        def unmet() -> str | None:
            (seen[0],) = self.cluster.wait_for_pods(self.namespace, f"app={self.app}", count=1)
            return None if holds(seen[0]) else json.dumps(seen[0])

        wait_until(what, unmet, seconds=180)
        return seen[0]

    def wait_until_gone(self) -> None:
        """Wait until the API server does not show it any more."""

        def unmet() -> str | None:
            there = self.cluster.get(
                "pods", f"--namespace={self.namespace}", f"--selector=app={self.app}"
            )["items"]
            return json.dumps(there) if there else None

        wait_until("the mirror to be gone", unmet, seconds=180)

    def delete(self, mirror: Mirror) -> None:
        """Delete the mirror alone: the kubelet makes another one."""
        name = mirror["metadata"]["name"]
        self.cluster.kubectl("delete", "pod", name, f"--namespace={self.namespace}", "--wait=false")

    def kill(self, mirror: Mirror) -> None:
        """End the processes of its container: the kubelet starts another one."""
        pids = self._cgroup(mirror).joinpath("cgroup.procs").read_text().split()
        assert pids
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)

    def _cgroup(self, mirror: Mirror) -> Path:
        """The directory of its container; the kubelet takes the hash for the pod's UID."""
        (container,) = mirror["status"]["containerStatuses"]
        name = container["containerID"].removeprefix("containerd://")
        kubepods = self.cluster.nodes[0].kubepods_cgroup
        path = f"{kubepods}/besteffort/pod{hash_of(mirror)}/{name}"
        return cgroups.unified_hierarchy() / path

    @property
    def _file(self) -> Path:
        return self.cluster.nodes[0].static_pods_directory / f"{self.app}.json"


def hash_of(mirror: Mirror) -> str:
    """The hash of the pod's file."""
    return str(mirror["metadata"]["annotations"][HASH])


def uid_of(mirror: Mirror) -> str:
    """The UID that the API server has given the mirror."""
    return str(mirror["metadata"]["uid"])


def restarts(mirror: Mirror) -> int:
    """The number of containers that came after the first."""
    (container,) = mirror["status"]["containerStatuses"]
    return int(container["restartCount"])
