"""Pods: all containers of one, from the moment when the pod's cgroup is made.

The kubelet makes a pod's cgroup before the sandbox, and the runtime the sandbox before the first
container. On hybrid hosts the runtime makes the pod's directory in the v2 hierarchy, together with
the sandbox's. The sandbox holds the network namespace, and its process is the first one in it.
"""

from __future__ import annotations

from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import PodSelector
from latencyprobe_agent.targets.cgroups import MAX_CGROUPS_OF_POD, Hierarchy, SubtreeTracker
from latencyprobe_agent.targets.containers import ContainerFinder
from latencyprobe_agent.targets.facts import TargetFacts, failed, pending
from latencyprobe_agent.targets.processes import Processes


class PodTracker:
    """A tracker of a pod. Its cgroup may be removed and made again, as with another sandbox."""

    def __init__(
        self,
        finder: ContainerFinder | None,
        hierarchy: Hierarchy | None,
        processes: Processes,
        target: PodSelector,
    ) -> None:
        self._finder = finder
        self._hierarchy = hierarchy
        self._processes = processes
        self._target = target
        self._found: dict[str, SubtreeTracker] = {}
        self._was_found = False

    def poll(self) -> TargetFacts:
        """Return the current facts of the pod; GONE while it has no cgroup any more."""
        if self._finder is None or self._hierarchy is None:
            return failed(
                "cannot distinguish pods: no cgroup v2 hierarchy is mounted, or none below "
                "--cgroup-root"
            )
        directories = self._finder.find_pod(self._target.pod_uid)
        self._found = {
            path: self._found.get(path)
            or SubtreeTracker(
                self._hierarchy, self._processes, path, most_cgroups=MAX_CGROUPS_OF_POD
            )
            for path in directories
        }
        facts = [self._poll_one(path) for path in list(self._found)]
        present = [each for each in facts if each.state is not TargetState.GONE]
        if present:
            self._was_found = True
            return _joined(present)
        if self._was_found:
            return TargetFacts(TargetState.GONE, "the pod's cgroup has been removed")
        return pending(f"the pod has no cgroup yet ({self._finder.describe()})")

    def _poll_one(self, path: str) -> TargetFacts:
        facts = self._found[path].poll()
        if facts.state is TargetState.GONE:
            del self._found[path]  # another directory of this name is another cgroup
        return facts


def _joined(facts: list[TargetFacts]) -> TargetFacts:
    """Return the facts of all directories together: a few layouts have one for each container."""
    if len(facts) == 1:
        return facts[0]
    best = min(facts, key=lambda each: _ORDER.index(each.state))
    return TargetFacts(
        best.state,
        best.message,
        cgroup=best.cgroup,
        pids=tuple(sorted({pid for each in facts for pid in each.pids})),
        cgroup_ids=frozenset().union(*(each.cgroup_ids for each in facts)),
        cgroup_directories=frozenset().union(*(each.cgroup_directories for each in facts)),
        netns=frozenset().union(*(each.netns for each in facts)),
    )


_ORDER = (TargetState.ATTACHED, TargetState.FAILED, TargetState.PENDING)
