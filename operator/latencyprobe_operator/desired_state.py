"""The desired states of the agents: all probes together, kept as an index by node.

Every change returns the nodes that it touches, so that a new pod costs the work of one pod at any
number of pods. Generations, connections and messages belong to other modules.

A node that a probe's last pod has *left* is still asked for the probe, without targets. Its agent
has the pod's last interval and window. `release` ends that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.stages import Module
from latencyprobe.domain.summary import NO_PODS, PodChoice
from latencyprobe_operator.api.spec import ProbeKey, ProbeSpec
from latencyprobe_operator.earlier_pods import EarlierPods, KnownPods
from latencyprobe_operator.model import ContainerTarget, Pod, PodTarget, targets_of, waiting_pod


@dataclass(frozen=True, slots=True)
class ProbeOnNode:
    """One probe's part of one agent's desired state.

    Large, because it is compared as a whole: the agent gets a new state when any of it changes.
    """

    key: ProbeKey
    modules: tuple[Module, ...]
    ports: tuple[int, ...]
    protocols: tuple[str, ...]
    interval_s: float
    max_cpu_percent: float
    targets: tuple[ContainerTarget, ...]
    waiting: tuple[PodTarget, ...] = ()
    """The pods without a running container."""
    whole_pods: bool = True
    """Every container of the pods is measured, those that start later included."""
    node_figures: bool = False
    """The agent is asked for figures of the node as a whole."""
    window_s: float = 0.0
    max_pods: int = 0
    metrics_per_pod: bool = False
    objectives: tuple[Objective, ...] = ()
    pods_in_full: PodChoice = field(default=NO_PODS, compare=False)
    """The choice that the agent begins with. Later ones come with acknowledgements."""
    earlier: EarlierPods = field(default_factory=EarlierPods, compare=False)
    """The pods that the agent may report on without being asked for."""

    def target_ids(self) -> Iterator[str]:
        """Yield the ids of the targets; that of a pod without a running container is its UID."""
        for target in self.targets:
            yield target.id
        for pod in self.waiting:
            yield pod.pod_uid


ChoosePods = Callable[[str], PodChoice]
"""Returns the choice of the pods that the agent of a node reports in full."""

DesiredNodeState = tuple[ProbeOnNode, ...]
"""One agent's desired state: equal states are equal values."""

NO_STATE: DesiredNodeState = ()


@dataclass(frozen=True, slots=True)
class PlacedPod:
    """A pod of a probe that has, or may soon have, something to measure."""

    pod: Pod
    targets: tuple[ContainerTarget, ...]
    """Its running containers."""
    waiting: PodTarget | None = None
    """The pod itself, while it has none."""


class DesiredStates:
    """The desired states of all nodes, from all probes and their pods."""

    def __init__(self) -> None:
        self._specs: dict[str, ProbeSpec] = {}
        self._pods: dict[str, dict[str, PlacedPod]] = {}
        self._choices: dict[str, ChoosePods] = {}
        self._node_counts: Counter[str] = Counter()
        self._left: dict[str, set[str]] = {}
        # probe's UID -> node
        self._earlier: dict[str, dict[str, EarlierPods]] = {}
        self._known: dict[str, KnownPods] = {}
        # node -> probe's UID -> pod's UID; no pods on a node that they have left
        self._by_node: dict[str, dict[str, dict[str, PlacedPod]]] = {}

    def set_probe(
        self,
        spec: ProbeSpec,
        pods: Iterable[Pod],
        choose: ChoosePods = lambda _: NO_PODS,
        left: Iterable[str] = (),
        *,
        earlier: Mapping[str, Collection[str]] = MappingProxyType({}),
        exists: Callable[[str, str, str], bool] = lambda _node, _uid, _name: False,
    ) -> set[str]:
        """Take in a probe, or its new spec, with all its pods; return the touched nodes.

        `left`: nodes that its last pods had left before it was known here. `earlier`: the names of
        pods on each node that an operator before this one has listed. `exists`: see `KnownPods`.
        """
        uid = spec.key.uid
        left = {*left, *earlier, *self.left_by(uid)}
        on_nodes = dict(self._earlier.get(uid, {}))
        touched = self.remove_probe(uid)
        self._known[uid] = KnownPods(exists, lambda name: self._is_placed(uid, name))
        self._earlier[uid] = on_nodes
        for node, names in earlier.items():
            on_nodes[node] = EarlierPods(names, self._known[uid], node)
        self._specs[uid] = spec
        self._choices[uid] = choose
        self._pods[uid] = {}
        for pod in pods:
            touched |= self.set_pod(uid, pod)
        for node in left:
            if not self._by_node.get(node, {}).get(uid):
                self._leave(uid, node)
                touched.add(node)
        return touched

    def remove_probe(self, probe_uid: str) -> set[str]:
        """Forget a probe, if it is known; return the touched nodes."""
        touched: set[str] = set()
        for pod_uid in list(self._pods.get(probe_uid, ())):
            touched |= self.remove_pod(probe_uid, pod_uid)
        for node in self.left_by(probe_uid):
            touched |= self.release(probe_uid, node)
        self._pods.pop(probe_uid, None)
        self._specs.pop(probe_uid, None)
        self._choices.pop(probe_uid, None)
        self._known.pop(probe_uid, None)
        self._earlier.pop(probe_uid, None)
        return touched

    def set_pod(self, probe_uid: str, pod: Pod) -> set[str]:
        """Take in a new or changed pod of a known probe; return the touched nodes."""
        spec, pods = self._specs[probe_uid], self._pods[probe_uid]
        placed = PlacedPod(pod, targets_of(pod, spec.containers), waiting_pod(pod, spec.containers))
        before = pods.get(pod.uid)
        if before and _asks_the_same(before, placed):
            # The agents' states have the targets of before: they stay one object.
            placed = PlacedPod(pod, before.targets, before.waiting)
            pods[pod.uid] = self._by_node[pod.node][probe_uid][pod.uid] = placed
            return set()
        touched = self.remove_pod(probe_uid, pod.uid)
        if placed.targets or placed.waiting:
            pods[pod.uid] = placed
            on_node = self._by_node.setdefault(pod.node, {}).setdefault(probe_uid, {})
            if not on_node:
                self._node_counts[probe_uid] += 1
                self._left.get(probe_uid, set()).discard(pod.node)
            on_node[pod.uid] = placed
            touched.add(pod.node)
        return touched

    def remove_pod(self, probe_uid: str, pod_uid: str) -> set[str]:
        """Forget a pod, if it is known; return the touched nodes."""
        placed = self._pods.get(probe_uid, {}).pop(pod_uid, None)
        if placed is None:
            return set()
        node = placed.pod.node
        on_node = self._by_node[node][probe_uid]
        del on_node[pod_uid]
        if not on_node:
            self._node_counts[probe_uid] -= 1
            if not self._node_counts[probe_uid]:
                del self._node_counts[probe_uid]
            self._leave(probe_uid, node)
        return {node}

    def _leave(self, probe_uid: str, node: str) -> None:
        self._left.setdefault(probe_uid, set()).add(node)
        self._by_node.setdefault(node, {}).setdefault(probe_uid, {})

    def left_by(self, probe_uid: str) -> frozenset[str]:
        """Return the nodes that the last pod of a probe has left, and that were not released."""
        return frozenset(self._left.get(probe_uid, ()))

    def left_count(self, probe_uid: str) -> int:
        """Count these nodes, at no cost by their number."""
        return len(self._left.get(probe_uid, ()))

    def release(self, probe_uid: str, node: str) -> set[str]:
        """Ask a node that the pods of a probe have left for nothing more; return it if it was."""
        left = self._left.get(probe_uid, set())
        if node not in left:
            return set()
        left.remove(node)
        if not left:
            del self._left[probe_uid]
        del self._by_node[node][probe_uid]
        self._earlier[probe_uid].pop(node, None)
        if not self._by_node[node]:
            del self._by_node[node]
        return {node}

    def of_node(self, node: str) -> DesiredNodeState:
        """Return the desired state of this node's agent."""
        return tuple(
            self._probe_on_node(
                self._specs[probe_uid],
                pods,
                self._choices[probe_uid](node),
                self._earlier_on(probe_uid, node),
            )
            for probe_uid, pods in sorted(self._by_node.get(node, {}).items())
        )

    def _earlier_on(self, probe_uid: str, node: str) -> EarlierPods:
        on_nodes = self._earlier[probe_uid]
        if node not in on_nodes:
            on_nodes[node] = EarlierPods((), self._known[probe_uid], node)
        return on_nodes[node]

    def _is_placed(self, probe_uid: str, name: str) -> bool:
        return any(each.pod.name == name for each in self.pods_of(probe_uid).values())

    def pods_of(self, probe_uid: str) -> dict[str, PlacedPod]:
        """Return the placed pods of a probe, by UID. Do not change them."""
        return self._pods.get(probe_uid, {})

    def nodes_of(self, probe_uid: str) -> int:
        """Count the nodes that run pods of a probe."""
        return self._node_counts[probe_uid]

    def probes_on(self, node: str) -> list[str]:
        """Return the UIDs of the probes with anything to measure on this node."""
        return [probe_uid for probe_uid, pods in self._by_node.get(node, {}).items() if pods]

    @staticmethod
    def _probe_on_node(
        spec: ProbeSpec, pods: dict[str, PlacedPod], choice: PodChoice, earlier: EarlierPods
    ) -> ProbeOnNode:
        return ProbeOnNode(
            key=spec.key,
            modules=spec.measured_modules,
            ports=spec.ports,
            protocols=spec.protocols,
            interval_s=spec.interval_s,
            max_cpu_percent=spec.max_cpu_percent,
            targets=tuple(
                target for _, placed in sorted(pods.items()) for target in placed.targets
            ),
            waiting=tuple(placed.waiting for _, placed in sorted(pods.items()) if placed.waiting),
            whole_pods=not spec.containers,
            node_figures=spec.node_figures,
            window_s=spec.window_s,
            max_pods=spec.max_pods,
            metrics_per_pod=spec.metrics_per_pod,
            objectives=spec.bounds,
            pods_in_full=choice,
            earlier=earlier,
        )


def _asks_the_same(one: PlacedPod, other: PlacedPod) -> bool:
    """Decide whether an agent is asked for the same of two states of a pod."""
    return (one.pod.node, one.targets, one.waiting) == (
        other.pod.node,
        other.targets,
        other.waiting,
    )
