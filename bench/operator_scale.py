"""What the operator costs in a large cluster: python -m bench.operator_scale [NODES] [PODS].

One probe over PODS pods on NODES nodes (by default 10,000 on 1,000), an interval of 10 s and a
window of 60 s. A second process simulates the API server and the agents, over real HTTP and real
gRPC with TLS. Every agent sends a summary of all stages each interval, and the pods in full that
the operator wants. The whole operator runs, except kopf. Prints CPU (percent of one core) and RSS,
minute by minute.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from kubernetes.aio.client.configuration import Configuration

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.stages import STAGES
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.source import AgentSource
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probes.document import size_bytes
from tools.fakes.agent import AGENT_NAME, OPERATOR_NAME, Authority, FakeAgent
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, pod_body, probe_body

INTERVAL_SECONDS = 10
MINUTES = 2


def main() -> None:
    """Run the simulation beside the operator, and print the operator's cost."""
    nodes, pods = (int(each) for each in (sys.argv[1:] + ["1000", "10000"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.make(Path(folder))
        agent_tls, operator_tls = authority.issue(AGENT_NAME), authority.issue(OPERATOR_NAME)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        simulation = context.Process(target=simulate, args=(theirs, agent_tls, nodes, pods))
        simulation.start()
        try:
            asyncio.run(operate(ours.recv(), operator_tls))
        finally:
            simulation.terminate()
            simulation.join()


# --------------------------------------------------------------------------- simulation


def simulate(parent: Connection, tls: ClientTlsFiles, nodes: int, pods: int) -> None:
    """Run the cluster and its agents."""
    asyncio.run(_simulate(parent, tls, nodes, pods))


async def _simulate(parent: Connection, tls: ClientTlsFiles, nodes: int, pods: int) -> None:
    api = FakeApi()
    for index in range(pods):
        api.set(pod_body(f"checkout-{index:05}", node=f"node-{index % nodes:04}"), quietly=True)
    agents = {f"node-{index:04}": FakeAgent(tls) for index in range(nodes)}
    for agent in agents.values():
        await agent.start()
    async with api.serve() as client:
        host = client._configuration.host
        parent.send((host, {node: agent.address for node, agent in agents.items()}))
        figures = [_figures() for _ in range(20)]
        await asyncio.gather(*(_report(agent, figures) for agent in agents.values()))


async def _report(agent: FakeAgent, figures: list[Measurement]) -> None:
    await asyncio.sleep(random.uniform(0, INTERVAL_SECONDS))
    while True:
        if agent.listeners and agent.applied:
            for probe in agent.applied[-1].probes:
                measured = {target.id: random.choice(figures) for target in probe.targets}
                agent.windows.forget_figures(probe.id)
                agent.report(probe.id, measured)
        await asyncio.sleep(INTERVAL_SECONDS)


def _figures() -> Measurement:
    """Return a thousand packets, log-normal, which fill some thirty buckets of each stage."""
    scale = random.uniform(9, 12)
    return Measurement(
        {
            stage.name: StageMeasurement(
                Histogram.of([round(random.lognormvariate(scale, 0.5)) for _ in range(1000)])
            )
            for stage in STAGES
        },
        {"retransmits": 3},
    )


# ------------------------------------------------------------------------------ operator


async def operate(simulated: tuple[str, dict[str, str]], tls: ClientTlsFiles) -> None:
    """Run the operator's controller with one probe."""
    host, addresses = simulated
    cluster = _client(host)
    controller = Controller(
        cluster,
        credentials=tls.credentials,
        agents=AgentSource("", "", 0, addresses),
        metrics=OperatorMetrics(),
    )
    print(f"before any agent: RSS {rss_mib():.0f} MiB")
    await controller.start()
    began = time.monotonic()
    body = probe_body(interval=f"{INTERVAL_SECONDS}s", selector={})
    probe = controller.add(body)
    running = asyncio.create_task(probe.run())
    while controller._fleet.states().get("Ready", 0) < len(addresses):
        await asyncio.sleep(0.1)
    seconds = time.monotonic() - began
    print(f"all {len(addresses)} agents attached after {seconds:.1f} s, RSS {rss_mib():.0f} MiB")
    lag = asyncio.create_task(_longest_block())
    for minute in range(1, MINUTES + 1):
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(60)
        percent = 100 * (time.process_time() - cpu) / (time.monotonic() - wall)
        print(f"minute {minute}: {percent:.0f} % of one core, RSS {rss_mib():.0f} MiB", flush=True)
    _tell(probe._writer.previous, lag)
    running.cancel()
    await controller.close()
    await cluster.close()


def _client(host: str) -> Cluster:
    configuration = Configuration()
    configuration.host = host
    return Cluster(configuration)


_blocked = [0.0]


async def _longest_block() -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.01)
        _blocked[0] = max(_blocked[0], time.monotonic() - began - 0.01)


def _tell(status: Json, lag: asyncio.Task[None]) -> None:
    lag.cancel()
    print(f"status: {size_bytes(status)} bytes, {status['targets']}, {status['summary']}")
    print(f"event loop blocked for at most {_blocked[0]:.2f} s")
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def rss_mib() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
