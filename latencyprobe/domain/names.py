"""Names in a report: of peers by their addresses, and of cgroups by their ids.

Measurements and verdicts carry identities. The operator adds the names of pods to a report, and the
local command the paths of cgroups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from latencyprobe.domain.cgroups import cgroup_text
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.report import TargetReport
from latencyprobe.domain.verdict import with_culprit


@dataclass(frozen=True, slots=True)
class Names:
    """The known names of the identities in one report."""

    peers: Mapping[Endpoint, str] = field(default_factory=dict)
    cgroups: Mapping[int, str] = field(default_factory=dict)

    def of_culprit(self, culprit: str) -> str | None:
        """Return the text for the culprit of a verdict; None if its name is not known."""
        for cgroup_id, name in self.cgroups.items():
            if culprit == cgroup_text(cgroup_id):
                return name
        for address, name in self.peers.items():
            if culprit == str(address):
                return f"{name} ({address})"
        return None


def named(report: TargetReport, names: Names) -> TargetReport:
    """Return the report with these names: of its peers, its cgroups, and its verdict's culprit."""
    verdict = report.verdict
    culprit = names.of_culprit(verdict.culprit) if verdict.culprit else None
    return replace(
        report,
        verdict=verdict if culprit is None else with_culprit(verdict, culprit),
        peers=tuple(replace(peer, name=names.peers.get(peer.address, "")) for peer in report.peers),
        cgroups=tuple(
            replace(cgroup, name=names.cgroups.get(cgroup.id, "")) for cgroup in report.cgroups
        ),
    )
