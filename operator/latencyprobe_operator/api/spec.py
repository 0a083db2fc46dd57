"""The spec of a LatencyProbe, read from the API object.

The CRD's schema has checked most of it already. The rest, and the errors that an older or newer
schema admits, raise a SpecError. Its reason and message go into the condition Ready.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.durations import parse_ns, parse_s
from latencyprobe.domain.stages import DEFAULT_MODULES, Module, check_filter, parse_modules, stage
from latencyprobe_operator.api.conditions import ReadyReason
from latencyprobe_operator.kube.selector import InvalidSelectorError, LabelSelector, read_selector


class SpecError(ValueError):
    """A spec that cannot be carried out. `reason` is the condition's, the message is for people."""

    def __init__(self, reason: ReadyReason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class NamedObjective:
    """An objective of all pods together, which must not be exceeded for longer than `for_s`."""

    name: str
    bound: Objective
    for_s: float


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """The identity of a LatencyProbe: the UID differs from that of an earlier one of its name."""

    uid: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """A LatencyProbe's spec, with its defaults filled in. Large: each field is one of the API's.

    Except `node_figures`: the administrator shows the probe's namespace figures of whole nodes.
    """

    key: ProbeKey
    generation: int
    selector: LabelSelector
    containers: frozenset[str]
    """Empty: all of them."""
    modules: tuple[Module, ...]
    ports: tuple[int, ...]
    protocols: tuple[str, ...]
    interval_s: float
    window_s: float
    duration_s: float | None
    suspend: bool
    max_cpu_percent: float
    objectives: tuple[NamedObjective, ...]
    max_pods: int
    node_figures: bool = False
    metrics_per_pod: bool = False

    @property
    def measured_modules(self) -> tuple[Module, ...]:
        """The modules that agents are asked for: `irq` has figures of whole nodes alone."""
        return _measured(self.modules, self.node_figures)

    @property
    def bounds(self) -> tuple[Objective, ...]:
        """The objectives as bounds of attention, which verdicts have in place of their own."""
        return tuple(each.bound for each in self.objectives)


# One tuple for all nodes of a probe.
@functools.lru_cache(maxsize=64)
def _measured(modules: tuple[Module, ...], node_figures: bool) -> tuple[Module, ...]:
    return tuple(each for each in modules if node_figures or each is not Module.IRQ)


def probe_key(body: Mapping[str, Any]) -> ProbeKey:
    """Return the identity of this LatencyProbe."""
    metadata = body["metadata"]
    return ProbeKey(metadata["uid"], metadata["namespace"], metadata["name"])


def generation_of(body: Mapping[str, Any]) -> int:
    """Return the object's metadata.generation, which grows with each change of its spec."""
    return int(body["metadata"].get("generation", 0))


def read_probe(body: Mapping[str, Any]) -> ProbeSpec:
    """Read the spec of a LatencyProbe; raises SpecError."""
    try:
        return _read_probe(body)
    except InvalidSelectorError as error:
        raise SpecError(ReadyReason.INVALID_SELECTOR, str(error)) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpecError(ReadyReason.INVALID_SPEC, f"the spec cannot be read: {error}") from None


def _read_probe(body: Mapping[str, Any]) -> ProbeSpec:
    spec = body["spec"]
    traffic = spec.get("filter") or {}
    duration = spec.get("duration")
    interval_s = parse_s(spec.get("interval", "10s"))
    modules = parse_modules(spec.get("modules", DEFAULT_MODULES))
    protocols = tuple(sorted(set(traffic.get("protocols") or ())))
    check_filter(modules, protocols)
    return ProbeSpec(
        key=probe_key(body),
        generation=generation_of(body),
        selector=read_selector(spec["selector"]),
        containers=frozenset(spec.get("containers") or ()),
        modules=modules,
        ports=tuple(sorted(set(traffic.get("ports") or ()))),
        protocols=protocols,
        interval_s=interval_s,
        window_s=max(parse_s(spec.get("window", "60s")), interval_s),
        duration_s=None if duration is None else parse_s(duration),
        suspend=bool(spec.get("suspend", False)),
        max_cpu_percent=float((spec.get("overhead") or {}).get("maxCPUPercent", 1)),
        objectives=tuple(
            _read_objective(fields, modules, protocols) for fields in spec.get("objectives") or ()
        ),
        max_pods=int((spec.get("report") or {}).get("maxPods", 20)),
        metrics_per_pod=bool((spec.get("metrics") or {}).get("perPod", False)),
    )


def _read_objective(
    fields: Mapping[str, Any], modules: Sequence[Module], protocols: Sequence[str]
) -> NamedObjective:
    measured = stage(fields["stage"])
    about = f"objective {fields['name']}: {measured.name}"
    if not measured.is_measured_by(modules):
        raise ValueError(
            f"{about} is measured by module {measured.needs}, which spec.modules lacks"
        )
    if measured.module is Module.TCP and set(protocols) == {"UDP"}:
        raise ValueError(f"{about} applies to TCP only, but spec.filter.protocols allows only UDP")
    percentile = float(fields["percentile"].removeprefix("p"))
    return NamedObjective(
        name=fields["name"],
        bound=Objective(measured.name, percentile, parse_ns(fields["max"])),
        for_s=parse_s(fields.get("for", "1m")),
    )
