"""The source of the agents' addresses: the DaemonSet's pods, or a given list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from latencyprobe_operator.agents.link import AgentEndpoint
from latencyprobe_operator.kube.informer import Change, Informer, Scope, Source
from latencyprobe_operator.model import AgentPod, newest_by_node, read_agent

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
        self._known: set[str] = set()
        self._set_agent: SetAgent | None = None
        self._informer: Informer[AgentPod] | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self, source: Source, set_agent: SetAgent) -> None:
        """Report every agent to `set_agent`, from now on."""
        if self._given:
            for node, address in self._given.items():
                set_agent(node, AgentEndpoint(address), "")
            return
        self._set_agent = set_agent
        self._informer = Informer(source, self._scope, read_agent, self)
        self._task = asyncio.create_task(self._informer.run(), name=str(self._scope))

    async def close(self) -> None:
        """Stop following the agents."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_list(self, _changes: Mapping[str, Change[AgentPod]]) -> None:
        """Report the agents that there are."""
        self._report_all()

    def on_change(self, _namespace: str, _change: Change[AgentPod]) -> None:
        """Report the agents that there are now."""
        self._report_all()

    def on_refusal(self) -> None:
        """Keep the agents as they are; the informer has logged the reason."""

    def _report_all(self) -> None:
        if self._informer and self._informer.listed and self._set_agent and self._scope.namespace:
            agents = self._informer.pods_in(self._scope.namespace)
            self._report(newest_by_node(agents.values()), self._set_agent)

    def _report(self, agents: Mapping[str, AgentPod], set_agent: SetAgent) -> None:
        for node, pod in agents.items():
            if pod.ip and pod.phase == "Running":
                set_agent(node, AgentEndpoint(_join(pod.ip, self._port), pod.uid), "")
            else:
                why_not = f"agent pod {pod.name} is {pod.phase or 'new'} and has no address yet"
                set_agent(node, None, why_not)
        for node in self._known - set(agents):
            set_agent(node, None, "")
        self._known = set(agents)


def _join(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
