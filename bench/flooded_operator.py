"""The real operator with an API server, a legitimate agent, and hostile ones."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.hostile_agents import HostileAgents, hostile_agents
from bench.watched_api import WatchedApi
from bench.watched_process import LOOPBACK, WatchedProgram, counters, free_port, get, running
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tools.fakes.agent import AGENT_NAME, OPERATOR_NAME, Authority, FakeAgent, measurement
from tools.fakes.samples import pod_body

GOOD = "good"
_PROBE = "checkout"
_UID = f"uid-{_PROBE}"
_INTERVAL_S = 1
_PODS = 20
_POLL_S = 0.001
_COUNTED = {
    "latencyprobe_operator_corrupt_reports_total": "bad parts",
    "latencyprobe_operator_excessive_streams_total": "streams ended",
}


class FloodedOperator:
    """A running operator. Made by `flooded_operator`."""

    def __init__(
        self,
        program: WatchedProgram,
        *,
        metrics_port: int,
        health_port: int,
        api: WatchedApi,
        good: FakeAgent,
        hostile: HostileAgents,
    ) -> None:
        self.program = program
        self.metrics_port = metrics_port
        self.hostile = hostile
        self._health_port = health_port
        self._api = api
        self._good = good

    async def measure(self) -> None:
        """Have the legitimate agent report its window each second, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            if self._good.applied:
                figures = {target_id: measurement(1000) for target_id in self._good.target_ids}
                self._good.report(_UID, figures)

    async def report(self) -> None:
        """Have the legitimate agent report, until the operator acknowledges it.

        The report is on a probe that has ended: its acknowledgement does not wait for others.
        """
        if not (self._good.applied and self._good.listeners):
            raise EOFError("the operator is not connected to its agent")
        before = self._acknowledged
        report = pb.Report(instance_id=self._good.instance_id, probes=[pb.ProbeReport(id="ended")])
        report.generation = self._good.applied[-1].generation
        self._good.send(report)
        while self._acknowledged == before:
            await asyncio.sleep(_POLL_S)

    @property
    def _acknowledged(self) -> int:
        return self._good.heard[-1].acknowledged if self._good.heard else 0

    @property
    def connections(self) -> int:
        """The number of connections to the legitimate agent since the start: 1 if all is well."""
        return len(self._good.clients)

    async def health(self) -> None:
        """Ask the event loop that does the work for its health."""
        await get(self._health_port, "/healthz")

    async def scrape(self) -> None:
        """Read the metrics."""
        await get(self.metrics_port, "/metrics")

    async def refusals(self) -> dict[str, int]:
        """Return the number of refused parts of reports, and of streams that were ended."""
        page = (await get(self.metrics_port, "/metrics")).decode()
        return {text: sum(counters(page, name).values()) for name, text in _COUNTED.items()}

    @property
    def writes(self) -> int:
        """The number of statuses that were written."""
        return len(self._api.patches)

    async def write_again(self, writes: int) -> None:
        """Raise EOFError unless more statuses were written, with that agent's node as ready."""
        if self.writes <= writes:
            raise EOFError("no status was written")
        for node in self._api.statuses[_PROBE].get("nodes", ()):
            if node["name"] == GOOD:
                raise EOFError(f"the status shows a node that is not ready: {node}")


@asynccontextmanager
async def flooded_operator() -> AsyncIterator[FloodedOperator]:
    """Run an operator with all of its cluster, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as name:
        folder = Path(name)
        authority = Authority.make(folder / "tls")
        tls = authority.issue(AGENT_NAME)
        good = FakeAgent(tls)
        await good.start()
        try:
            async with hostile_agents(tls) as hostile:
                ports = {GOOD: good.port, **hostile.ports}
                api = _cluster(ports)
                async with api.serve() as client:
                    kubeconfig = folder / "kubeconfig"
                    kubeconfig.write_text(_kubeconfig(client._configuration.host))
                    metrics_port, health_port = free_port(), free_port()
                    arguments = _arguments(kubeconfig, authority.issue(OPERATOR_NAME), ports)
                    with running(
                        *("operator", *arguments),
                        *("--metrics-address", f"{LOOPBACK}:{metrics_port}"),
                        *("--health-address", f"{LOOPBACK}:{health_port}"),
                        log=folder / "log",
                    ) as program:
                        operator = FloodedOperator(
                            program,
                            metrics_port=metrics_port,
                            health_port=health_port,
                            api=api,
                            good=good,
                            hostile=hostile,
                        )
                        measuring = asyncio.create_task(operator.measure())
                        try:
                            yield operator
                        finally:
                            measuring.cancel()
        finally:
            await good.stop()


def _cluster(nodes: dict[str, int]) -> WatchedApi:
    api = WatchedApi()
    api.add_probe(_PROBE, interval=f"{_INTERVAL_S}s")
    for node in nodes:
        for number in range(_PODS):
            body = pod_body(f"{node}-{number}", node=node, labels={"app": _PROBE})
            api.set(body, quietly=True)
    return api


def _arguments(kubeconfig: Path, tls: ClientTlsFiles, ports: dict[str, int]) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--ca-file={tls.ca}",
        f"--cert-file={tls.certificate}",
        f"--key-file={tls.key}",
        "--watch-namespace=shop",
        *(f"--agent={node}={LOOPBACK}:{port}" for node, port in ports.items()),
    ]


def _kubeconfig(server: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bench", "cluster": {"server": server}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "current-context": "bench",
        }
    )
