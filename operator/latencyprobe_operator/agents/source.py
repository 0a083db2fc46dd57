"""The source of the agents' addresses: the DaemonSet's pods, or a given list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from latencyprobe.process.tasks import Spawn, spawn
from latencyprobe_operator.agents.link import AgentEndpoint
from latencyprobe_operator.kube.informer import Change, Informer, Scope, Source
from latencyprobe_operator.model import AgentPod, newest_by_node, read_agent

# Making this many links takes some 10 ms.
_NODES_OF_A_STEP = 100

SetAgent = Callable[[str, AgentEndpoint | None, str], None]
"""As `Fleet.set_agent`: the node, its agent's endpoint, and the reason if it has none."""


class AgentSource:
    """The agents: the DaemonSet's pods in one namespace, or a given list.

    The pods have a watch of their own, of the agents alone. It needs a Role in their namespace
    only, and works while the watch of all pods does not.
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
        self._nodes: dict[str, str] = {}
        """The node of each agent's pod, by UID."""
        self._pods: dict[str, dict[str, AgentPod]] = {}
        """The agents' pods by node and UID: two while a DaemonSet rolls out."""
        self._set_agent: SetAgent | None = None
        self._informer: Informer[AgentPod] | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self, source: Source, set_agent: SetAgent, spawn: Spawn = spawn) -> None:
        """Report every agent to `set_agent`, from now on, in a task that `spawn` begins."""
        if self._given:
            for node, address in self._given.items():
                set_agent(node, AgentEndpoint(address), "")
            return
        self._set_agent = set_agent
        self._informer = Informer(source, self._scope, read_agent, self)
        self._task = spawn(self._informer.run(), str(self._scope))

    @property
    def known(self) -> bool:
        """Return whether the agents are known, or the API server does not show them for long."""
        return self._informer.decided if self._informer else bool(self._given)

    async def close(self) -> None:
        """Stop following the agents."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_list(self, changes: Mapping[str, Change[AgentPod]]) -> Iterator[None]:
        """Report the nodes whose agents have changed, some at a time."""
        for change in changes.values():
            for number, node in enumerate(self._take(change), 1):
                self._report(node)
                if number % _NODES_OF_A_STEP == 0:
                    yield

    def on_change(self, _namespace: str, change: Change[AgentPod]) -> None:
        """Report the nodes of these agents."""
        for node in self._take(change):
            self._report(node)

    def on_refusal(self) -> None:
        """Keep the agents as they are; the informer has logged the reason."""

    def _take(self, change: Change[AgentPod]) -> set[str]:
        """Take in a change; return its nodes."""
        touched = set()
        for uid in (*change.removed, *(pod.uid for pod in change.changed)):
            if (node := self._nodes.pop(uid, None)) is not None:
                del self._pods[node][uid]
                touched.add(node)
        for pod in change.changed:
            if pod.node:
                self._nodes[pod.uid] = pod.node
                self._pods.setdefault(pod.node, {})[pod.uid] = pod
                touched.add(pod.node)
        return touched

    def _report(self, node: str) -> None:
        if not self._set_agent:
            return
        pod = newest_by_node(self._pods[node].values()).get(node)
        if not self._pods[node]:
            del self._pods[node]
        if pod is None:
            self._set_agent(node, None, "")
        elif pod.ip and pod.phase == "Running":
            self._set_agent(node, AgentEndpoint(_join(pod.ip, self._port), pod.uid), "")
        else:
            why_not = f"agent pod {pod.name} is {pod.phase or 'new'} and has no address yet"
            self._set_agent(node, None, why_not)


def _join(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
