"""The administrator's limits: on the LatencyProbes of each namespace, and on figures of nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_MAX_PROBES_PER_NAMESPACE = 100
ALL_NAMESPACES = "*"


@dataclass(frozen=True, slots=True)
class AdminLimits:
    """The limits. `max_probes_per_namespace`: None means no limit.

    `node_figures_namespaces`: their probes get figures of whole nodes, which show what other
    tenants do. ALL_NAMESPACES stands for all of them.
    """

    min_interval_s: float = 0.0
    max_probes_per_namespace: int | None = None
    node_figures_namespaces: frozenset[str] = frozenset()

    def allow_node_figures(self, namespace: str) -> bool:
        """Decide whether the probes of this namespace get figures of whole nodes."""
        return not self.node_figures_namespaces.isdisjoint({ALL_NAMESPACES, namespace})


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
