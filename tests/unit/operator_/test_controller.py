"""The operator's parts together: any number of probes have their statuses written."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address

import pytest

from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import MISSING_ANSWERS, Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.protocol.peers import peers_to_proto
from latencyprobe.protocol.pending import pending_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.admission import AdminLimits
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.api.timestamps import timestamp
from latencyprobe_operator.garbage import GarbageCollector
from latencyprobe_operator.leadership import Leadership, LeaseTiming
from latencyprobe_operator.probes.probe import Probe
from latencyprobe_operator.spec_pace import BURST
from tests.unit.operator_.controlled import AGENT_NAMESPACE, controlling, running
from tests.unit.operator_.waiting import until
from tools.fakes.agent import FakeAgent, measurement
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, pod_body, probe_body, target_id

# More than aiohttp's, and so kubernetes.aio's, pool of connections has.
MANY = 150


def probe_in(namespace: str, name: str) -> Json:
    """A probe of the pods app=NAME."""
    body = probe_body(name)
    return {**body, "metadata": {**body["metadata"], "namespace": namespace}}


@pytest.mark.parametrize("namespaces", [MANY, 1])
@pytest.mark.parametrize("clusterwide", [True, False])
async def test_any_number_of_probes_have_their_statuses(
    operator_tls: ClientTlsFiles, *, namespaces: int, clusterwide: bool
) -> None:
    api = FakeApi()
    names = [f"team-{number % namespaces}" for number in range(MANY)]
    probes = [probe_in(name, f"probe-{number}") for number, name in enumerate(names)]
    for number, name in enumerate(names):
        labels = {"app": f"probe-{number}"}
        api.set(pod_body(f"pod-{number}", namespace=name, labels=labels))
    watched = () if clusterwide else names

    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, namespaces=watched) as controller,
        running(controller, probes),
    ):
        await until(
            lambda: [status["targets"]["pods"] for status in api.statuses.values()] == [1] * MANY,
            what=lambda: f"{len(api.statuses)} statuses, {api.watching} watches",
        )
        expected = 1 if clusterwide else namespaces
        await until(lambda: api.watching == expected, what=lambda: api.asked)


async def test_agents_are_found_with_a_watch_of_their_namespace_alone(
    operator_tls: ClientTlsFiles,
) -> None:
    api = FakeApi()
    api.set(pod_body("agent", namespace=AGENT_NAMESPACE, labels={"app": "agent"}))
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, namespaces=["shop"], agents={}) as controller,
    ):
        await until(lambda: api.watching, what=lambda: api.asked)
        assert sum(controller._fleet.states().values()) == 1
        name = "latencyprobe_operator_disconnected_nodes"
        assert controller.metrics.registry.get_sample_value(name) == 0
        assert api.watches[0][0] == "app=agent"
        assert set(api.asked) == {AGENT_NAMESPACE}

        api.remove("uid-agent")
        await until(lambda: not sum(controller._fleet.states().values()), what=lambda: api.asked)


async def test_a_namespace_without_permission_is_reported_in_the_status_of_its_probes(
    operator_tls: ClientTlsFiles,
) -> None:
    api = FakeApi(refuse_in={"cart": (403, "pods is forbidden in cart")})
    api.set(pod_body("a", labels={"app": "allowed"}))
    probes = [probe_in("shop", "allowed"), probe_in("cart", "refused")]
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, namespaces=["shop", "cart"]) as controller,
        running(controller, probes),
    ):
        await until(lambda: len(api.statuses) == 2, what=lambda: api.statuses)
        await until(
            lambda: api.statuses["allowed"]["targets"]["pods"] == 1, what=lambda: api.statuses
        )
        await until(
            lambda: ready(api, "refused")["reason"] == "PodsUnavailable",
            what=lambda: api.statuses,
        )
        assert ready(api, "refused")["message"] == "pods is forbidden in cart"


def reasons(api: FakeApi) -> dict[str, str]:
    """The reason of Ready of each probe that has one."""
    return {name: ready(api, name)["reason"] for name in sorted(api.statuses)}


async def test_the_oldest_probes_of_a_namespace_are_served_up_to_the_limit(
    operator_tls: ClientTlsFiles,
) -> None:
    api = FakeApi()
    bodies = [probe_in("shop", name) for name in ("young", "old", "older")]
    for day, body in zip((3, 2, 1), bodies, strict=True):
        body["metadata"]["creationTimestamp"] = f"2026-01-0{day}T00:00:00Z"
    bodies.append(probe_in("bank", "other"))
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, limits=AdminLimits(0, 2)) as controller,
        running(controller, bodies),
    ):
        served, refused = "NoMatchingPods", "AboveLimit"
        await until(
            lambda: (
                reasons(api) == {"old": served, "older": served, "other": served, "young": refused}
            ),
            what=lambda: reasons(api),
        )
        assert ready(api, "young")["message"] == (
            "namespace shop has more LatencyProbes than the administrator allows: 2, "
            "the oldest ones"
        )
        await controller.remove(controller._probes["uid-older"])
        await until(lambda: reasons(api)["young"] == served, what=lambda: reasons(api))


async def test_a_probe_above_the_limit_is_no_news_of_the_others_above_it(
    operator_tls: ClientTlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    poked: list[str] = []

    def poke(probe: Probe) -> None:
        poked.append(probe.key.name)

    monkeypatch.setattr(Probe, "poke", poke)
    async with (
        FakeApi().serve() as cluster,
        controlling(cluster, operator_tls, limits=AdminLimits(0, 1)) as controller,
    ):
        first, *others = [controller.add(probe_in("shop", f"p-{n:03}")) for n in range(300)]
        poked.clear()
        controller.add(probe_in("shop", "p-300"))
        assert set(poked) == {"p-300"}
        poked.clear()
        await controller.remove(others[-1])
        assert poked == []
        await controller.remove(first)
        assert set(poked) == {"p-001"}


async def test_a_probe_that_starts_again_keeps_its_place(operator_tls: ClientTlsFiles) -> None:
    async with (
        FakeApi().serve() as cluster,
        controlling(cluster, operator_tls, limits=AdminLimits(0, 1)) as controller,
    ):

        def refused() -> list[Probe]:
            return [each for each in controller._probes.values() if each._current.problem]

        first, second = [controller.add(probe_in("shop", name)) for name in ("a", "b")]
        controller.abandon(first)
        assert refused() == [second]
        again = controller.add(probe_in("shop", "a"))
        assert refused() == [second]
        controller.abandon(again)
        controller.vanish(probe_in("shop", "a"))
        assert refused() == []


async def test_a_probe_with_a_shorter_interval_than_allowed_is_not_served(
    operator_tls: ClientTlsFiles,
) -> None:
    api = FakeApi()
    body = probe_in("shop", "fast")
    body["spec"]["interval"] = "1s"
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, limits=AdminLimits(5.0)) as controller,
        running(controller, [body]),
    ):
        await until(lambda: api.statuses, what=lambda: api.statuses)
        condition = ready(api, "fast")
        assert condition["reason"] == "AboveLimit"
        assert condition["message"] == ("spec.interval is 1 s; the administrator's minimum is 5 s")


async def test_pods_are_static_in_the_namespaces_that_the_administrator_names(
    operator_tls: ClientTlsFiles,
) -> None:
    """Elsewhere a pod with another one's UID in its annotations would be measured as that one."""
    api = FakeApi()
    other = "3c1b7f0e-9a2d-4c5b-8e6f-7a0b1c2d3e4f"
    for namespace in ("kube-system", "ops", "shop"):
        body = pod_body(namespace, namespace=namespace, labels={"app": namespace})
        body["metadata"]["annotations"] = {
            "kubernetes.io/config.mirror": other,
            "kubernetes.io/config.hash": other,
        }
        api.set(body)
    probes = [probe_in(namespace, namespace) for namespace in ("kube-system", "ops", "shop")]
    limits = AdminLimits(static_pod_namespaces=frozenset({"ops"}))
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, limits=limits) as controller,
        running(controller, probes),
    ):

        def asked() -> dict[str, str]:
            return {
                probe.key.namespace: target.pod_uid
                for probe in controller.desired.of_node("node-a")
                for target in probe.targets
            }

        expected = {"kube-system": "uid-kube-system", "ops": other, "shop": "uid-shop"}
        await until(lambda: asked() == expected, what=asked)


def ready(api: FakeApi, name: str) -> Json:
    """The condition Ready of a probe."""
    conditions: list[Json] = api.statuses[name]["conditions"]
    (condition,) = (each for each in conditions if each["type"] == "Ready")
    return condition


async def test_the_worst_of_many_pods_is_found_over_the_real_protocol(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles
) -> None:
    api = FakeApi()
    agents = {f"node-{number}": FakeAgent(agent_tls) for number in range(6)}
    for node, agent in agents.items():
        await agent.start()
        for number in range(2):
            api.set(pod_body(f"{node}-{number}", node=node, labels={"app": "checkout"}))
    addresses = {node: agent.address for node, agent in agents.items()}
    body = probe_body(interval="1s", report={"maxPods": 2})

    async def report() -> None:
        while True:
            for node, agent in agents.items():
                if agent.listeners and agent.target_ids:
                    slow = {target_id("node-4-1"): measurement(*[9 * 10**6] * 200)}
                    quick = {
                        target_id(f"{node}-{number}"): measurement(*[10**6] * 200)
                        for number in range(2)
                    }
                    agent.windows.forget_figures("uid-checkout")
                    agent.report("uid-checkout", quick | (slow if node == "node-4" else {}))
            await asyncio.sleep(0.5)

    def listed() -> list[str]:
        return [row["name"] for row in api.statuses.get("checkout", {}).get("pods", ())]

    def omitted() -> int | None:
        return api.statuses["checkout"].get("omittedPods")

    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, agents=addresses) as controller,
        running(controller, [body]),
    ):
        await until(lambda: all(agent.applied for agent in agents.values()), what=listed)
        reporting = asyncio.create_task(report())
        await until(lambda: listed()[:1] == ["node-4-1"], what=lambda: api.statuses)
        await until(lambda: omitted() == 10, what=lambda: api.statuses)  # some nodes are later
        assert len(listed()) == 2
        assert api.statuses["checkout"]["nodes"] == []
        await until(lambda: agents["node-4"].heard[-1].acknowledged, what=listed)
        reporting.cancel()
        await asyncio.wait([reporting])
    for agent in agents.values():
        await agent.stop()


@pytest.mark.parametrize(
    ("allowed", "name"),
    [((), "a pod of another namespace in this cluster"), (("shop",), "pod cart/db-0")],
)
async def test_a_status_names_a_peer_of_another_namespace_as_the_administrator_allows(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles, allowed: tuple[str, ...], name: str
) -> None:
    api, agent = FakeApi(), FakeAgent(agent_tls)
    await agent.start()
    api.set(pod_body("a", labels={"app": "checkout"}))
    api.set(pod_body("db-0", namespace="cart", node="node-b", ips=("10.0.0.7",)))
    peer = Peer(Endpoint(ip_address("10.0.0.7"), 5432), MISSING_ANSWERS, 9, 6 * 10**9, 50 * 10**9)
    waiting = {MISSING_ANSWERS: Pending(9, 9, oldest_ns=6 * 10**9, waiting_ns=50 * 10**9)}

    def wait_for_peer(report: pb.TargetReport) -> None:
        report.peers.extend(peers_to_proto([peer]))
        report.pending.extend(pending_to_proto(waiting))

    def verdict() -> Json:
        rows: list[Json] = api.statuses.get("checkout", {}).get("pods", [])
        return rows[0]["verdict"] if rows else {}

    async def report() -> None:
        while True:
            if agent.listeners and agent.target_ids:
                figures = {target_id("a"): measurement(*[1000] * 200)}
                agent.report("uid-checkout", figures, spoil=wait_for_peer)
            await asyncio.sleep(0.2)

    limits = AdminLimits(node_figures_namespaces=frozenset(allowed))
    async with (
        api.serve() as cluster,
        controlling(
            cluster, operator_tls, agents={"node-a": agent.address}, limits=limits
        ) as controller,
        running(controller, [probe_body(interval="1s")]),
    ):
        reporting = asyncio.create_task(report())
        await until(
            lambda: verdict().get("culprit") == f"{name} (10.0.0.7:5432)",
            what=lambda: api.statuses,
        )
        (shown,) = api.statuses["checkout"]["pods"][0]["peers"]
        assert shown["name"] == name
        assert f"the longest for {name} (10.0.0.7:5432)" in verdict()["evidence"]
        reporting.cancel()
        await asyncio.wait([reporting])
    await agent.stop()


async def test_a_leader_adds_no_more_than_a_failover_to_the_time_that_was_measured(
    operator_tls: ClientTlsFiles,
) -> None:
    """The clock of the leader before was four minutes behind."""
    ahead_s, timing = 240, LeaseTiming(duration_s=20)
    begin = timestamp(time.time() - 60 - ahead_s)
    status = {"startTime": begin, "measuredSeconds": 60, "phase": "Running"}
    async with (
        FakeApi().serve() as cluster,
        controlling(cluster, operator_tls, leadership=Leadership("a", timing)) as controller,
    ):
        probe = controller.add({**probe_body(duration="5m"), "status": status})
        left_s = probe._current.remaining_s(time.time())
        assert left_s is not None
        assert left_s == pytest.approx(300 - 60 - (60 + 20), abs=5)


async def test_a_filter_that_changes_all_the_time_costs_agents_few_states(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latencyprobe_operator.spec_pace.PACE_S", 1000.0)
    api, agent = FakeApi(), FakeAgent(agent_tls)
    await agent.start()
    api.set(pod_body("a", labels={"app": "checkout"}))
    api.probes = [probe_body()]

    def ports() -> list[int]:
        return list(agent.applied[-1].probes[0].filter.ports)

    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, agents={"node-a": agent.address}) as controller,
        running(controller, api.probes),
    ):
        await until(lambda: reasons(api) == {"checkout": "Measuring"}, what=lambda: api.statuses)
        before = len(agent.applied)
        for number in range(100):
            controller.update(probe_body(generation=2 + number, filter={"ports": [number + 1]}))
            controller._flush_some()
            await controller._fleet.settle(["node-a"], timeout_s=5)
        assert len(agent.applied) - before == BURST
        assert ports() == [BURST]
        (pace,) = controller._specs._paces.values()
        controller._specs._pass_on_held(pace)
        await until(lambda: ports() == [100], what=lambda: agent.applied[-1])
    await agent.stop()


async def test_a_probe_that_is_deleted_and_created_all_the_time_costs_agents_few_states(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latencyprobe_operator.spec_pace.PACE_S", 1000.0)
    api, agent = FakeApi(), FakeAgent(agent_tls)
    await agent.start()
    api.set(pod_body("a", labels={"app": "checkout"}))
    ports: set[int] = set()

    def body(name: str, *ports: int) -> Json:
        selector = {"matchLabels": {"app": "checkout"}}
        return probe_body(name, selector=selector, filter={"ports": ports})

    async def placed(probe: Probe) -> None:
        await until(lambda: probe.pods_known, what=lambda: probe.status)

    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, agents={"node-a": agent.address}) as controller,
    ):
        async with running(controller, [body("stays")]):
            await until(lambda: reasons(api) == {"stays": "Measuring"}, what=lambda: api.statuses)
        for number in range(30):
            probe = controller.add(body(f"p-{number}", number + 1))
            await placed(probe)
            controller._flush_some()
            await controller._fleet.settle(["node-a"], timeout_s=5)
            ports |= {
                port
                for state in agent.applied
                for each in state.probes
                for port in each.filter.ports
            }
            await controller.remove(probe)
        assert ports == set(range(1, BURST + 1))

        async with running(controller, [body("late")]):
            await until(lambda: reasons(api).get("late") == "AboveLimit", what=lambda: api.statuses)
            said = ready(api, "late")["message"]
            assert said.startswith("namespace shop replaces its LatencyProbes too often: ")
            controller._specs._start_now("uid-late")
            await until(lambda: reasons(api)["late"] == "Measuring", what=lambda: api.statuses)
    await agent.stop()


class NotingCollector(GarbageCollector):
    """Collects nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.attached: list[int] = []
        self.reports = 0

    def note_report(self) -> None:
        self.reports += 1

    def note_attached(self) -> None:
        self.attached.append(self.reports)


async def test_memory_of_handshakes_is_given_back_once_agents_have_attached(
    operator_tls: ClientTlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latencyprobe_operator.controller._GAUGES_S", 0.01)
    collector, attached = NotingCollector(), []
    monkeypatch.setattr(
        "latencyprobe_operator.controller.heap.give_back",
        lambda: attached.append(bool(collector.attached)),
    )
    async with (
        FakeApi().serve() as cluster,
        controlling(cluster, operator_tls, agents={}, collector=collector),
    ):
        await until(lambda: True in attached, what=lambda: attached)


async def test_the_collector_hears_of_each_report_and_once_of_attached_agents(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latencyprobe_operator.controller._GAUGES_S", 0.01)
    api, agent, collector = FakeApi(), FakeAgent(agent_tls), NotingCollector()
    await agent.start()
    api.set(pod_body("a", labels={"app": "checkout"}))
    api.probes = [probe_body()]
    async with (
        api.serve() as cluster,
        controlling(
            cluster, operator_tls, agents={"node-a": agent.address}, collector=collector
        ) as controller,
        running(controller, [probe_body()]),
    ):
        await until(lambda: collector.attached and agent.listeners, what=controller._fleet.states)
        for _ in range(3):
            agent.report("uid-checkout", {target_id("a"): measurement(1000)})
        await until(lambda: collector.reports == 3, what=lambda: collector.reports)
        assert len(collector.attached) == 1
        assert controller._fleet.view("node-a").state == "Ready"
    await agent.stop()


async def test_an_agent_keeps_its_targets_while_the_first_list_of_pods_is_refused(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles
) -> None:
    """A starting API server refuses requests until it has read the roles."""
    api, agent = FakeApi(), FakeAgent(agent_tls)
    await agent.start()
    api.set(pod_body("a", labels={"app": "checkout"}))
    api.probes = [probe_body()]
    api.refuse_in[""] = (403, "pods is forbidden")
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, agents={"node-a": agent.address}) as controller,
        running(controller, api.probes),
    ):
        await until(lambda: api.asked.count("") == 3, what=lambda: api.asked)
        api.refuse_in.clear()
        await until(lambda: agent.applied, what=controller._fleet.states)
        assert {len(state.probes) for state in agent.applied} == {1}
        assert agent.target_ids == [target_id("a")]
    await agent.stop()


async def test_statuses_stand_until_the_operator_connects_to_agents(
    operator_tls: ClientTlsFiles,
) -> None:
    """From then on, agents have an interval and a few seconds to report."""
    api = FakeApi()
    status = {"observedGeneration": 1, "phase": "Running"}
    earlier = [{**probe_body(name), "status": status} for name in ("first", "second", "late")]
    api.probes = earlier[:2]
    api.set(pod_body("a", labels={"app": "checkout"}))

    begin = asyncio.get_running_loop().time()

    def stands_for_a_minute(name: str) -> bool:
        schedule = controller._probes[f"uid-{name}"]._schedule
        return schedule.in_grace(asyncio.get_running_loop().time() + 60)

    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls) as controller,
        running(controller, earlier[:1]),
    ):
        assert stands_for_a_minute("first")
        async with running(controller, earlier[1:2]):
            assert stands_for_a_minute("second")
            await until(controller._fleet._opened.is_set, what=controller._fleet.states)
            assert not stands_for_a_minute("first")
            assert not stands_for_a_minute("second")
            async with running(controller, earlier[2:]):
                assert not stands_for_a_minute("late")
                for probe in controller._probes.values():
                    assert probe._schedule.in_grace(begin + 14.9)


async def test_no_status_is_written_from_views_of_agents_that_the_end_has_disconnected(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kopf may stop the probes later than that, and the Lease is still held."""
    checks = []
    update_status = Probe._update_status

    async def note(probe: Probe) -> None:
        await update_status(probe)
        checks.append(probe.key.name)

    monkeypatch.setattr(Probe, "_update_status", note)
    api, agent = FakeApi(), FakeAgent(agent_tls)
    await agent.start()
    api.set(pod_body("a", labels={"app": "checkout"}))
    api.probes = [probe_body()]
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, agents={"node-a": agent.address}) as controller,
        running(controller, api.probes),
    ):
        await until(lambda: reasons(api) == {"checkout": "Measuring"}, what=lambda: api.statuses)
        applied = len(agent.applied)
        await controller.close()
        checks.clear()
        controller._probes["uid-checkout"].poke()
        await until(lambda: checks, what=lambda: api.statuses)
        assert reasons(api) == {"checkout": "Measuring"}
        assert len(agent.applied) == applied
    await agent.stop()
