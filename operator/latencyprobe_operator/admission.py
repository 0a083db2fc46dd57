"""The administrator's limits on the LatencyProbes of each namespace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_MAX_PROBES_PER_NAMESPACE = 100


@dataclass(frozen=True, slots=True)
class AdminLimits:
    """The limits. `max_probes_per_namespace`: None means no limit."""

    min_interval_s: float = 0.0
    max_probes_per_namespace: int | None = None


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
