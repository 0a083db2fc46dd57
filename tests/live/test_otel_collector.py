"""A real collector of OpenTelemetry takes the metrics, and has all that was sent."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from latencyprobe.otlp.encoding import Encoder
from latencyprobe.otlp.pushing import pushed
from latencyprobe.otlp.resources import ProcessResource
from latencyprobe.otlp.settings import OtlpEndpoint, OtlpSettings
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probe_figures import ProbeSnapshot
from tests.patience import patient
from tests.unit.agent.running import until
from tests.unit.agent.sample_figures import sample_figures
from tests.unit.otlp_points import ExponentialPoint, Exported, exported
from tests.unit.otlp_receiver import HOST, Pki
from tools.otel_collector import obtain_collector
from tools.progress import say_on_stderr

# The first run on a machine compiles the collector.
pytestmark = [pytest.mark.thorough, pytest.mark.timeout(patient(1800))]
ATTRIBUTES = {"k8s.node.name": "blue", "service.instance.id": "one"}


@dataclass(frozen=True)
class RealCollector:
    """A collector, which asks for a certificate and writes what it takes to a file."""

    program: Path
    pki: Pki
    port: int

    @property
    def _output(self) -> Path:
        return self.pki.folder / "metrics.json"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it until the end of the block."""
        configuration = self.pki.folder / "collector.yaml"
        configuration.write_text(yaml.safe_dump(self._configuration()))
        with (
            (self.pki.folder / "collector.log").open("wb") as log,
            subprocess.Popen(
                [self.program, f"--config=file:{configuration}"], stdout=log, stderr=log
            ) as process,
        ):
            try:
                yield
            finally:
                has_ended = process.poll() is not None
                process.kill()
            assert not has_ended, Path(log.name).read_text()

    def _configuration(self) -> dict[str, object]:
        own = self.pki.authority.issue(HOST, server=True, client=False, days=1)
        certificate, key = self.pki.folder / "server.crt", self.pki.folder / "server.key"
        certificate.write_bytes(own.certificate_pem)
        key.write_bytes(own.key_pem)
        files = {"cert_file": certificate, "key_file": key, "client_ca_file": self.pki.ca()}
        tls = {name: str(path) for name, path in files.items()}
        grpc = {"endpoint": f"{HOST}:{self.port}", "tls": tls}
        return {
            "receivers": {"otlp": {"protocols": {"grpc": grpc}}},
            "exporters": {"file": {"path": str(self._output), "flush_interval": "100ms"}},
            "service": {
                "pipelines": {"metrics": {"receivers": ["otlp"], "exporters": ["file"]}},
                "telemetry": {"metrics": {"level": "none"}},
            },
        }

    def taken(self) -> list[Exported]:
        """All points of the file; the last line may be unfinished."""
        text = self._output.read_text() if self._output.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        return exported(json_format.Parse(line, ExportMetricsServiceRequest()) for line in lines)


@pytest.fixture
def collector(tmp_path: Path) -> RealCollector:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return RealCollector(obtain_collector(say_on_stderr), Pki(tmp_path), port)


class Everything(Collector):
    """The families of several registries."""

    def __init__(self, *registries: CollectorRegistry) -> None:
        self._registries = registries

    def collect(self) -> Iterator[object]:  # type: ignore[override]
        for registry in self._registries:
            yield from registry.collect()


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry with the figures of agent and operator, which do not change."""
    operator = OperatorMetrics()
    stages = {"rx.total": (1_000, 2_000, 3_000)}
    operator.figures.show("uid", ProbeSnapshot("shop", "checkout", 1, {"Ready": 1}, stages))
    made = CollectorRegistry()
    made.register(Everything(AgentMetrics().registry, sample_figures(), operator.registry))
    return made


@contextlib.asynccontextmanager
async def pushing(collector: RealCollector, registry: CollectorRegistry) -> AsyncIterator[None]:
    endpoint = OtlpEndpoint(HOST, collector.port)
    settings = OtlpSettings(endpoint, collector.pki.client(), interval_s=0.2, attributes=ATTRIBUTES)
    async with pushed(settings, registry, "agent"):
        yield


def contents(points: Iterable[Exported]) -> Counter[str]:
    """The points without their times, and without those of the push itself."""
    found: Counter[str] = Counter()
    for each in points:
        if not each.metric.name.startswith("latencyprobe.otlp."):
            point = type(each.point).FromString(each.point.SerializeToString())
            point.ClearField("time_unix_nano")
            point.ClearField("start_time_unix_nano")
            point.ClearField("attributes")
            if isinstance(point, ExponentialPoint) and not point.negative.bucket_counts:
                point.ClearField("negative")  # a collector writes it empty
            names = (each.metric.name, each.metric.unit, each.metric.WhichOneof("data"))
            key = (*names, sorted(each.resource.items()), sorted(each.attributes.items()), point)
            found[repr(key)] += 1
    return found


def times(collector: RealCollector) -> set[int]:
    """The times of the pushes that it has taken."""
    return {each.point.time_unix_nano for each in collector.taken()}


async def test_a_collector_has_every_point_as_it_was_sent(
    collector: RealCollector, registry: CollectorRegistry
) -> None:
    resource = ProcessResource.make("agent", ATTRIBUTES)
    requests = Encoder(resource).requests(registry.collect())
    sent = contents(exported(ExportMetricsServiceRequest.FromString(r.data) for r in requests))

    with collector.running():
        async with pushing(collector, registry):
            await until(collector.taken, "a push", seconds=patient(60))
        taken = contents(collector.taken())

    assert taken.keys() == sent.keys()
    pushes = min(taken.values())
    assert taken == Counter({key: number * pushes for key, number in sent.items()})


async def test_a_collector_that_was_away_gets_what_was_queued(
    collector: RealCollector, registry: CollectorRegistry
) -> None:
    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, labels) or 0

    async with pushing(collector, registry):
        await until(
            lambda: value("latencyprobe_otlp_queued_bytes") > 50_000, "a queue", seconds=patient(60)
        )
        began_ns = time.time_ns()
        with collector.running():
            # More than what was queued: those of the outage and later ones.
            await until(lambda: len(times(collector)) > 5, "pushes", seconds=patient(120))
    taken = collector.taken()

    assert min(times(collector)) < began_ns < max(times(collector))
    assert value("latencyprobe_otlp_lost_points_total", reason="queue_full") == 0
    starts = {
        each.point.start_time_unix_nano
        for each in taken
        if each.metric.name == "latencyprobe.pod.missed"
    }
    assert len(starts) == 1
