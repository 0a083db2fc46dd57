"""The controller: connects probes, pods, desired states and agents."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from latencyprobe.process.tasks import EssentialTasks, repeat
from latencyprobe_operator.admission import NO_LIMITS, AdminLimits, Admissions, Applicant
from latencyprobe_operator.agents.credentials import Credentials
from latencyprobe_operator.agents.disconnected_nodes import DisconnectedNodes
from latencyprobe_operator.agents.fleet import Fleet
from latencyprobe_operator.agents.source import AgentSource
from latencyprobe_operator.api.spec import probe_key
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.existing_probes import ExistingProbes
from latencyprobe_operator.expiry import Expirations
from latencyprobe_operator.garbage import GarbageCollector
from latencyprobe_operator.kube import heap
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.kube.events import Events
from latencyprobe_operator.kube.pods import PodWatches
from latencyprobe_operator.kube.statuses import Statuses
from latencyprobe_operator.leadership import Leadership
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.model import read_pod
from latencyprobe_operator.observed_state import ReportedProbe
from latencyprobe_operator.probes.probe import Probe
from latencyprobe_operator.probes.turns import NamespaceTurns
from latencyprobe_operator.spec_pace import BURST, PACE_S, PacedSpecs

log = logging.getLogger(__name__)

# Pods come and go in bursts: a node's changes within this time are one state.
_FLUSH_S = 0.05
# Their states take some 10 ms.
_NODES_OF_A_STEP = 100
# A deletion waits this long for its agents to detach; an absent one detaches when it returns.
_DETACH_S = 3.0
# After a start, no agent is sent a state before all probes and their pods are known, or this long.
# Until then agents measure for the leader before: their lease is of 300 s.
_WARM_UP_S = 200.0
# A probe that is deleted in that time is not waited for.
_RELIST_S = 10.0
_GAUGES_S = 5.0
# Messages leave gaps of whole pages. With 5,000 agents, to give them back takes some 10 ms.
_GIVE_BACK_S = 60.0
# Agents that have not attached by then are few, or absent.
_ATTACH_S = 600.0
_UNSETTLED = (str(NodeState.CONNECTING), str(NodeState.ATTACHING))


class Controller:
    """All probes and all agents. kopf's handlers call it, and agents report to it.

    Large, because a change of a pod, a node or a probe concerns several parts in a fixed order. No
    other place knows all of them.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        credentials: Credentials,
        agents: AgentSource,
        metrics: OperatorMetrics,
        namespaces: Sequence[str] = (),
        limits: AdminLimits = NO_LIMITS,
        leadership: Leadership | None = None,
        collector: GarbageCollector | None = None,
    ) -> None:
        """Serve no probe yet. `leadership`: None if there is no other operator.

        `collector`: None leaves all garbage collections to the interpreter.
        """
        self._collector = collector
        self._tasks = EssentialTasks()
        self.desired = DesiredStates()
        self.metrics = metrics
        self._cluster = cluster
        remaining_s = leadership.remaining_s if leadership else lambda: math.inf
        self._expirations = Expirations(cluster, remaining_s)
        self._agents = agents
        self._existing = ExistingProbes(cluster, namespaces)
        self._limits = limits
        self._watches = PodWatches(
            cluster,
            clusterwide=not namespaces,
            read=partial(read_pod, believe_static=limits.believe_static_pods),
            spawn=self._tasks.spawn,
        )
        self._fleet = Fleet(
            credentials=credentials,
            on_report=self._take_report,
            on_change=self._take_agent_change,
            metrics=metrics,
            term=leadership.term if leadership else 0,
            spawn=self._tasks.spawn,
        )
        self._disconnected_nodes = DisconnectedNodes()
        self._connects = False
        """Agents are connected to: their states are complete."""
        self._probes: dict[str, Probe] = {}
        self._specs = PacedSpecs(self._take, self._admit)
        self._admissions = Admissions(limits.max_probes_per_namespace)
        self._touched: set[str] = set()
        self._flush: asyncio.TimerHandle | None = None
        self._new_probe = partial(
            Probe,
            desired=self.desired,
            metrics=metrics,
            subscribe=self._watches.subscribe,
            unsubscribe=self._watches.unsubscribe,
            touch=self._touch,
            agent=self._fleet.view,
            want_in_full=self._fleet.want_in_full,
            patch_status=Statuses(cluster, remaining_s).patch,
            events=Events(cluster, remaining_s),
            building=NamespaceTurns(),
            min_interval_s=limits.min_interval_s,
            directory=self._watches,
            lease_s=leadership.timing.duration_s if leadership else None,
        )

    async def start(self) -> None:
        """Begin to look up agents, and connect to them once the probes are known."""
        self._agents.follow(self._cluster, self._fleet.set_agent, self._tasks.spawn)
        self._tasks.spawn(self._warm_up(), "warm-up")
        # An operator that ends because of these would leave agents that it serves.
        for step, every_s, name in (
            (self._show_gauges, _GAUGES_S, "gauges"),
            (heap.give_back, _GIVE_BACK_S, "free memory"),
        ):
            self._tasks.spawn(repeat(step, every_s=every_s, name=name), name)

    async def failure(self) -> NoReturn:
        """Wait for the failure of a task, and raise it: the operator must not go on without it."""
        await self._tasks.failure()

    async def close(self) -> None:
        """Disconnect; the agents go on until their lease ends.

        Without links, no node seems to have an agent: no status of that is written.
        """
        for probe in self._probes.values():
            probe.freeze()
        if self._flush:
            self._flush.cancel()
        self._specs.close()
        await self._tasks.close()
        await self._expirations.close()
        await self._agents.close()
        await self._watches.close()
        await self._fleet.close()

    # ------------------------------------------------------------------------- probes

    def add(self, body: Mapping[str, Any]) -> Probe:
        """Begin to measure for a LatencyProbe."""
        probe = self._new_probe(
            body,
            node_figures=self._limits.allow_node_figures(probe_key(body).namespace),
            waits_for_agents=not self._connects,
        )
        self._probes[probe.key.uid] = probe
        self._specs.begin(body)
        created = body["metadata"].get("creationTimestamp", "")
        applicant = Applicant(probe.key.namespace, created, probe.key.uid)
        refused = self._admissions.join(applicant)
        self._refuse(refused)
        if refused != probe.key.uid:
            self._admit(probe.key.uid)
        log.info("%s: generation %s", probe.key, body["metadata"].get("generation"))
        return probe

    def update(self, body: Mapping[str, Any]) -> None:
        """Take in a LatencyProbe that may have changed."""
        self._expirations.follow(body)
        if self.serves(body):
            self._specs.offer(body)

    def _take(self, body: Mapping[str, Any]) -> None:
        if probe := self._probes.get(probe_key(body).uid):
            probe.update(body)

    def serves(self, body: Mapping[str, Any]) -> bool:
        """Return whether this LatencyProbe was added, and is not removed."""
        return probe_key(body).uid in self._probes

    def vanish(self, body: Mapping[str, Any]) -> None:
        """Stop measuring for a LatencyProbe that is gone, perhaps without its finalizer's end."""
        uid = probe_key(body).uid
        self._expirations.forget(uid)
        self._specs.forget(uid)
        if probe := self._probes.get(uid):
            probe.leave()
        self._admit(self._admissions.leave(uid))

    async def remove(self, probe: Probe) -> None:
        """Stop measuring for a LatencyProbe, and wait until the connected agents have detached."""
        nodes = {placed.pod.node for placed in self.desired.pods_of(probe.key.uid).values()}
        probe.leave()
        self._specs.forget(probe.key.uid)
        self._probes.pop(probe.key.uid, None)
        self._admit(self._admissions.leave(probe.key.uid))
        await self._flush_all()
        if await self._fleet.settle(nodes, timeout_s=_DETACH_S):
            log.info("%s: detached", probe.key)
        else:
            log.warning("%s: some agents have not confirmed detaching yet", probe.key)

    def abandon(self, probe: Probe) -> None:
        """Stop serving a LatencyProbe without detaching: the operator ends, or starts it again."""
        probe.pause()
        # It keeps its place among the probes of its namespace.
        self._probes.pop(probe.key.uid, None)

    def _admit(self, uid: str | None) -> None:
        """Serve a probe that the administrator's limit allows, now or once its pace does."""
        if probe := self._probes.get(uid or ""):
            wait_s = self._specs.serve(probe.key.uid)
            probe.refuse(
                f"namespace {probe.key.namespace} replaces its LatencyProbes too often: of each, "
                f"{BURST} times at once and then once in {PACE_S:g} s. This one begins to measure "
                f"within {math.ceil(wait_s)} s"
                if wait_s
                else None
            )

    def _refuse(self, uid: str | None) -> None:
        """Serve a probe no more: older ones are as many as the administrator allows."""
        if probe := self._probes.get(uid or ""):
            self._specs.refuse(probe.key.uid)
            # Without the number of the probes: each that comes or goes would be news of all others.
            probe.refuse(
                f"namespace {probe.key.namespace} has more LatencyProbes than the administrator "
                f"allows: {self._limits.max_probes_per_namespace}, the oldest ones"
            )

    def _touch(self, nodes: set[str]) -> None:
        """Send the desired states of these nodes to their agents, together with other changes."""
        self._touched |= nodes
        if self._touched and not self._flush:
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush_some)

    def _flush_some(self) -> None:
        """Send the states of some touched nodes; those of the others after other callbacks."""
        self._flush = None
        for _ in range(min(len(self._touched), _NODES_OF_A_STEP)):
            node = self._touched.pop()
            self._fleet.want(node, self.desired.of_node(node))
        if self._touched:
            self._flush = asyncio.get_running_loop().call_later(0, self._flush_some)

    async def _flush_all(self) -> None:
        while self._touched:
            if self._flush:
                self._flush.cancel()
            self._flush_some()
            await asyncio.sleep(0)

    # ------------------------------------------------------------------------ agents

    def _take_report(self, node: str, report: ReportedProbe) -> None:
        if probe := self._probes.get(report.probe_uid):
            probe.take_report(node, report)
        if self._collector:
            self._collector.note_report()

    def _take_agent_change(self, node: str) -> None:
        for probe_uid in self.desired.probes_on(node):
            if probe := self._probes.get(probe_uid):
                probe.poke()

    # ------------------------------------------------------------------------- start

    async def _warm_up(self) -> None:
        """Connect to the agents once they and the pods of every existing probe are known.

        An incomplete state would detach targets that the agents have measured since before the
        start.
        """
        deadline = asyncio.get_running_loop().time() + _WARM_UP_S
        # Awaited without end: without it, every state would be incomplete.
        expected = await self._existing.uids(unserved_until=deadline)
        try:
            async with asyncio.timeout_at(deadline):
                await self._wait_known(expected)
        except TimeoutError:
            missing = sum(not self._is_known(uid) for uid in expected)
            log.warning(
                "connecting to the agents without the pods of %d probes%s: they are not known yet",
                missing,
                "" if self._agents.known else ", and without the list of agents",
            )
        await self._flush_all()
        self._open_fleet()
        await self._wait_attached()
        if self._collector:
            self._collector.note_attached()
        heap.give_back()

    async def _wait_known(self, expected: set[str]) -> None:
        """Wait for the agents and these probes; drop those that are deleted."""
        clock = asyncio.get_running_loop().time
        listed_at = clock()
        # The conditions have no event in common.
        while not (self._agents.known and all(map(self._is_known, expected))):
            await asyncio.sleep(0.05)
            if clock() - listed_at >= _RELIST_S:
                expected &= await self._existing.uids()
                listed_at = clock()

    def _open_fleet(self) -> None:
        self._fleet.open()
        self._connects = True
        for probe in self._probes.values():
            probe.expect_reports()

    async def _wait_attached(self) -> None:
        deadline = asyncio.get_running_loop().time() + _ATTACH_S
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_GAUGES_S)
            states = self._fleet.states()
            if not any(states[state] for state in _UNSETTLED):
                return

    def _is_known(self, probe_uid: str) -> bool:
        probe = self._probes.get(probe_uid)
        return probe is not None and probe.pods_known

    def _show_gauges(self) -> None:
        phases = Counter(probe.phase for probe in self._probes.values())
        now = asyncio.get_running_loop().time()
        disconnected = self._disconnected_nodes.count(self._fleet.connections(), at=now)
        self.metrics.set_gauges(phases, self._fleet.states(), disconnected)
