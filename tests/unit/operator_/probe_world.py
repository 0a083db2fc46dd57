"""The rest of the operator around one probe: pods, agents and the API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.summary import PodChoice
from latencyprobe.protocol.measurements import measurement_to_proto
from latencyprobe.protocol.pending import pending_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.asked_pods import AskedPods
from latencyprobe_operator.agents.messages import reported_probe
from latencyprobe_operator.agents.reported_summaries import reported_summary
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.kube.pods import PodsChange, PodSet, PodsListener
from latencyprobe_operator.kube.selector import LabelSelector
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.model import Pod
from latencyprobe_operator.observed_state import AgentView
from latencyprobe_operator.probes.document import size_bytes
from latencyprobe_operator.probes.probe import Probe
from tools.fakes.api import apply_merge_patch
from tools.fakes.windows import AgentWindows


def clock() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


class World:
    """The rest of the operator, and the API server."""

    def __init__(self) -> None:
        self.desired = DesiredStates()
        self.metrics = OperatorMetrics()
        self.sets: dict[str, PodSet] = {}
        self.touched: set[str] = set()
        self.agent_state = NodeState.READY
        self.status: dict[str, Any] = {}
        self.writes: list[float] = []
        self.written_bytes = 0
        self.failures: list[Exception] = []
        self.choices: dict[str, PodChoice] = {}

    def watch(self, namespace: str, selector: LabelSelector, listener: PodsListener) -> PodSet:
        pods = self.sets.setdefault(str(selector), PodSet(namespace, selector))
        pods.listeners.append(listener)
        return pods

    def unwatch(self, pods: PodSet, listener: PodsListener) -> None:
        pods.listeners.remove(listener)

    def touch(self, nodes: set[str]) -> None:
        self.touched |= nodes

    def agent(self, node: str) -> AgentView:
        applied = {probe.key.uid: probe.targets for probe in self.desired.of_node(node)}
        return AgentView(self.agent_state, "as told", applied=applied, cpu_percent=0.1)

    def want_in_full(self, node: str, probe_uid: str, choice: PodChoice, at_once: bool) -> None:
        self.choices[node] = choice

    async def patch_status(
        self, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop(0)
        assert patch["metadata"] == {"uid": f"uid-{name}"}
        self.writes.append(clock())
        self.written_bytes += size_bytes(patch)
        self.status = apply_merge_patch(self.status, patch["status"])
        return {"status": self.status}

    def show(self, *pods: Pod, selector: str = "app=checkout") -> None:
        """The API server lists these pods, and no others."""
        shown = self.sets[selector]
        removed = [uid for uid in shown.pods if uid not in {pod.uid for pod in pods}]
        shown.pods = {pod.uid: pod for pod in pods}
        shown.listed = True
        shown.notify(PodsChange(pods, removed))

    def condition(self, name: str = "Ready") -> tuple[str, str]:
        """(status, reason) of a condition as written."""
        for each in self.status.get("conditions", ()):
            if each["type"] == name:
                return each["status"], each["reason"]
        return "", ""


@asynccontextmanager
async def running(world: World, body: Mapping[str, Any], **options: Any) -> AsyncIterator[Probe]:
    """A probe whose task runs."""
    probe = Probe(
        body,
        desired=world.desired,
        metrics=world.metrics,
        subscribe=world.watch,
        unsubscribe=world.unwatch,
        touch=world.touch,
        agent=world.agent,
        want_in_full=world.want_in_full,
        patch_status=world.patch_status,
        **options,
    )
    task = asyncio.create_task(probe.run())
    try:
        yield probe
    finally:
        task.cancel()
        done, _ = await asyncio.wait([task])
        assert all(each.cancelled() for each in done), task.exception()


def report(figures: dict[str, Measurement]) -> pb.ProbeReport:
    """An agent's report on these targets."""
    message = pb.ProbeReport(id="uid-checkout")
    for identity, measured in figures.items():
        stages, counters = measurement_to_proto(measured)
        message.targets.add(
            status=pb.TargetStatus(id=identity, state=pb.TargetStatus.ATTACHED),
            stages=stages,
            counters=counters,
            netns_counters=measured.netns_counters,
            pending=pending_to_proto(measured.pending),
        )
    return message


AGENTS: WeakKeyDictionary[Probe, dict[str, tuple[AgentWindows, AskedPods]]] = WeakKeyDictionary()


def take(
    probe: Probe,
    node: str,
    message: pb.ProbeReport,
    *,
    fresh: bool = False,
    late_s: int = 0,
) -> None:
    """Give a probe the report of an agent that has these figures in its window too.

    `fresh`: the agent has no others. `late_s`: its interval begins this late.
    """
    windows, asked = AGENTS.setdefault(probe, {}).setdefault(node, (AgentWindows(), AskedPods()))
    if fresh:
        windows.forget_figures(message.id)
    asked.ask(probe._pods._desired.of_node(node))
    names = {(message.id, target.status.id) for target in message.targets}
    summary = windows.summarised(message)
    for moment in (summary.begin, summary.end):
        moment.seconds += late_s
    reported = reported_summary(summary, names, asked)
    assert not reported.corruption
    probe.take_report(node, reported)


def take_deltas(probe: Probe, node: str, message: pb.ProbeReport) -> None:
    """Give a probe this report of an older agent."""
    probe.take_report(node, reported_probe(message))
