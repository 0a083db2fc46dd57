"""The operator's parts, put together: probes, pods, desired states, agents."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import grpc

from latencyprobe.process.backoff import Backoff
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.fleet import AgentEndpoint, Fleet
from latencyprobe_operator.api.selector import LabelSelector
from latencyprobe_operator.api.spec import probe_key
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError, Cluster
from latencyprobe_operator.kube.informer import Change, Informer, Scope, Source
from latencyprobe_operator.kube.pods import PodSet, PodsListener, PodWatches
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.model import AgentPod, newest_by_node, read_agent
from latencyprobe_operator.probes.nodes import AgentView
from latencyprobe_operator.probes.probe import Probe

logger = logging.getLogger(__name__)

# Pods come and go in bursts: what a node gets within this time is one state.
_FLUSH_SECONDS = 0.05
# A deletion waits that long for its agents to detach; one that is away learns it when it returns.
_DETACH_SECONDS = 3.0
# After a start, agents are told nothing before all probes and their pods are known, or this long.
_WARM_UP_SECONDS = 20.0
_GAUGES_SECONDS = 5.0


class Controller:
    """All probes and all agents. What kopf's handlers call, and what agents report to."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        credentials: Callable[[], grpc.ChannelCredentials],
        agents: AgentSource,
        metrics: OperatorMetrics,
        namespaces: Sequence[str] = (),
    ) -> None:
        self.desired = DesiredStates()
        self.metrics = metrics
        self._cluster = cluster
        self._agents = agents
        self._namespaces = namespaces
        self._watches = PodWatches(cluster, clusterwide=not namespaces)
        self._fleet = Fleet(credentials=credentials, listener=self, metrics=metrics)
        self._probes: dict[str, Probe] = {}
        self._touched: set[str] = set()
        self._flush: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to look for agents, and to talk to them once the probes are known."""
        self._agents.follow(self._cluster, self._fleet)
        self._tasks = [
            asyncio.create_task(self._warm_up(), name="warm-up"),
            asyncio.create_task(self._keep_gauges(), name="gauges"),
        ]

    async def close(self) -> None:
        """Hang up; the agents go on until their lease ends."""
        if self._flush:
            self._flush.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._agents.close()
        await self._watches.close()
        await self._fleet.close()

    # ------------------------------------------------------------------------- probes

    def add(self, body: Mapping[str, Any]) -> Probe:
        """Begin to measure for a LatencyProbe."""
        probe = Probe(body, self)
        self._probes[probe.key.uid] = probe
        logger.info("%s: generation %s", probe.key, body["metadata"].get("generation"))
        return probe

    def update(self, body: Mapping[str, Any]) -> None:
        """A LatencyProbe changed."""
        if probe := self._probes.get(probe_key(body).uid):
            probe.update(body)

    def vanish(self, body: Mapping[str, Any]) -> None:
        """A LatencyProbe is gone without having waited for its finalizer."""
        if probe := self._probes.get(probe_key(body).uid):
            probe.leave()

    async def remove(self, probe: Probe) -> None:
        """Let the agents detach what only this LatencyProbe wanted, as far as they are there."""
        nodes = {placed.pod.node for placed in self.desired.pods_of(probe.key.uid).values()}
        probe.leave()
        self._probes.pop(probe.key.uid, None)
        self._flush_now()
        if await self._fleet.settle(nodes, timeout_seconds=_DETACH_SECONDS):
            logger.info("%s: detached", probe.key)
        else:
            logger.warning("%s: some agents are late to detach; they will", probe.key)

    def abandon(self, probe: Probe) -> None:
        """Stop serving a LatencyProbe without detaching: the operator ends, or starts it anew."""
        probe.pause()
        self._probes.pop(probe.key.uid, None)

    # --------------------------------------------------------- what probes need of us

    def watch(self, namespace: str, selector: LabelSelector, listener: PodsListener) -> PodSet:
        """Subscribe to pods."""
        return self._watches.subscribe(namespace, selector, listener)

    def unwatch(self, pods: PodSet, listener: PodsListener) -> None:
        """Unsubscribe from pods."""
        self._watches.unsubscribe(pods, listener)

    def touch(self, nodes: set[str]) -> None:
        """The desired states of these nodes have changed: tell their agents in a moment."""
        self._touched |= nodes
        if self._touched and not self._flush:
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._flush_now)

    def agent(self, node: str) -> AgentView:
        """What is known of this node's agent."""
        return self._fleet.view(node)

    async def patch_status(
        self, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Merge into the object of a LatencyProbe through its status subresource."""
        return await self._cluster.patch_status(namespace, name, patch)

    def _flush_now(self) -> None:
        if self._flush:
            self._flush.cancel()
            self._flush = None
        for node in self._touched:
            self._fleet.want(node, self.desired.of_node(node))
        self._touched.clear()

    # -------------------------------------------------------------- what agents tell us

    def on_report(self, node: str, report: pb.ProbeReport) -> None:
        """An agent reported on one probe."""
        if probe := self._probes.get(report.id):
            probe.take_report(node, report)

    def on_agent_change(self, node: str) -> None:
        """An agent came, went, or has news of its targets or stages."""
        for probe_uid in self.desired.probes_on(node):
            if probe := self._probes.get(probe_uid):
                probe.poke()

    # ------------------------------------------------------------------------- start

    async def _warm_up(self) -> None:
        """Open the way to the agents once every probe that exists has its pods known.

        A state without them would take away what the agents measure since before this start.
        """
        expected = await self._existing_probes()
        try:
            async with asyncio.timeout(_WARM_UP_SECONDS):
                # A start is short, and what it waits for comes from three sides.
                while not all(map(self._is_known, expected)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            missing = sum(not self._is_known(uid) for uid in expected)
            logger.warning("going on without the pods of %d of the probes", missing)
        self._flush_now()
        self._fleet.open()

    def _is_known(self, probe_uid: str) -> bool:
        probe = self._probes.get(probe_uid)
        return probe is not None and probe.pods_known

    async def _existing_probes(self) -> set[str]:
        backoff = Backoff(0.2, 5)
        while True:
            try:
                return await self._list_probes(self._namespaces or [None])
            except ApiError as error:
                if error.status == 404:
                    return set()  # no CRD yet
                logger.warning("LatencyProbes cannot be listed: %s", error)
            except UNAVAILABLE as error:
                logger.warning("the API server is away: %s", str(error) or type(error).__name__)
            await asyncio.sleep(backoff.next())

    async def _list_probes(self, namespaces: Collection[str | None]) -> set[str]:
        return {
            body["metadata"]["uid"]
            for namespace in namespaces
            for body in await self._cluster.list_probes(namespace)
            if not body["metadata"].get("deletionTimestamp")
        }

    async def _keep_gauges(self) -> None:
        while True:
            phases = Counter(probe.phase for probe in self._probes.values())
            self.metrics.set_gauges(phases, self._fleet.states())
            await asyncio.sleep(_GAUGES_SECONDS)


class AgentSource:
    """The agents: the DaemonSet's pods in one namespace, or a given list.

    The pods have a watch of their own, of the agents alone: it takes a Role in their namespace, and
    works while the one of all pods does not.
    """

    def __init__(
        self,
        namespace: str,
        selector: str,
        port: int,
        given: Mapping[str, str] | None = None,
    ) -> None:
        self._scope = Scope(namespace, selector)
        self._port = port
        self._given = given
        self._known: set[str] = set()
        self._fleet: Fleet | None = None
        self._informer: Informer[AgentPod] | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self, source: Source, fleet: Fleet) -> None:
        """Tell the fleet of every agent, from now on."""
        if self._given:
            for node, address in self._given.items():
                fleet.set_agent(node, AgentEndpoint(address))
            return
        self._fleet = fleet
        self._informer = Informer(source, self._scope, read_agent, self)
        self._task = asyncio.create_task(self._informer.run(), name=str(self._scope))

    async def close(self) -> None:
        """Look for agents no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_list(self, _changes: Mapping[str, Change[AgentPod]]) -> None:
        """Tell the fleet of the agents that there are."""
        self._tell_fleet()

    def on_change(self, _namespace: str, _change: Change[AgentPod]) -> None:
        """Tell the fleet of the agents that there are now."""
        self._tell_fleet()

    def on_refusal(self) -> None:
        """Leave the fleet as it is; the informer has logged why."""

    def _tell_fleet(self) -> None:
        if self._informer and self._informer.listed and self._fleet and self._scope.namespace:
            agents = self._informer.pods_in(self._scope.namespace)
            self._tell(newest_by_node(agents.values()), self._fleet)

    def _tell(self, agents: Mapping[str, AgentPod], fleet: Fleet) -> None:
        for node, pod in agents.items():
            if pod.ip and pod.phase == "Running":
                fleet.set_agent(node, AgentEndpoint(_join(pod.ip, self._port), pod.uid))
            else:
                why_not = f"agent pod {pod.name} is {pod.phase or 'new'} and has no address yet"
                fleet.set_agent(node, None, why_not=why_not)
        for node in self._known - set(agents):
            fleet.set_agent(node, None)
        self._known = set(agents)


def _join(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
