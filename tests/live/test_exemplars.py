"""An agent that shows exemplars has those of slow packets, though no client traces."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics

from latencyprobe.domain.durations import parse_ns
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from tests.live.agents import running_agent
from tests.live.jobs import sandbox, start_slow_reader
from tests.live.pods import pods_back_to_back
from tests.live.sockets import listen
from tests.live.targets import made_cgroup, until
from tests.patience import patient
from tests.unit.agent.states import seconds, state
from tests.unit.exposed import families, labels

# The agent compiles.
pytestmark = pytest.mark.timeout(patient(480))
STAGES = "latencyprobe_stage_seconds"
UID = "3c5de1f7-6a04-4c8f-9d0b-51a7e2b6c894"
LIMIT_MS, DELAY_MS = 100, 400
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)
PROBE = pb.Probe(
    id="each",
    name="shop/each",
    namespace="shop",
    modules=["rx", "tx"],
    interval=seconds(0.5),
    pods=[pb.Pod(uid=UID, name="slow", containers=["main"])],
    metrics_per_pod=True,
)


@dataclass(frozen=True)
class Shown:
    """An exemplar, with the labels of its series that tests compare."""

    pod: str
    stage: str
    value_s: float
    labels: dict[str, str]


def page(address: str, accept: str) -> bytes:
    with urlopen(
        Request(f"http://{address}/metrics", headers={"Accept": accept}), timeout=patient(10)
    ) as answer:
        return bytes(answer.read())


def in_text(address: str) -> Iterator[Shown]:
    """The exemplars of the page as OpenMetrics."""
    text = page(address, OPENMETRICS).decode()
    for family in read_openmetrics(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.exemplar is not None:
                of_series, shown = sample.labels, sample.exemplar
                yield Shown(of_series["pod"], of_series["stage"], shown.value, dict(shown.labels))


def in_protobuf(address: str) -> Iterator[Shown]:
    """Those of the native histograms of the page."""
    for metric in families(page(address, PROTOBUF))[STAGES].metric:
        for shown in metric.histogram.exemplars:
            pod, stage = labels(metric)["pod"], labels(metric)["stage"]
            of_packet = {pair.name: pair.value for pair in shown.label}
            yield Shown(pod, stage, shown.value, of_packet)


def is_attached(stub: NodeAgentStub) -> bool:
    result = stub.Apply(state(PROBE), timeout=patient(240))
    return result.probes[0].targets[0].state == pb.TargetStatus.ATTACHED


def ends_of(answering: socket.socket) -> dict[str, str]:
    """Both ends of a server's connection, as the client's exemplars name them."""
    ends = {"remote": answering.getsockname(), "local": answering.getpeername()}
    return {name: f"{address}:{port}" for name, (address, port) in ends.items()}


def test_a_slow_packet_is_an_exemplar_though_no_client_traces(tmp_path: Path) -> None:
    path, log = tmp_path / "s" / "agent.sock", tmp_path / "log"
    options = ("--socket", str(path), "--metrics-address", "127.0.0.1:0")
    found: dict[Callable[[str], Iterator[Shown]], list[Shown]] = {}
    with (
        pods_back_to_back() as (client, server),
        running_agent(*options, "--exemplars", f"{LIMIT_MS}ms", log=log),
        grpc.insecure_channel(f"unix:{path}") as channel,
        made_cgroup(f"kubepods/pod{UID}") as directory,
        sandbox(client, directory),
        listen(server.namespace, server.address) as listener,
    ):
        address = log.read_text().split("metrics on ")[1].split()[0]
        stub = NodeAgentStub(channel)
        until(lambda: is_attached(stub), "the pod", seconds=patient(240))
        reader = start_slow_reader(client.namespace, directory / "main", server.address, DELAY_MS)
        answering, _ = listener.accept()
        with answering:
            ends = ends_of(answering)
            assert answering.recv(1) == b"q"
            answering.sendall(b"r" * 128)
            assert reader.wait(patient(60)) == 0
        for read in (in_text, in_protobuf):

            def has_exemplars(read: Callable[[str], Iterator[Shown]] = read) -> bool:
                found[read] = list(read(address))
                return any(map(is_of_the_reader, found[read]))

            until(has_exemplars, f"the reader's exemplar {read.__name__}", seconds=patient(60))

    assert "Traceback" not in log.read_text()
    for shown in found.values():
        # The machine may delay other packets of the container, too.
        (slow,) = (each for each in shown if is_of_the_reader(each))
        assert slow.pod == "slow"
        assert slow.labels.items() >= ends.items()
        assert slow.value_s * 1e9 >= parse_ns(slow.labels["rx_socket"]) * 0.995
        assert {each.stage for each in shown} <= {"rx.total", "tx.total"}


def is_of_the_reader(shown: Shown) -> bool:
    """True for the answer, which waited for the reader at least as long as that slept."""
    waited_ns = parse_ns(shown.labels.get("rx_socket", "0ns"))
    return shown.stage == "rx.total" and waited_ns >= DELAY_MS * 10**6
