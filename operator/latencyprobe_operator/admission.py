"""The administrator's limits: on the LatencyProbes of each namespace, and on figures of nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from latencyprobe_operator.model import STATIC_POD_NAMESPACES

DEFAULT_MAX_PROBES_PER_NAMESPACE = 100
ALL_NAMESPACES = "*"


@dataclass(frozen=True, slots=True)
class AdminLimits:
    """The limits. `max_probes_per_namespace`: None means no limit.

    `node_figures_namespaces`: their probes get figures of whole nodes, which show what other
    tenants do. `static_pod_namespaces`: only their pods are believed to be static. Anyone who may
    create a pod may give it the annotations of a static one, with the UID of any pod of its node.
    ALL_NAMESPACES stands for all of them.
    """

    min_interval_s: float = 0.0
    max_probes_per_namespace: int | None = None
    node_figures_namespaces: frozenset[str] = frozenset()
    static_pod_namespaces: frozenset[str] = STATIC_POD_NAMESPACES

    def allow_node_figures(self, namespace: str) -> bool:
        """Decide whether the probes of this namespace get figures of whole nodes."""
        return not self.node_figures_namespaces.isdisjoint({ALL_NAMESPACES, namespace})

    def believe_static_pods(self, namespace: str) -> bool:
        """Decide whether a pod of this namespace may name the UID of its cgroups itself."""
        return not self.static_pod_namespaces.isdisjoint({ALL_NAMESPACES, namespace})


NO_LIMITS = AdminLimits()


@dataclass(frozen=True, slots=True, order=True)
class Applicant:
    """A LatencyProbe that asks to be served. Older ones come first; `created` is the API's time."""

    namespace: str
    created: str
    uid: str


def surplus_probes(applicants: Iterable[Applicant], limits: AdminLimits) -> frozenset[str]:
    """Return the UIDs of the probes above the limit: the youngest of each namespace."""
    most = limits.max_probes_per_namespace
    if most is None:
        return frozenset()
    by_namespace: dict[str, list[Applicant]] = defaultdict(list)
    for applicant in applicants:
        by_namespace[applicant.namespace].append(applicant)
    return frozenset(each.uid for own in by_namespace.values() for each in sorted(own)[most:])
