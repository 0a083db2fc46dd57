"""The administrator's limits: on the LatencyProbes of each namespace, and on figures of nodes."""

from __future__ import annotations

import sys
from bisect import bisect_left
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


class Admissions:
    """The applicants of each namespace, and the limit on those that are served: the oldest ones.

    A change names at most one other applicant. So a namespace far above the limit costs no more
    than one at the limit.
    """

    def __init__(self, most: int | None) -> None:
        """Know no applicant yet. `most`: of each namespace; None means no limit."""
        self._most = sys.maxsize if most is None else most
        self._applicants: dict[str, Applicant] = {}
        # In the order in which they are served.
        self._by_namespace: dict[str, list[Applicant]] = {}

    def join(self, applicant: Applicant) -> str | None:
        """Take in an applicant, perhaps again; return the UID that is refused from now on."""
        own = self._by_namespace.setdefault(applicant.namespace, [])
        place = bisect_left(own, applicant)
        if applicant.uid not in self._applicants:
            self._applicants[applicant.uid] = applicant
            own.insert(place, applicant)
            place = max(place, self._most)
        return own[place].uid if self._most <= place < len(own) else None

    def leave(self, uid: str) -> str | None:
        """Forget an applicant, if it is known; return the UID that is served from now on."""
        applicant = self._applicants.pop(uid, None)
        if applicant is None:
            return None
        own = self._by_namespace[applicant.namespace]
        place = bisect_left(own, applicant)
        del own[place]
        if not own:
            del self._by_namespace[applicant.namespace]
        return own[self._most - 1].uid if place < self._most <= len(own) else None
