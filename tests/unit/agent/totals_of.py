"""Probes on pods, and a collector that follows them with sums for metrics."""

from __future__ import annotations

from collections.abc import Sequence

from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.stages import Module
from latencyprobe_agent.collector import Collector, Moment
from latencyprobe_agent.desired import Desired, DesiredProbe, DesiredTarget, PodSelector
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.plan import TargetKey
from latencyprobe_agent.totals import Subject, Total, Totals

ALL_MODULES = frozenset(Module)


def probe_on(
    *pods: str,
    name: str = "shop/checkout",
    per_pod: bool = True,
    modules: frozenset[Module] = ALL_MODULES,
) -> DesiredProbe:
    """A probe on the pods of these names."""
    return DesiredProbe(
        id=f"uid of {name}",
        name=name,
        modules=modules,
        socket_filter=SocketFilter(),
        interval_s=1.0,
        max_cpu_percent=0.0,
        targets=tuple(DesiredTarget(f"uid of {pod}", PodSelector(pod), pod) for pod in pods),
        namespace=name.partition("/")[0],
        per_pod=per_pod,
    )


class Followed:
    """Sums, and the collector that makes them; the test turns the clock."""

    def __init__(self, max_pods: int = 100) -> None:
        self.totals = Totals(max_pods)
        self.now = 0.0
        self._collector = Collector(self.totals)
        self._probes: tuple[DesiredProbe, ...] = ()

    def follow(self, *probes: DesiredProbe) -> None:
        """Put these probes in force."""
        self._probes = probes
        self._collector.follow(Desired(1, probes), Moment(self.now, 0))

    def read(self, measured: Measurement, pods: Sequence[str] = ("a",)) -> None:
        """Read the same measurement of each of these pods, for all probes on it."""
        owners = {
            slot: [
                TargetKey(probe.id, target.id)
                for probe in self._probes
                for target in probe.targets
                if target.pod_name == pod
            ]
            for slot, pod in enumerate(pods)
        }
        self._collector.own(owners)
        self._collector.add(dict.fromkeys(owners, measured))

    def current(self) -> dict[Subject, Total]:
        """The sums of now."""
        return dict(self.totals.current(self.now))

    def samples(self, subject: Subject, stage: str = "rx.total") -> int:
        """The number of samples in the sum of one subject."""
        return sum(self.current()[subject].stages[stage].buckets.values())
