"""Two tenants of one node: no part of a status is of the other, whatever the agent sends.

The agent is an older one, which sends figures of the node with each probe, asked or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

import pytest

from latencyprobe.protocol.measurements import measurement_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.admission import AdminLimits
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tests.unit.operator_.controlled import controlling, running
from tests.unit.operator_.waiting import until
from tools.fakes.agent import FakeAgent, measurement
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, pod_body, probe_body, target_id

TENANTS = ("amber", "cobalt")
# Of the node as a whole: what tenants have in common, and what must not be in a status.
DEVICE, HANDLER, COUNT = "granite0", "granite-input.0", 5550001
OF_THE_NODE = re.compile(rf"granite|{COUNT}|{COUNT:,}|31\.4")


def other(tenant: str) -> str:
    (found,) = set(TENANTS) - {tenant}
    return found


def probe_of(tenant: str) -> Json:
    return probe_body(
        f"{tenant}-probe",
        namespace=f"{tenant}-team",
        interval="1s",
        modules=["rx", "tx", "tcp", "irq", "sched"],
        overhead={"maxCPUPercent": 0},
    )


def show_pods(api: FakeApi, tenant: str) -> None:
    """An ordinary pod of the tenant, and one in the node's own network namespace."""
    for name, host_network in ((f"{tenant}-pod", False), (f"{tenant}-host", True)):
        labels = {"app": f"{tenant}-probe"}
        container = (f"{tenant}-box",)
        api.set(
            pod_body(
                name,
                namespace=f"{tenant}-team",
                labels=labels,
                containers=container,
                host_network=host_network,
            )
        )


def report_of(agent: FakeAgent, tenant: str) -> pb.ProbeReport:
    """All that an older agent measured for a tenant, with the same figures of the node for both."""
    probe = pb.ProbeReport(id=f"uid-{tenant}-probe")
    for name in (f"{tenant}-pod", f"{tenant}-host"):
        target = probe.targets.add()
        target.status.id = target_id(name, f"{tenant}-box")
        target.status.state = pb.TargetStatus.ATTACHED
        counted = COUNT if name.endswith("host") else 1
        target.netns_counters["TcpExtListenDrops"] = counted
        if name == "amber-pod":
            stages, _ = measurement_to_proto(measurement(*[2_000_000] * 1000))
            target.stages.extend(stages)
    probe.node.counters[f"{DEVICE}:rx_dropped"] = COUNT
    probe.node.counters["softnetDropped"] = COUNT
    probe.node.stages.add(name="irq.hard", detail=HANDLER, sampling_ratio=1)
    return probe


@pytest.mark.parametrize(
    ("namespaces", "seeing"),
    [
        ((), ()),
        (("amber-team",), ("amber",)),
        (("cobalt-team", "elsewhere"), ("cobalt",)),
        (("*",), TENANTS),
    ],
)
async def test_statuses_show_the_node_only_where_it_is_allowed_and_never_the_other_tenant(
    agent_tls: ClientTlsFiles,
    operator_tls: ClientTlsFiles,
    namespaces: Collection[str],
    seeing: Collection[str],
) -> None:
    api, agent = FakeApi(), FakeAgent(agent_tls)
    await agent.start()
    for tenant in TENANTS:
        show_pods(api, tenant)
    limits = AdminLimits(node_figures_namespaces=frozenset(namespaces))

    def is_complete() -> bool:
        return all(
            "lastReportTime" in api.statuses.get(f"{tenant}-probe", {}) for tenant in TENANTS
        )

    try:
        async with (
            api.serve() as cluster,
            controlling(
                cluster, operator_tls, agents={"node-a": agent.address}, limits=limits
            ) as controller,
            running(controller, [probe_of(tenant) for tenant in TENANTS]),
        ):
            await until(
                lambda: agent.applied and len(agent.target_ids) == 4 and agent.listeners,
                what=lambda: agent.applied,
            )
            asked = {probe.namespace: probe for probe in agent.applied[-1].probes}
            report = pb.Report(
                instance_id=agent.instance_id,
                generation=agent.applied[-1].generation,
                probes=[report_of(agent, tenant) for tenant in TENANTS],
                overhead=pb.Overhead(cpu_percent=31.4, measured=True),
            )
            agent.send(report)
            await until(is_complete, what=lambda: api.statuses)
    finally:
        await agent.stop()

    for tenant in TENANTS:
        shown, probe = api.statuses[f"{tenant}-probe"], asked[f"{tenant}-team"]
        text = json.dumps(shown)
        is_seeing = tenant in seeing
        assert tenant in text
        assert other(tenant) not in text
        assert bool(OF_THE_NODE.search(text)) == is_seeing, text
        assert ("nodeContext" in shown) == is_seeing
        assert probe.node_figures == is_seeing
        assert ("irq" in probe.modules) == is_seeing
    assert all(not pod["stages"] for pod in api.statuses["cobalt-probe"]["pods"])
