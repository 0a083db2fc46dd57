"""Thousands of agents and an API server in one process, for `bench.operator_scale`.

They use the real protocol over real TLS. All agents share one port; each connection is an agent of
its own. Their messages are made of encoded templates: a process of Python could not encode as much
as thousands of nodes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp

from bench.simulated_cluster import Counts, Scenario
from latencyprobe.domain.histogram import POSITIONS, Histogram, bounds_of
from latencyprobe.domain.measurement import NOTHING_OF_THE_NODE, Measurement, StageMeasurement
from latencyprobe.domain.report import report_on
from latencyprobe.domain.score import TROUBLED, score_of
from latencyprobe.domain.stages import DEFAULT_MODULES, stages_of
from latencyprobe.domain.summary import PodChoice, PodReport, PodScore, ProbeSummary, worst_first
from latencyprobe.protocol.measurements import MAX_REQUEST_BYTES, PROTOCOL_VERSION
from latencyprobe.protocol.summaries import choice_from_proto, pod_to_proto, summary_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tools.fakes.agent import AGENT_NAME, LOOPBACK, OPERATOR_NAME, Authority, Context
from tools.fakes.api import FakeApi

_STAGES = [stage.name for stage in stages_of(DEFAULT_MODULES)]
_TEMPLATES = 40
_BUCKETS_OF_A_STAGE = 60
_SAMPLES_OF_A_STAGE = 20_000
# The field numbers of ProbeReport in Report, and of `summary` and `pods` in ProbeReport.
_PROBES, _SUMMARY, _PODS = 4, 7, 8
_LENGTH_DELIMITED = 2
# What an agent accepts; see `serving/service.py`.
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


# ------------------------------------------------------------------------------- process


def simulate(parent: Connection, folder: Path, scenario: Scenario, counts: Counts) -> None:
    """Serve until the process is ended.

    Sends the API server's URL, the agents' address and the operator's certificate in this folder.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_simulate(parent, folder, scenario, counts))


async def _simulate(parent: Connection, folder: Path, scenario: Scenario, counts: Counts) -> None:
    authority = Authority.make(folder)
    api = CountingApi(counts)
    api.probes = scenario.probe_bodies()
    for body in scenario.pod_bodies():
        api.set(body, quietly=True)
    agents = Agents(scenario.interval_s, counts)
    port = await agents.start(authority.issue(AGENT_NAME))
    async with api.serve() as client:
        parent.send(
            (
                client._configuration.host,
                f"{LOOPBACK}:{port}",
                authority.issue(OPERATOR_NAME),
            )
        )
        await asyncio.Event().wait()


class CountingApi(FakeApi):
    """An API server that counts the requests and the bytes of statuses."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    async def _pods(self, request: web.Request) -> web.StreamResponse:
        self._counts.requests += 1
        return await super()._pods(request)

    async def _patch(self, request: web.Request) -> web.Response:
        self._counts.requests += 1
        self._counts.status_writes += 1
        self._counts.status_bytes += request.content_length or 0
        self.patches.clear()
        return await super()._patch(request)


# -------------------------------------------------------------------------------- agents


@dataclass(slots=True)
class _Pod:
    """A pod of one probe. `usual_ns`: the score around which its scores vary."""

    uid: str
    name: str
    container: str
    usual_ns: float


@dataclass(slots=True)
class _Window:
    """One probe on one node. `places`: the scores of the newest summary."""

    id: str
    max_pods: int
    choice: PodChoice
    pods: dict[str, _Pod]
    places: tuple[PodScore, ...] = ()
    sent: set[str] = field(default_factory=set)
    begin_s: float = 0.0
    end_s: float = 0.0


class _Agent:
    """The state of one connection."""

    def __init__(self, number: int) -> None:
        self.instance_id = f"instance-{number}"
        self.generation = 0
        self.windows: dict[str, _Window] = {}
        self.applied = asyncio.Event()


class Agents:
    """All agents, behind one port."""

    def __init__(self, interval_s: float, counts: Counts) -> None:
        self._interval_s = interval_s
        self._counts = counts
        self._agents: dict[str, _Agent] = {}
        self._summaries = [_summary_template() for _ in range(_TEMPLATES)]
        self._pods = sorted(_pod_template() for _ in range(_TEMPLATES))
        self._scores = [score for score, _ in self._pods]
        self._server: grpc.aio.Server | None = None

    async def start(self, tls: ClientTlsFiles) -> int:
        """Serve over mutual TLS; return the port."""
        credentials = grpc.ssl_server_credentials(
            [(tls.key.read_bytes(), tls.certificate.read_bytes())],
            root_certificates=tls.ca.read_bytes(),
            require_client_auth=True,
        )
        self._server = grpc.aio.server(options=_OPTIONS)
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetNodeInfo": grpc.unary_unary_rpc_method_handler(
                self._describe,
                pb.GetNodeInfoRequest.FromString,
                pb.NodeInfo.SerializeToString,
            ),
            "Apply": grpc.unary_unary_rpc_method_handler(
                self._apply, pb.DesiredState.FromString, pb.ApplyResult.SerializeToString
            ),
            # Its messages are encoded already.
            "WatchReports": grpc.stream_stream_rpc_method_handler(
                self._watch, pb.WatchReportsRequest.FromString, None
            ),
        }
        service = "latencyprobe.v1.NodeAgent"
        handler = grpc.method_handlers_generic_handler(service, methods)
        self._server.add_generic_rpc_handlers((handler,))
        port = self._server.add_secure_port(f"{LOOPBACK}:0", credentials)
        await self._server.start()
        return port

    def _of(self, context: Context) -> _Agent:
        peer = context.peer()
        if peer not in self._agents:
            self._agents[peer] = _Agent(len(self._agents))
            self._counts.connections += 1
        return self._agents[peer]

    async def _describe(self, _request: pb.GetNodeInfoRequest, context: Context) -> pb.NodeInfo:
        return pb.NodeInfo(
            agent_version="0.1.0",
            protocol_version=PROTOCOL_VERSION,
            instance_id=self._of(context).instance_id,
            kernel_release="6.18.0",
            coverage=_COVERAGE,
        )

    async def _apply(self, request: pb.DesiredState, context: Context) -> pb.ApplyResult:
        agent = self._of(context)
        agent.generation = request.generation
        agent.windows = {
            probe.id: agent.windows.get(probe.id) or self._window(probe) for probe in request.probes
        }
        agent.applied.set()
        return pb.ApplyResult(
            generation=request.generation,
            probes=[
                pb.ProbeStatus(id=probe.id, targets=map(_attached, probe.targets))
                for probe in request.probes
            ],
            coverage=_COVERAGE,
        )

    def _window(self, probe: pb.Probe) -> _Window:
        pods = {
            target.container.pod_uid: _Pod(
                target.container.pod_uid,
                target.container.pod_name,
                target.container.container_name,
                random.choice(self._scores) * random.lognormvariate(0, 0.5),
            )
            for target in probe.targets
        }
        return _Window(probe.id, probe.max_pods, choice_from_proto(probe.pods_in_full), pods)

    # ---------------------------------------------------------------------- reports

    async def _watch(
        self, requests: AsyncIterator[pb.WatchReportsRequest], context: Context
    ) -> AsyncIterator[bytes]:
        agent = self._of(context)
        # As agents do; see `serving/service.py`.
        context.set_compression(grpc.Compression.Gzip)
        queue: asyncio.Queue[list[bytes]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._hear(agent, requests, queue)),
            asyncio.create_task(self._report(agent, queue)),
        ]
        try:
            for sequence in itertools.count(1):
                probes = await queue.get()
                report = pb.Report(
                    instance_id=agent.instance_id,
                    generation=agent.generation,
                    sequence=sequence,
                    coverage=_COVERAGE if sequence == 1 else (),
                    overhead=pb.Overhead(cpu_percent=random.uniform(0.1, 0.5), measured=True),
                )
                message = report.SerializeToString() + b"".join(probes)
                self._counts.reports += len(probes)
                self._counts.report_bytes += len(message)
                yield message
        finally:
            for task in tasks:
                task.cancel()

    async def _hear(
        self,
        agent: _Agent,
        requests: AsyncIterator[pb.WatchReportsRequest],
        queue: asyncio.Queue[list[bytes]],
    ) -> None:
        async for request in requests:
            for wanted in request.wanted:
                if window := agent.windows.get(wanted.probe_id):
                    window.choice = choice_from_proto(wanted.choice)
                    if more := self._chosen(window):
                        queue.put_nowait([_part(_PROBES, _probe_report(window) + more)])

    async def _report(self, agent: _Agent, queue: asyncio.Queue[list[bytes]]) -> None:
        await agent.applied.wait()
        at = time.monotonic() + random.uniform(0, self._interval_s)
        while True:
            await asyncio.sleep(at - time.monotonic())
            # Probes of one interval share a reading, and a message.
            probes = [_part(_PROBES, self._summarised(each)) for each in agent.windows.values()]
            if probes:
                queue.put_nowait(probes)
            at += self._interval_s

    def _summarised(self, window: _Window) -> bytes:
        now = time.time()
        window.begin_s, window.end_s = window.end_s or now - self._interval_s, now
        bad = TROUBLED if self._counts.all_bad else 0
        places = (
            PodScore(bad + round(pod.usual_ns * math.exp(random.gauss(0, 0.1))), pod.uid)
            for pod in window.pods.values()
        )
        window.places = worst_first(places, window.max_pods)
        window.sent.clear()
        summary = pb.ProbeSummary(
            verdicts={"SlowReader" if bad else "None": len(window.pods)},
            scores=[pb.PodScore(pod_uid=each.pod_uid, score=each.score) for each in window.places],
        )
        summarised = random.choice(self._summaries) + summary.SerializeToString()
        return _probe_report(window) + _part(_SUMMARY, summarised) + self._chosen(window)

    def _chosen(self, window: _Window) -> bytes:
        """Return the chosen pods in full that the newest summary lacked."""
        parts = []
        for place in window.choice.of(window.places):
            if place.pod_uid not in window.sent:
                window.sent.add(place.pod_uid)
                parts.append(_part(_PODS, self._in_full(window.pods[place.pod_uid], place.score)))
        self._counts.pods_in_full += len(parts)
        return b"".join(parts)

    def _in_full(self, pod: _Pod, score: int) -> bytes:
        index = min(bisect_left(self._scores, score % TROUBLED), len(self._pods) - 1)
        own = pb.PodReport(pod_uid=pod.uid, name=pod.name, containers=[pod.container], score=score)
        if score >= TROUBLED:
            own.verdict.bottleneck = "SlowReader"
        return self._pods[index][1] + own.SerializeToString()


def _probe_report(window: _Window) -> bytes:
    message = pb.ProbeReport(id=window.id, begin=_timestamp(window.begin_s))
    message.end.CopyFrom(_timestamp(window.end_s))
    return message.SerializeToString()


def _timestamp(seconds: float) -> Timestamp:
    nanoseconds = round(seconds * 1e9)
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def _part(number: int, payload: bytes) -> bytes:
    """Encode a field that is a message. Parts of a message that follow each other are merged."""
    return bytes((number << 3 | _LENGTH_DELIMITED,)) + _varint(len(payload)) + payload


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _attached(target: pb.Target) -> pb.TargetStatus:
    return pb.TargetStatus(
        id=target.id,
        state=pb.TargetStatus.ATTACHED,
        pids=[4242],
        cgroup=f"/kubepods/burstable/pod{target.container.pod_uid}",
    )


_COVERAGE = [
    pb.StageCoverage(name=name, state=pb.StageCoverage.ACTIVE, hook="tp_btf/tcp_rcv_space_adjust")
    for name in _STAGES
]


# ----------------------------------------------------------------------------- templates


def _summary_template() -> bytes:
    """Return an encoded summary without scores and verdicts."""
    summary = ProbeSummary(merged=_measurement(_SAMPLES_OF_A_STAGE))
    return summary_to_proto(summary).SerializeToString()


def _pod_template() -> tuple[int, bytes]:
    """Return the score of a pod, and its report without its name."""
    report = report_on(
        _measurement(_SAMPLES_OF_A_STAGE // 10), DEFAULT_MODULES, NOTHING_OF_THE_NODE
    )
    score = score_of(report) % TROUBLED
    return score, pod_to_proto(PodReport("", "", (), score, report)).SerializeToString()


def _measurement(samples: int) -> Measurement:
    centre = random.uniform(70, 100)
    stages = {name: StageMeasurement(_histogram(centre, samples)) for name in _STAGES}
    return Measurement(stages, {"retransmits": random.randrange(1, 100), "zeroWindows": 3})


def _histogram(centre: float, samples: int) -> Histogram:
    """Return durations of about log-normal distribution, in as many buckets as are busy."""
    middle = round(centre + random.uniform(-10, 10))
    positions: Sequence[int] = range(
        max(middle - _BUCKETS_OF_A_STAGE // 2, 1),
        min(middle + _BUCKETS_OF_A_STAGE // 2, POSITIONS - 1),
    )
    width = _BUCKETS_OF_A_STAGE / 8
    buckets = {
        position: 1
        + round(
            samples
            / (width * math.sqrt(2 * math.pi))
            * math.exp(-((position - middle) ** 2) / (2 * width**2))
            * random.uniform(0.8, 1.2)
        )
        for position in positions
    }
    upper = {position: math.floor(bounds_of(position)[1]) for position in buckets}
    return Histogram(
        buckets,
        sum(upper[position] * count for position, count in buckets.items()),
        upper[positions[0]],
        upper[positions[-1]],
    )
