"""One LatencyProbe's life in the operator: its spec, its pods, its figures, and its status.

Spec and pods flow down into the desired states; reports flow up into the windows; one task turns
what is known into the status and writes it. Nothing of it waits for the API server but that task.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.process.backoff import Backoff
from latencyprobe_operator.api import status
from latencyprobe_operator.api.selector import LabelSelector
from latencyprobe_operator.api.spec import (
    ProbeSpec,
    SpecError,
    generation_of,
    probe_key,
    read_probe,
)
from latencyprobe_operator.api.status import NodeFacts, PodFacts, ProbeFacts, Problem
from latencyprobe_operator.api.status_fields import NodeState, Phase
from latencyprobe_operator.desired_state import DesiredStates, PlacedPod
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError
from latencyprobe_operator.kube.pods import PodsChange, PodSet, PodsListener
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.model import ContainerTarget
from latencyprobe_operator.observed_state import AgentView, ReportedProbe, ReportedTarget
from latencyprobe_operator.probes.nodes import node_facts, not_covered
from latencyprobe_operator.probes.objectives import ObjectivesWatch
from latencyprobe_operator.probes.staleness import Hearing, Silence, patience_s
from latencyprobe_operator.probes.windows import TOTALS, ProbeWindows, headline, of_one_pod

log = logging.getLogger(__name__)

# Between two writes, and what comes together is told together.
_SHORTEST_PAUSE_S = 1.0
_GATHER_S = 0.1
# The agents' reports of one interval come together, more or less.
_LONGEST_SETTLE_S = 0.5
# After a restart, agents that are known to measure get an interval and this to report again.
_GRACE_S = 5.0
# How old lastReportTime may get while nothing else changes.
_STALE_S = 60.0


class Surroundings(Protocol):
    """What a probe needs of the rest of the operator."""

    desired: DesiredStates
    metrics: OperatorMetrics

    def watch(self, namespace: str, selector: LabelSelector, listener: PodsListener) -> PodSet:
        """Subscribe to pods."""

    def unwatch(self, pods: PodSet, listener: PodsListener) -> None:
        """Unsubscribe from pods."""

    def touch(self, nodes: set[str]) -> None:
        """The desired states of these nodes have changed."""

    def agent(self, node: str) -> AgentView:
        """What is known of this node's agent."""

    async def patch_status(
        self, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Merge into the object of a LatencyProbe through its status subresource."""


class Probe:
    """One LatencyProbe. `run` is its task; `update` and `take_report` feed it."""

    def __init__(
        self,
        body: Mapping[str, Any],
        surroundings: Surroundings,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.key = probe_key(body)
        self.phase = str(Phase.PENDING)
        self.stopped = asyncio.Event()
        self._around = surroundings
        self._wall_clock = wall_clock
        self._generation = -1
        self._spec: ProbeSpec | None = None
        self._problem: Problem | None = None
        self._rest: Phase | None = None
        self._pods: PodSet | None = None
        self._joined = False
        self._windows = ProbeWindows(1, 1)
        self._objectives = ObjectivesWatch()
        self._previous: status.Document = dict(body.get("status") or {})
        self._start_time: str | None = self._previous.get("startTime")
        self._last_report_time: str | None = self._previous.get("lastReportTime")
        self._reported = False
        self._poked = asyncio.Event()
        self._backoff = Backoff(0.5, 10)
        self._last_write = self._last_figures = -1e9
        self._first_report: float | None = None
        self._reporters: set[str] = set()
        self._hearing = Hearing()
        self._nodes = 0
        self._unknown_stages: set[str] = set()
        self.update(body)
        self._grace_until = self._find_grace()

    # ------------------------------------------------------------------ what comes in

    def update(self, body: Mapping[str, Any]) -> None:
        """Take in the object as it is now. Only a new generation, hence a new spec, counts."""
        generation = generation_of(body)
        if generation == self._generation:
            return
        self._generation = generation
        before = self._spec
        try:
            self._spec, self._problem = read_probe(body), None
        except SpecError as error:
            self._spec, self._problem = None, Problem(error.reason, str(error))
            log.warning("%s: %s", self.key, error)
        self._adopt(before)
        self._poked.set()

    def take_report(self, node: str, report: ReportedProbe) -> None:
        """Take in what an agent measured."""
        if not self._pods:
            return
        now = asyncio.get_running_loop().time()
        known = self._around.desired.pods_of(self.key.uid)
        pods: dict[str, Measurement] = {}
        for target in report.targets:
            pod_uid = target.id.partition("/")[0]
            if pod_uid in known:
                measured = self._measurement_in(node, target)
                pods[pod_uid] = of_one_pod(pods.get(pod_uid, NOTHING), measured)
        for pod_uid, measurement in pods.items():
            self._windows.add(pod_uid, measurement, at=now)
        self._take_node(node, report, now)
        self._reported = True
        wall = self._wall_clock()
        self._last_report_time = status.timestamp(wall)
        self._hearing.heard(node, at=now, wall=wall)
        self._reporters.add(node)
        if self._first_report is None:
            self._first_report = now
            self._poked.set()
        elif len(self._reporters) == self._nodes:
            self._poked.set()

    def poke(self) -> None:
        """Something that the status tells of may have changed."""
        self._poked.set()

    @property
    def pods_known(self) -> bool:
        """Whether the desired states hold this probe's pods, if it has any."""
        return self._pods is None or self._joined or self._pods.refusal is not None

    def leave(self) -> None:
        """Take the probe out of the desired states: its agents are to detach."""
        self._unsubscribe()
        self._around.touch(self._around.desired.remove_probe(self.key.uid))
        self.stopped.set()

    def pause(self) -> None:
        """Stop following the pods, and leave the agents as they are: the operator ends."""
        self._unsubscribe()
        self.stopped.set()

    def _measurement_in(self, node: str, target: ReportedTarget) -> Measurement:
        """Return the measurement of a target; log the parts that were left out of it."""
        if target.corruption:
            self._around.metrics.corrupt_reports.inc()
            log.warning(
                "%s: corrupt report from node %s on %s left out: %s",
                self.key,
                node,
                target.id,
                target.corruption,
            )
        for stage in target.unknown_stages:
            if stage not in self._unknown_stages:
                self._unknown_stages.add(stage)
                log.warning(
                    "%s: stage %r from node %s is unknown to this operator and left out",
                    self.key,
                    stage,
                    node,
                )
        return target.measurement

    def _take_node(self, node: str, report: ReportedProbe, now: float) -> None:
        if report.node_corruption:
            self._around.metrics.corrupt_reports.inc()
            log.warning(
                "%s: corrupt report of node %s on itself left out: %s",
                self.key,
                node,
                report.node_corruption,
            )
        self._windows.add_node(node, report.node, at=now)

    # -------------------------------------------------------------- spec, pods, desired

    def _adopt(self, before: ProbeSpec | None) -> None:
        """Follow the new spec: what is measured, and what is kept of what was."""
        spec = self._spec
        if spec:
            self._windows.resize(spec.interval_s, spec.window_s)
            if before and _way(before) != _way(spec):
                self._windows.clear()
                self._reported = False
        self._decide()

    def _decide(self) -> None:
        """Measure, or be at rest: from the spec and the time."""
        spec = self._spec
        rest = self._resting_phase()
        if rest and not self._rest and self._pods and self._reported:
            # The last figures are kept as they were a moment ago.
            self._previous = {**self._previous, **self._figures()}
        self._rest = rest
        if spec is None or rest:
            self._unsubscribe()
            self._around.touch(self._around.desired.remove_probe(self.key.uid))
            self._windows.clear()
            self._reported = False
            self._first_report = None
            return
        if self._pods and (self._pods.namespace, self._pods.selector) == (
            self.key.namespace,
            spec.selector,
        ):
            self._join()
            return
        self._unsubscribe()
        self._pods = self._around.watch(self.key.namespace, spec.selector, self._on_pods)
        self._on_pods(PodsChange())

    def _resting_phase(self) -> Phase | None:
        if self._spec and self._spec.suspend:
            return Phase.SUSPENDED
        remaining = self._remaining_s()
        return Phase.COMPLETED if remaining is not None and remaining <= 0 else None

    def _remaining_s(self) -> float | None:
        """Until spec.duration is over; None where it has no end, or has not begun."""
        if not self._spec or self._spec.duration_s is None or not self._start_time:
            return None
        end = status.seconds_of(self._start_time) + self._spec.duration_s
        return end - self._wall_clock()

    def _unsubscribe(self) -> None:
        if self._pods:
            self._around.unwatch(self._pods, self._on_pods)
        self._pods, self._joined = None, False

    def _on_pods(self, change: PodsChange) -> None:
        if not self._pods or not self._spec:
            return
        if self._pods.refusal:
            self._joined = False
            self._around.touch(self._around.desired.remove_probe(self.key.uid))
        elif self._pods.listed and not self._joined:
            self._join()
        elif self._joined:
            self._follow(change)
        self._poked.set()

    def _join(self) -> None:
        """Put the probe with all its pods into the desired states, in place of what was there."""
        if not self._pods or not self._spec or not self._pods.listed:
            return
        desired = self._around.desired
        before = set(desired.pods_of(self.key.uid))
        self._joined = True
        self._around.touch(desired.set_probe(self._spec, self._pods.pods.values()))
        for pod_uid in before.difference(desired.pods_of(self.key.uid)):
            self._windows.forget(pod_uid)

    def _follow(self, change: PodsChange) -> None:
        desired = self._around.desired
        touched: set[str] = set()
        for pod in change.changed:
            touched |= desired.set_pod(self.key.uid, pod)
        for pod_uid in change.removed:
            touched |= desired.remove_pod(self.key.uid, pod_uid)
            self._windows.forget(pod_uid)
        self._around.touch(touched)

    # ------------------------------------------------------------------------- status

    async def run(self) -> None:
        """Keep the status up to date until cancelled."""
        while True:
            await self._wait()
            self._poked.clear()
            if self._rest is not self._resting_phase():
                self._decide()
            await self._tell()

    async def _wait(self) -> None:
        """Until figures are due, or something happened; no two writes come close together."""
        loop = asyncio.get_running_loop()
        deadlines = [self._figures_due()]
        if loop.time() < self._grace_until and not self._reported:
            deadlines = [self._grace_until]
        if (remaining := self._remaining_s()) is not None and not self._rest:
            deadlines.append(loop.time() + remaining)
        try:
            async with asyncio.timeout_at(min(deadlines)):
                await self._poked.wait()
        except TimeoutError:
            pass
        pause = self._last_write + _SHORTEST_PAUSE_S - loop.time()
        await asyncio.sleep(max(pause, _GATHER_S))

    def _figures_due(self) -> float:
        """When the next figures are to be written.

        When all nodes have reported since the last write, or shortly after the first one did, but
        an interval after that write.
        Where no report comes, figures still leave the window: look after an interval and a half,
        so as not to write just before one comes.
        """
        interval = self._spec.interval_s if self._spec else 60.0
        if self._rest or self._problem:
            return self._last_figures + _STALE_S * 10
        if self._first_report is None:
            return self._last_figures + 1.5 * interval
        everybody = len(self._reporters) >= self._nodes
        settle = 0.0 if everybody else min(_LONGEST_SETTLE_S, interval / 10)
        return max(self._first_report + settle, self._last_figures + interval * 0.97)

    def _find_grace(self) -> float:
        """Until when a status that an operator before us wrote stands, if nobody reports."""
        generation = self._previous.get("observedGeneration")
        if not self._spec or self._rest or generation != self._generation:
            return 0.0
        if self._previous.get("phase") not in (Phase.RUNNING, Phase.DEGRADED):
            return 0.0
        return asyncio.get_running_loop().time() + self._spec.interval_s + _GRACE_S

    async def _tell(self) -> None:
        """Write the status, if there is anything to tell."""
        now = asyncio.get_running_loop().time()
        if now < self._grace_until and not self._reported and not self._rest:
            return
        due = now >= self._figures_due()
        facts = self._facts()
        outline = self._build(facts)
        turned = status.turning_points(outline) != status.turning_points(self._previous)
        if not turned and not due:
            return
        document = self._build(self._with_figures(facts, now))
        if due:
            self._last_figures, self._first_report = now, None
            self._reporters.clear()
        if turned or status.differs(self._previous, document) or self._is_stale(document):
            await self._write(document)

    def _is_stale(self, document: status.Document) -> bool:
        told, known = self._previous.get("lastReportTime"), document.get("lastReportTime")
        if not known or known == told:
            return False
        return not told or status.seconds_of(known) - status.seconds_of(told) >= _STALE_S

    async def _write(self, document: status.Document) -> None:
        patch = status.merge_patch(self._previous, document)
        # The UID refuses the write to an object of the same name that came after ours.
        body = {"metadata": {"uid": self.key.uid}, "status": patch}
        try:
            answer = await self._around.patch_status(self.key.namespace, self.key.name, body)
        except ApiError as error:
            await self._write_failed(error, transient=error.status == 429 or error.status >= 500)
        except UNAVAILABLE as error:
            await self._write_failed(error, transient=True)
        else:
            self._around.metrics.status_writes.inc()
            self._backoff.reset()
            self._previous = dict(answer.get("status") or {})
            self._last_write = asyncio.get_running_loop().time()
            self.phase = str(self._previous.get("phase"))

    async def _write_failed(self, error: Exception, *, transient: bool) -> None:
        """Try again later, with what will be known by then."""
        if isinstance(error, ApiError) and error.status == 404:
            return  # deleted; the watch says so soon
        self._around.metrics.status_write_failures.inc()
        delay = self._backoff.next()
        log.log(
            logging.WARNING if transient else logging.ERROR,
            "%s: the status could not be written: %s; next attempt in %.1f s",
            self.key,
            str(error) or type(error).__name__,
            delay,
        )
        self._last_figures = -1e9
        self._first_report = self._first_report or asyncio.get_running_loop().time()
        await asyncio.sleep(delay)
        self._poked.set()

    # -------------------------------------------------------------------------- facts

    def _facts(self) -> ProbeFacts:
        """What is known, without the figures."""
        facts = ProbeFacts(
            spec=self._spec,
            generation=self._generation,
            phase=self._rest,
            problem=self._problem or self._pods_problem(),
            start_time=self._start_time,
            last_report_time=self._last_report_time,
            previous=self._previous,
        )
        if not self._pods or not self._spec:
            return facts
        by_node: dict[str, list[ContainerTarget]] = {}
        for placed in self._around.desired.pods_of(self.key.uid).values():
            by_node.setdefault(placed.pod.node, []).extend(placed.targets)
        nodes = [
            self._node_facts(node, targets, self._spec) for node, targets in sorted(by_node.items())
        ]
        self._nodes = len(nodes)
        self._windows.keep_nodes(by_node)
        self._hearing.keep(by_node)
        if not self._start_time and any(node.attached for node in nodes):
            self._start_time = status.timestamp(self._wall_clock())
        return dataclasses.replace(
            facts,
            start_time=self._start_time,
            matched_pods=sum(not pod.ended for pod in self._pods.pods.values()),
            containers=sum(map(len, by_node.values())),
            nodes=nodes,
        )

    def _node_facts(self, node: str, targets: list[ContainerTarget], spec: ProbeSpec) -> NodeFacts:
        agent = self._around.agent(node)
        return node_facts(
            node,
            agent,
            self.key.uid,
            targets,
            spec.modules,
            silence=self._silence_of(node, agent),
            patience_s=patience_s(spec.interval_s),
        )

    def _silence_of(self, node: str, agent: AgentView) -> Silence:
        now = asyncio.get_running_loop().time()
        return self._hearing.silence(node, is_due=agent.state is NodeState.READY, at=now)

    def _pods_problem(self) -> Problem | None:
        if not self._pods:
            return None
        if refusal := self._pods.refusal:
            reason = "InvalidSelector" if refusal.invalid else "PodsUnavailable"
            return Problem(reason, refusal.message)
        if not self._pods.listed:
            return Problem("ListingPods", "the API server has not listed the pods yet")
        return None

    def _with_figures(self, facts: ProbeFacts, now: float) -> ProbeFacts:
        """The facts with the windows' figures, of as many pods as the status lists."""
        if not self._spec or not self._pods:
            return facts
        placed = self._around.desired.pods_of(self.key.uid)
        ordered = self._windows.worst_first(placed, at=now)
        listed = [self._pod_facts(placed[uid], now) for uid in ordered[: self._spec.max_pods]]
        merged = self._windows.merged(at=now)
        return dataclasses.replace(
            facts,
            pods=sorted(listed, key=_p99_ns, reverse=True),
            omitted_pods=len(ordered) - len(listed),
            merged=merged,
            node_context=self._windows.of_nodes(most=status.MAX_CONTEXTS, at=now),
            objectives=self._objectives.judge(self._spec.objectives, merged, at=now),
        )

    def _pod_facts(self, placed: PlacedPod, now: float) -> PodFacts:
        return PodFacts(
            name=placed.pod.name,
            node=placed.pod.node,
            containers=tuple(target.container.name for target in placed.targets),
            measurement=self._windows.of_pod(placed.pod.uid, at=now),
            uncounted=not_covered(self._around.agent(placed.pod.node)),
        )

    def _figures(self) -> status.Document:
        """The parts of a status that stay when the measurement ends."""
        now = asyncio.get_running_loop().time()
        facts = dataclasses.replace(self._with_figures(self._facts(), now), phase=None)
        document = self._build(facts)
        kept = ("targets", "summary", "pods", "omittedPods", "nodeContext", "lastReportTime")
        return {key: document[key] for key in kept if key in document}

    def _build(self, facts: ProbeFacts) -> status.Document:
        return status.build(facts, now=status.timestamp(self._wall_clock()))


def _p99_ns(pod: PodFacts) -> int:
    received, sent = (pod.measurement.stage(name).histogram for name in TOTALS)
    return headline(received, sent).percentile(99)


def _way(spec: ProbeSpec) -> tuple[object, ...]:
    """What must be equal for two specs' figures to be added up."""
    return spec.selector, spec.containers, spec.modules, spec.ports, spec.protocols
