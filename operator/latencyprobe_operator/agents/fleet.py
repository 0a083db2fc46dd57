"""The fleet: a link to the agent of each node, kept at its desired state."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable

from latencyprobe.domain.summary import PodChoice
from latencyprobe.process.tasks import Spawn, spawn
from latencyprobe_operator.agents.credentials import Credentials
from latencyprobe_operator.agents.disconnected_nodes import AgentConnection
from latencyprobe_operator.agents.link import AgentEndpoint, AgentLink
from latencyprobe_operator.agents.renewal import Renewal
from latencyprobe_operator.agents.turns import Turns
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import AgentView, ReportedProbe

# A TLS handshake takes some milliseconds of CPU. With those of a large cluster all at once, none
# would end within its time limit.
_GREETINGS_AT_ONCE = 256
# To make a channel, to send a state or to take in a report: these take some 10 ms.
_STEPS_OF_A_TURN = 20


class Fleet:
    """All agents, by node.

    Large, because all links share a limit of greetings, turns, credentials and a term. A link is
    replaced with its endpoint, so the desired states are kept here, too.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        on_report: Callable[[str, ReportedProbe], None],
        on_change: Callable[[str], None],
        metrics: OperatorMetrics,
        clock_ns: Callable[[], int] = time.time_ns,
        term: int = 0,
        renewal: Renewal | None = None,
        greetings_at_once: int = _GREETINGS_AT_ONCE,
        spawn: Spawn = spawn,
    ) -> None:
        """Connect to no agent before `open`, and to this number of agents at the same time.

        `on_report`: the agent of a node has reported on one probe. `on_change`: the view of a node
        has changed. `term`: this operator's time as the leader; 0: it has no rival.
        `spawn`: begins a task that must not fail.
        """
        self._credentials = credentials
        self._renewal = renewal or Renewal(credentials)
        self._on_report = on_report
        self._on_change = on_change
        self._metrics = metrics
        self._clock_ns = clock_ns
        self._term = term
        self._spawn = spawn
        self._opened = asyncio.Event()
        self._greetings = asyncio.Semaphore(greetings_at_once)
        self._turns = Turns(_STEPS_OF_A_TURN)
        self._links: dict[str, AgentLink] = {}
        self._absent: dict[str, str] = {}
        self._desired: dict[str, DesiredNodeState] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begin to connect, once the desired states are complete.

        An agent detaches the targets that a state lacks, so an incomplete one must not be applied.
        """
        self._opened.set()
        self._renewal.start(self._spawn)

    def set_agent(self, node: str, endpoint: AgentEndpoint | None, why_not: str = "") -> None:
        """Set the endpoint of this node's agent; None, and the reason, if it has none."""
        link = self._links.get(node)
        if link and link.endpoint == endpoint:
            return
        if link:
            self._disconnect(node, self._links.pop(node))
        self._absent.pop(node, None)
        if endpoint:
            self._connect(node, endpoint)
        elif why_not:
            self._absent[node] = why_not
        self._forget_if_gone(node)
        self._on_change(node)

    def want(self, node: str, state: DesiredNodeState) -> None:
        """Make this the desired state of this node's agent, whenever there is one."""
        if state == NO_STATE:
            self._desired.pop(node, None)
        else:
            self._desired[node] = state
        self._forget_if_gone(node)
        if link := self._links.get(node):
            link.want(state)

    def want_in_full(
        self, node: str, probe_uid: str, choice: PodChoice, at_once: bool = False
    ) -> None:
        """Have this node's agent, if there is one, report these pods of a probe in full.

        `at_once`: a status waits for them; else from the report after the next one on.
        """
        if link := self._links.get(node):
            link.want_in_full(probe_uid, choice, at_once=at_once)

    def view(self, node: str) -> AgentView:
        """Return this node's agent as it is known at this moment."""
        if link := self._links.get(node):
            return link.view()
        return AgentView(
            NodeState.NO_AGENT,
            self._absent.get(node)
            or "no agent runs on this node: check the node selector and the tolerations of the "
            "agents' DaemonSet",
        )

    async def settle(self, nodes: Iterable[str], *, timeout_s: float) -> bool:
        """Wait until the connected agents of these nodes have applied their desired states.

        Agents that cannot be reached are not waited for. Returns whether all others did.
        """
        links = [link for node in nodes if (link := self._links.get(node))]
        waits = [
            asyncio.create_task(link.wait_settled())
            for link in links
            if link.state is NodeState.READY
        ]
        if not waits:
            return True
        _, late = await asyncio.wait(waits, timeout=timeout_s)
        for wait in late:
            wait.cancel()
        return not late

    async def close(self) -> None:
        """Disconnect from all agents."""
        await self._renewal.close()
        for node, link in self._links.items():
            self._disconnect(node, link)
        self._links.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def states(self) -> Counter[str]:
        """Count the agents by their states."""
        return Counter(str(link.view().state) for link in self._links.values())

    def connections(self) -> dict[str, AgentConnection]:
        """Return the connection to each node that has an agent, or needs one.

        An agent that applies another state stays Ready.
        """
        missing = dict.fromkeys(self._desired, AgentConnection(NodeState.NO_AGENT))
        known = {
            node: AgentConnection(link.state, link.breaks) for node, link in self._links.items()
        }
        return missing | known

    def _connect(self, node: str, endpoint: AgentEndpoint) -> None:
        link = self._links[node] = AgentLink(
            node,
            endpoint,
            credentials=self._credentials,
            renewal=self._renewal,
            greetings=self._greetings,
            turns=self._turns,
            clock_ns=self._clock_ns,
            term=self._term,
            on_report=self._on_report,
            on_change=self._on_change,
            metrics=self._metrics,
            desired=self._desired.get(node, NO_STATE),
        )
        link.start(self._opened)

    def _disconnect(self, node: str, link: AgentLink) -> None:
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        task.add_done_callback(lambda _: self._forget_if_gone(node))  # its last report counts

    def _forget_if_gone(self, node: str) -> None:
        """Remove the series of a node that has no agent and nothing to measure."""
        if node not in self._links and node not in self._desired:
            self._metrics.forget_node(node)
