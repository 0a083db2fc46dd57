"""The state that a client wants of this node, as values.

`serving.requests` makes these values, and refuses an inconsistent state. Invalid or surplus probes
and targets are refused one by one, each with a message.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.fairness import TargetName, WindowOfPod, surplus_targets
from latencyprobe.domain.stages import Module
from latencyprobe.domain.summary import PodChoice
from latencyprobe_agent.kernel.contract import SocketFilter

EVERY_PROBE = ""
"""In place of a probe's id. No probe has it."""


class InvalidStateError(ValueError):
    """An invalid request, with the field and its problem."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}")


@dataclass(frozen=True, slots=True)
class ContainerSelector:
    """A pod's container. Both parts are plain hexadecimal: safe as names of directories."""

    pod_uid: str
    container_id: str


@dataclass(frozen=True, slots=True)
class PodSelector:
    """All containers of a pod, those that do not exist yet included."""

    pod_uid: str


@dataclass(frozen=True, slots=True)
class CgroupSelector:
    """A cgroup's directory, with all cgroups below it."""

    path: str


@dataclass(frozen=True, slots=True)
class PidSelector:
    """A process, with all its descendants."""

    pid: int


@dataclass(frozen=True, slots=True)
class NetnsSelector:
    """Every socket of a network namespace."""

    path: str


Selector = ContainerSelector | PodSelector | CgroupSelector | PidSelector | NetnsSelector


@dataclass(frozen=True, slots=True)
class DesiredTarget:
    """One thing that a probe measures; `id` is the client's. The names are for reports."""

    id: str
    selector: Selector
    pod_name: str = ""
    container_name: str = ""
    containers: tuple[str, ...] = ()
    """The names of a pod's containers."""


def pod_uid(target: DesiredTarget) -> str:
    """Return the UID of the target's pod; other targets stand for themselves."""
    match target.selector:
        case ContainerSelector(pod_uid=uid) | PodSelector(pod_uid=uid):
            return uid
        case _:
            return target.id


@dataclass(frozen=True, slots=True)
class DesiredWindow:
    """The window that the agent keeps of a probe's pods.

    `max_pods`: the number of pods with a score. `pods_in_full`: until a client chooses others.
    """

    length_s: float
    max_pods: int
    pods_in_full: PodChoice


@dataclass(frozen=True, slots=True)
class DesiredProbe:
    """One set of targets that is measured and reported alike.

    `node_figures`: figures of the node as a whole are reported too. `window`: None if the client
    keeps the windows itself. `parts`: targets that are measured as a part of another one, with the
    id of that one. `per_pod`: the agent's metrics have series of each pod. `objectives`: bounds of
    attention for the verdicts. Large, because each field is one of the protocol's.
    """

    id: str
    name: str
    modules: frozenset[Module]
    socket_filter: SocketFilter
    interval_s: float
    max_cpu_percent: float
    targets: tuple[DesiredTarget, ...]
    namespace: str = ""
    node_figures: bool = False
    window: DesiredWindow | None = None
    parts: Mapping[str, str] = field(default_factory=dict, hash=False)
    per_pod: bool = False
    objectives: tuple[Objective, ...] = ()

    @property
    def settings(self) -> DesiredProbe:
        """The probe without its targets."""
        return replace(self, targets=(), parts={})

    @property
    def measured_modules(self) -> frozenset[Module]:
        """The modules that may be measured: `irq` has figures of the node alone."""
        return self.modules if self.node_figures else self.modules - {Module.IRQ}


Refusals = Mapping[str, Mapping[str, str]]
"""Targets that are not measured, each with a message, by the ids of their probes."""


@dataclass(frozen=True, slots=True)
class Desired:
    """The desired state of this node. `lease_s`: 0 means that it never expires.

    `term`: the client's time as the leader, which counts before the generation.
    """

    generation: int = 0
    probes: tuple[DesiredProbe, ...] = ()
    lease_s: float = 0.0
    refused: Refusals = field(default_factory=dict)
    """Invalid or surplus targets, which `probes` omits."""
    term: int = 0

    @property
    def targets(self) -> tuple[tuple[DesiredProbe, DesiredTarget], ...]:
        """Every target that is to be measured, with its probe."""
        return tuple((probe, target) for probe in self.probes for target in probe.targets)

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """The selectors of all targets, in the client's order."""
        return tuple(target.selector for _, target in self.targets)

    @property
    def names(self) -> frozenset[TargetName]:
        """The ids of all targets, each with that of its probe."""
        return frozenset((probe.id, target.id) for probe, target in self.targets)

    def probe(self, probe_id: str) -> DesiredProbe | None:
        """Return the probe of this id, or None if it does not exist."""
        return next((probe for probe in self.probes if probe.id == probe_id), None)


NOTHING_DESIRED = Desired()


def admit(desired: Desired, held: Container[TargetName] = ()) -> Desired:
    """Refuse the targets that exceed the limits on probes, targets and windows.

    `held`: targets that were admitted before. Their namespaces keep them within their shares.
    """
    names = [(probe.namespace, (probe.id, target.id)) for probe, target in desired.targets]
    windows = {
        (probe.id, target.id): WindowOfPod(probe.id, pod_uid(target), probe.interval_s)
        for probe, target in desired.targets
        if probe.window is not None
    }
    surplus = surplus_targets(names, held, windows)
    if not surplus:
        return desired
    refused = {probe_id: dict(messages) for probe_id, messages in desired.refused.items()}
    for (probe_id, target_id), text in surplus.items():
        refused.setdefault(probe_id, {})[target_id] = text
    for probe in desired.probes:
        for part, whole in probe.parts.items():
            if (probe.id, whole) in surplus:
                refused.setdefault(probe.id, {})[part] = surplus[probe.id, whole]
    probes = (_without(probe, surplus) for probe in desired.probes)
    return replace(
        desired, probes=tuple(probe for probe in probes if probe is not None), refused=refused
    )


def _without(probe: DesiredProbe, surplus: Container[TargetName]) -> DesiredProbe | None:
    """Return the probe without these targets, or None if it loses all of them."""
    targets = tuple(target for target in probe.targets if (probe.id, target.id) not in surplus)
    parts = {part: whole for part, whole in probe.parts.items() if (probe.id, whole) not in surplus}
    if not targets and probe.targets:
        return None
    return replace(probe, targets=targets, parts=parts)
