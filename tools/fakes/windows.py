"""The windows of an agent without a kernel: they keep all that was measured, without an end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    across_pods,
    largest_counters,
    of_one_pod,
    total,
)
from latencyprobe.domain.report import report_on
from latencyprobe.domain.score import score_of
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.domain.summary import (
    PodChoice,
    PodReport,
    ProbeSummary,
    verdict_counts,
    waiting_by_cause,
    worst_first,
)
from latencyprobe.protocol.measurements import (
    MAX_OPEN_COUNTERS,
    CorruptMessageError,
    measurement_from_proto,
    node_from_proto,
    node_to_proto,
)
from latencyprobe.protocol.peers import peers_from_proto
from latencyprobe.protocol.pending import pending_from_proto
from latencyprobe.protocol.summaries import choice_from_proto, pod_to_proto, summary_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

_INTERVAL_S = 10
_EVERY_POD = PodChoice(100)


@dataclass
class _ProbeWindow:
    begun: int = 0
    choice: PodChoice | None = None
    pods: dict[str, Measurement] = field(default_factory=dict)
    reports: list[PodReport] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    end: int = 0


class AgentWindows:
    """The windows of an agent's probes. The domain's functions make the reports."""

    def __init__(self, start: int = 1_700_000_000) -> None:
        """Keep nothing yet. `start`: the begin of the first interval, since the epoch."""
        self._start = start
        self._probes: dict[str, _ProbeWindow] = {}
        self._node = NOTHING_OF_THE_NODE

    def summarised(
        self,
        deltas: pb.ProbeReport,
        *,
        probe: pb.Probe | None = None,
        ended: Iterable[str] = (),
    ) -> pb.ProbeReport:
        """Take in the figures of targets in one interval; return the report on the window.

        `probe`: as the client asked for it, if it did. `ended`: UIDs of pods that have ended.
        """
        window = self._probes.setdefault(deltas.id, _ProbeWindow())
        self._take(window, deltas)
        names, containers = _names(deltas, probe)
        node = self._take_node(deltas.node)
        gone = set(ended)
        window.reports = []
        for uid, measurement in window.pods.items():
            report = report_on(measurement, DEFAULT_MODULES, self._node)
            # Counters that did not count are in it too.
            counters = largest_counters(report.counters, MAX_OPEN_COUNTERS)
            report = replace(report, counters=counters)
            name, inside = names.get(uid, uid.removeprefix("uid-")), tuple(containers.get(uid, ()))
            window.reports.append(
                PodReport(uid, name, inside, score_of(report), report, ended=uid in gone)
            )
        summary = ProbeSummary(
            merged=_bounded(total(map(across_pods, window.pods.values()))),
            verdicts=verdict_counts(window.reports),
            waiting_ns=waiting_by_cause(window.reports),
            scores=worst_first((each.place for each in window.reports), most=100),
        )
        chosen = {each.pod_uid for each in self._choice(window, probe).of(summary.scores)}
        window.sent = chosen
        message = pb.ProbeReport(id=deltas.id, node=node, summary=summary_to_proto(summary))
        message.summary.statuses.extend(target.status for target in deltas.targets)
        message.pods.extend(pod_to_proto(p) for p in window.reports if p.pod_uid in chosen)
        begin = window.end or self._start
        window.end = begin + _INTERVAL_S
        message.begin.seconds, message.end.seconds = begin, window.end
        return message

    def answer(self, wanted: pb.WantedPods) -> pb.ProbeReport | None:
        """Take in a choice; return the pods that the newest summary lacked, if there are any."""
        window = self._probes.setdefault(wanted.probe_id, _ProbeWindow())
        window.choice = choice_from_proto(wanted.choice)
        scores = worst_first((each.place for each in window.reports), most=100)
        more = {each.pod_uid for each in window.choice.of(scores)} - window.sent
        window.sent |= more
        if not more:
            return None
        message = pb.ProbeReport(id=wanted.probe_id)
        message.begin.seconds, message.end.seconds = window.end - _INTERVAL_S, window.end
        message.pods.extend(pod_to_proto(p) for p in window.reports if p.pod_uid in more)
        return message

    def forget_figures(self, probe_id: str) -> None:
        """Drop what was measured so far: the window has passed."""
        if probe_id in self._probes:
            self._probes[probe_id].pods.clear()

    @staticmethod
    def _choice(window: _ProbeWindow, probe: pb.Probe | None) -> PodChoice:
        if window.choice:
            return window.choice
        asked = probe is not None and probe.HasField("pods_in_full")
        return choice_from_proto(probe.pods_in_full) if probe and asked else _EVERY_POD

    @staticmethod
    def _take(window: _ProbeWindow, deltas: pb.ProbeReport) -> None:
        interval: dict[str, Measurement] = {}
        for target in deltas.targets:
            uid = target.status.id.partition("/")[0]
            measured = replace(
                measurement_from_proto(target.stages, target.counters, target.netns_counters),
                pending=pending_from_proto(target.pending, "pending"),
                peers=peers_from_proto(target.peers, "peers"),
            )
            interval[uid] = of_one_pod(interval.get(uid, NOTHING), measured)
        for uid, measured in interval.items():
            window.pods[uid] = _bounded(window.pods.get(uid, NOTHING) + measured)

    def _take_node(self, message: pb.NodeContext) -> pb.NodeContext:
        try:
            self._node += node_from_proto(message)
        except CorruptMessageError:
            return message  # a test wants it to arrive
        return node_to_proto(self._node)


def _bounded(measurement: Measurement) -> Measurement:
    """Return the measurement with as many counters as a message may have."""
    return replace(
        measurement,
        counters=largest_counters(measurement.counters, MAX_OPEN_COUNTERS),
        netns_counters=largest_counters(measurement.netns_counters, MAX_OPEN_COUNTERS),
    )


def _names(
    deltas: pb.ProbeReport, probe: pb.Probe | None
) -> tuple[Mapping[str, str], Mapping[str, list[str]]]:
    """Return the names of pods and of their containers, by the pods' UIDs."""
    names: dict[str, str] = {}
    containers: dict[str, list[str]] = {}
    reported = {target.status.id for target in deltas.targets}
    for target in probe.targets if probe else ():
        if target.id in reported:
            uid = target.container.pod_uid
            names[uid] = target.container.pod_name
            containers.setdefault(uid, []).append(target.container.container_name)
    return names, containers
