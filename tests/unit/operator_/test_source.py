"""The agents of a cluster, as their pods come, change and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from latencyprobe_operator.agents.link import AgentEndpoint
from latencyprobe_operator.agents.source import AgentSource
from latencyprobe_operator.kube.cluster import WatchEvent
from tests.unit.operator_.waiting import until
from tools.fakes.samples import Json, pod_body

NAMESPACE, PORT = "latencyprobe-system", 9345


class AgentPods:
    """The API server's view of the agents."""

    def __init__(self, *bodies: Json) -> None:
        self.bodies = list(bodies)
        self.events: asyncio.Queue[tuple[str, Json]] = asyncio.Queue()

    async def list_pods(
        self, namespace: str | None, selector: str, take: Callable[[Json], None]
    ) -> str:
        for body in self.bodies:
            take(body)
        return "1"

    async def watch_pods(
        self, namespace: str | None, selector: str, *, since: str
    ) -> AsyncIterator[WatchEvent]:
        while True:
            kind, body = await self.events.get()
            yield WatchEvent(kind, body, since)
            self.events.task_done()

    async def see(self, kind: str, body: Json) -> None:
        """Have the operator see this event."""
        self.events.put_nowait((kind, body))
        await self.events.join()


class Told:
    """The agents by node, and the nodes in the order in which they were reported."""

    def __init__(self) -> None:
        self.agents: dict[str, AgentEndpoint | None] = {}
        self.reasons: dict[str, str] = {}
        self.order: list[str] = []
        self.instances: list[str] = []

    def set_agent(self, node: str, endpoint: AgentEndpoint | None, why_not: str) -> None:
        self.agents[node], self.reasons[node] = endpoint, why_not
        self.order.append(node)
        self.instances.append(endpoint.instance if endpoint else "")


def agent(
    node: str, name: str = "", *, created: str = "2026-01-01", phase: str = "Running"
) -> Json:
    """The pod of an agent."""
    body = pod_body(name or f"agent-{node}", node=node, namespace=NAMESPACE)
    body["metadata"]["creationTimestamp"] = f"{created}T00:00:00Z"
    body["status"]["phase"] = phase
    return body


async def following(api: AgentPods, told: Told, nodes: int) -> AgentSource:
    """A source that has reported this many nodes."""
    source = AgentSource(NAMESPACE, "app=agent", PORT)
    source.follow(api, told.set_agent)
    await until(lambda: len(told.agents) == nodes, what=lambda: told.order)
    return source


async def test_a_change_of_one_agent_reports_its_node_alone() -> None:
    api, told = AgentPods(*(agent(f"node-{number}") for number in range(250))), Told()
    source = await following(api, told, 250)
    assert sorted(told.order) == sorted(set(told.order))

    del told.order[:]
    await api.see("MODIFIED", agent("node-7", phase="Pending"))
    assert told.order == ["node-7"]
    assert told.agents["node-7"] is None
    assert told.reasons["node-7"] == "agent pod agent-node-7 is Pending and has no address yet"
    await api.see("DELETED", agent("node-8"))
    assert told.order == ["node-7", "node-8"]
    assert (told.agents["node-8"], told.reasons["node-8"]) == (None, "")
    await source.close()


async def test_agents_are_known_once_they_are_listed_or_given() -> None:
    api, told = AgentPods(agent("node-a")), Told()
    source = AgentSource(NAMESPACE, "app=agent", PORT)
    source.follow(api, told.set_agent)
    assert not source.known
    await until(lambda: source.known, what=lambda: told.order)
    assert told.order == ["node-a"]
    await source.close()

    source = AgentSource(NAMESPACE, "app=agent", PORT, {"node-a": "10.0.0.1:9345"})
    source.follow(api, told.set_agent)
    assert source.known


async def test_other_tasks_go_on_while_a_thousand_agents_are_reported() -> None:
    api, told = AgentPods(*(agent(f"node-{number}") for number in range(1000))), Told()
    seen = []

    async def watch() -> None:
        while len(told.order) < 1000:
            seen.append(len(told.order))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    source = await following(api, told, 1000)
    await watching
    await source.close()

    assert max(later - earlier for earlier, later in pairwise(seen)) <= 100


@pytest.mark.parametrize("first_to_go", ["old", "new"])
async def test_while_a_daemon_set_rolls_out_the_newest_agent_of_a_node_counts(
    first_to_go: str,
) -> None:
    pods = {
        "old": agent("node-a", "old"),
        "new": agent("node-a", "new", created="2026-02-01"),
    }
    api, told = AgentPods(pods["old"]), Told()
    source = await following(api, told, 1)
    await api.see("ADDED", pods["new"])
    assert told.instances == ["uid-old", "uid-new"]

    await api.see("DELETED", pods.pop(first_to_go))
    (left,) = pods
    assert told.instances[-1] == f"uid-{left}"
    await api.see("DELETED", pods.pop(left))
    assert told.instances[-1] == ""
    await source.close()


async def test_an_agent_that_is_not_on_a_node_yet_is_reported_with_its_node() -> None:
    api, told = AgentPods(), Told()
    source = await following(api, told, 0)
    await api.see("ADDED", agent(""))
    assert told.order == []
    await api.see("MODIFIED", {**agent("node-a"), "metadata": agent("")["metadata"]})
    assert told.order == ["node-a"]
    await source.close()
