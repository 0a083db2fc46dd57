"""Names of pods for the identities in agents' reports: for addresses of peers, and for cgroups.

An agent reports identities. The names are the API server's, so that no agent can make one up. A
reader sees names of pods of the probe's own namespace. Names of others need the administrator's
leave, as figures of whole nodes do. Without it the text only has where such a pod is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from latencyprobe.domain.cgroups import Cgroup, cgroup_text
from latencyprobe.domain.names import Names, named
from latencyprobe.domain.report import TargetReport
from latencyprobe.domain.stages import WAITED_FOR_CGROUP_PREFIX
from latencyprobe.domain.verdict import with_culprit
from latencyprobe_operator.kube.directory import PodDirectory
from latencyprobe_operator.model import Pod

_ON_THIS_NODE = "a pod of another namespace on this node"
_ELSEWHERE = "a pod of another namespace in this cluster"


class Naming:
    """The names that the readers of one probe may see. `sees_others`: of all namespaces."""

    def __init__(self, pods: PodDirectory, namespace: str, *, sees_others: bool) -> None:
        self._pods = pods
        self._namespace = namespace
        self._sees_others = sees_others

    def named(self, report: TargetReport, node: str) -> TargetReport:
        """Return the report of a pod of this node, with names."""
        if report.verdict.culprit and report.verdict.culprit not in _identities(report):
            report = _without_culprit(report)
        if not report.peers and not report.cgroups:
            return report
        peers = {peer.address: self._pods.at(peer.address.address.packed) for peer in report.peers}
        cgroups = {cgroup.id: self._of_cgroup(cgroup, node) for cgroup in report.cgroups}
        return named(
            report,
            Names(
                {address: self._of_pod(pod, node) for address, pod in peers.items() if pod},
                {cgroup_id: name for cgroup_id, name in cgroups.items() if name},
            ),
        )

    def _of_cgroup(self, cgroup: Cgroup, node: str) -> str:
        """Return the name of a cgroup; empty if there is none, or it may not be shown."""
        pod = self._pods.of_cgroup(node, cgroup.pod_uid) if cgroup.pod_uid else None
        if pod is not None:
            return self._of_pod(pod, node, _container(pod, cgroup.container_id))
        if self._sees_others and cgroup.path.startswith("/"):
            return cgroup_text(cgroup.path)
        return ""

    def _of_pod(self, pod: Pod, node: str, container: str = "") -> str:
        if self._sees_others or pod.namespace == self._namespace:
            name = f"pod {pod.namespace}/{pod.name}"
            return f"{name}, container {container}" if container else name
        return _ON_THIS_NODE if pod.node == node else _ELSEWHERE


def _container(pod: Pod, container_id: str) -> str:
    """Return the name of a running container; empty if it is not known."""
    if not container_id:
        return ""
    ids = {each.id.partition("://")[2]: each.name for each in pod.containers}
    return ids.get(container_id, "")


def _identities(report: TargetReport) -> Iterator[str]:
    """Yield the texts that a culprit can have. Any other of an agent could pass for a name."""
    yield from (str(peer.address) for peer in report.peers)
    for counter in report.counters:
        if counter.startswith(WAITED_FOR_CGROUP_PREFIX):
            yield cgroup_text(counter.removeprefix(WAITED_FOR_CGROUP_PREFIX))


def _without_culprit(report: TargetReport) -> TargetReport:
    return replace(report, verdict=with_culprit(report.verdict, ""))
