"""A real Prometheus reads an agent's metrics: bucket by bucket what the agent reports.

The agent also pushes them by OTLP.
"""

from __future__ import annotations

import contextlib
import math
import queue
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.samples import Sample

from latencyprobe.commands.pki import Authority, Credential
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.histogram import FIRST_BUCKET, UNDERFLOW, bounds_of, position_of
from latencyprobe.domain.identities import AGENT_NAME
from latencyprobe.domain.packets import TracedPacket
from latencyprobe.domain.stages import TARGET_STAGES
from latencyprobe.exposition.page import metrics_page
from latencyprobe.protocol.packets import packet_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probe_figures import ObjectiveFigures, ProbeSnapshot
from tests.live.agents import running_agent
from tests.live.bucket_table import bucket_table
from tests.live.filled_boards import FilledBoards
from tests.live.jobs import answer_job, sandbox, start_datagrams, start_job
from tests.live.netfilter import DROP_OUTGOING, load_rules
from tests.live.operator_page import operator_page
from tests.live.otlp import NewestPush, received_pushes
from tests.live.pods import Pod, pods_back_to_back
from tests.live.prometheus import (
    DEBIANS,
    Labels,
    NativeSample,
    Program,
    Prometheus,
    prometheus,
    running_prometheus,
    scrape_job,
)
from tests.live.sockets import listen
from tests.live.targets import made_cgroup, until
from tests.patience import patient
from tests.unit.agent.states import seconds, state
from tests.unit.boards import ALL, queries
from tests.unit.exported import operator_metrics
from tests.unit.otlp_points import ExponentialPoint, Exported, exponential_buckets
from tools.progress import say_on_stderr
from tools.prometheus import obtain_prometheus

# The first test also starts an agent that compiles, and a Prometheus.
pytestmark = pytest.mark.timeout(patient(480))
# With it, the first test also compiles a Prometheus.
THOROUGH = (pytest.mark.thorough, pytest.mark.timeout(patient(3600)))
ALERTS = Path(__file__).parents[2] / "charts/latencyprobe/files/alerts.yaml"
UID = "7d1f6c0a-93b2-4e58-a1c4-2f0e5b8d9a37"
# The protocol admits what can be printed. An agent must not believe that it is a DNS name.
POD = 'job-"x\\{}'
REQUESTS = 100
PUSH = ("--otlp-insecure", "--otlp-interval", "1s")
TEXT, OPENMETRICS = "text/plain", "application/openmetrics-text;version=1.0.0"
Buckets = dict[int, int]
Stages = dict[str, pb.StageDelta]
Scraped = dict[str, tuple[Labels, NativeSample]]


def probe(name: str, *, per_pod: bool) -> pb.Probe:
    """A probe on one pod, as the operator asks for it."""
    return pb.Probe(
        id=name,
        name=f"shop/{name}",
        namespace="shop",
        modules=["rx", "tx", "tcp"],
        interval=seconds(0.5),
        window=seconds(3600),
        max_pods=5,
        pods_in_full=pb.PodChoice(most=5),
        pods=[pb.Pod(uid=UID, name=POD, containers=["main"])],
        metrics_per_pod=per_pod,
        # Ten cores: it is never reached.
        max_cpu_percent=1000,
    )


@dataclass
class Reports:
    """The reports of a stream, as they come: of each probe, the sum of all pods since its start."""

    by_stage: dict[str, list[Buckets]] = field(default_factory=dict)
    newest: dict[str, pb.ProbeReport] = field(default_factory=dict)

    def take(self, report: pb.ProbeReport) -> None:
        self.newest[report.id] = report
        for stage in report.summary.stages:
            self.by_stage.setdefault(stage.name, []).append(buckets_of(stage.histogram))

    def stages(self) -> Stages:
        """The newest sums, by stage."""
        return {stage.name: stage for stage in self.newest["each"].summary.stages}

    def samples(self, stage: str) -> int:
        found = self.newest.get("each")
        stages = found.summary.stages if found else ()
        return sum(sum(each.histogram.counts) for each in stages if each.name == stage)


def buckets_of(histogram: pb.Histogram) -> Buckets:
    return dict(zip(histogram.positions, histogram.counts, strict=True))


@contextlib.contextmanager
def watching(stub: NodeAgentStub) -> Iterator[Reports]:
    """Read and acknowledge reports."""
    reports = Reports()
    requests: queue.SimpleQueue[pb.WatchReportsRequest | None] = queue.SimpleQueue()
    requests.put(pb.WatchReportsRequest())
    stream = stub.WatchReports(iter(requests.get, None))

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            for report in stream:
                for each in report.probes:
                    reports.take(each)
                requests.put(pb.WatchReportsRequest(acknowledged=report.sequence))

    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield reports
    finally:
        stream.cancel()
        requests.put(None)
        reading.join()


@dataclass
class Scene:
    """An agent that measures a pod, what it reports, and a Prometheus that scrapes it.

    `by_text`: another one, which has no native histograms.
    """

    pod: Pod
    server: Pod
    cgroup: Path
    reports: Reports
    metrics: str
    operator: OperatorMetrics
    prometheus: Prometheus
    by_text: Prometheus
    stub: NodeAgentStub
    pushed: NewestPush
    jobs: int = 0

    def run_job(self) -> None:
        """One container of the pod, from its start to its end."""
        self.jobs += 1
        with listen(self.server.namespace, self.server.address) as listener:
            directory = self.cgroup / f"main-{self.jobs}"
            job = start_job(self.pod.namespace, directory, self.server.address, REQUESTS)
            answer_job(listener, REQUESTS)
            assert job.wait(patient(60)) == 0

    def until_scraped(self) -> None:
        """Wait until Prometheus has all replies; they are in the reports before."""
        requests = self.jobs * REQUESTS
        until(
            lambda: self.reports.samples("rx.total") >= requests,
            f"a report of {requests} replies",
            seconds=patient(60),
        )
        query = f"sum(histogram_count({metric('rx.total')}))"
        try:
            until(
                lambda: self.prometheus.value(query) == self.reports.samples("rx.total"),
                f"a scrape of {requests} replies",
                seconds=patient(60),
            )
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.prometheus.targets()}") from None


def metric(stage: str, probe_name: str = "each") -> str:
    return f'latencyprobe_stage_seconds{{probe="{probe_name}",stage="{stage}"}}'


@pytest.fixture(scope="module", params=["debians", pytest.param("newest", marks=THOROUGH)])
def program(request: pytest.FixtureRequest) -> Program:
    """Debian's Prometheus; and the newest, which has native histograms without a flag."""
    if request.param == "debians":
        return DEBIANS
    return Program(str(obtain_prometheus(say_on_stderr)), native_by_job=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, program: Program) -> Iterator[Scene]:
    """One for all tests: each adds its traffic."""
    folder, of_text = (tmp_path_factory.mktemp(name) for name in ("scene", "text"))
    socket, log = folder / "s" / "agent.sock", folder / "log"
    options = ("--socket", str(socket), "--metrics-address", "127.0.0.1:0", "--node-name", "blue")
    operator = operator_metrics(folder)
    with (
        pods_back_to_back() as (client, server),
        received_pushes() as (collector, pushed),
        running_agent(*options, *PUSH, "--otlp-endpoint", collector, log=log),
        grpc.insecure_channel(f"unix:{socket}") as channel,
        made_cgroup(f"kubepods/pod{UID}") as directory,
        sandbox(client, directory),
        operator_page(operator) as operator_address,
    ):
        address = log.read_text().split("metrics on ")[1].split()[0]
        # The chart's PodMonitor adds the label, too.
        scrapes = [
            {"targets": [address], "labels": {"node": "blue"}},
            {"targets": [operator_address]},
        ]
        stub = NodeAgentStub(channel)
        desired = state(probe("each", per_pod=True), probe("all", per_pod=False))
        stub.Apply(desired, timeout=patient(240))
        with (
            watching(stub) as reports,
            prometheus(
                folder, address, ALERTS, program=program, static_configs=scrapes
            ) as scraping,
            prometheus(of_text, address, program=program, native=False) as by_text,
        ):
            until(lambda: is_attached(stub, desired), "the pod", seconds=patient(60))
            yield Scene(
                *(client, server, directory, reports, address),
                *(operator, scraping, by_text, stub, pushed),
            )
    assert "Traceback" not in log.read_text()


def is_attached(stub: NodeAgentStub, desired: pb.DesiredState) -> bool:
    result = stub.Apply(desired, timeout=patient(120))
    return result.probes[0].targets[0].state == pb.TargetStatus.ATTACHED


def positions(sample: NativeSample) -> Buckets:
    """The counts by position: a native bucket is one of ours under another number."""
    return {
        round(8 * math.log2(upper)) - FIRST_BUCKET + 1: round(count)
        for upper, count in sample.buckets.items()
    }


def scraped(scene: Scene) -> Scraped:
    found = scene.prometheus.histograms('latencyprobe_stage_seconds{probe="each"}')
    return {labels["stage"]: (labels, sample) for labels, sample in found}


def until_reported(scene: Scene, read: Callable[[], Mapping[str, Buckets]], what: str) -> Stages:
    """Wait until these are the buckets of the newest report; the stages of that one.

    Some samples come after the reply, such as the acknowledgement of the last segment.
    """
    compared: list[Stages] = []

    def are_equal() -> bool:
        stages = scene.reports.stages()
        compared.append(stages)
        return read() == {name: buckets_of(each.histogram) for name, each in stages.items()}

    until(are_equal, what, seconds=patient(60))
    return compared[-1]


def until_equal(scene: Scene) -> tuple[Stages, Scraped]:
    """Wait until the newest scrape has the buckets of the newest report; the two."""
    scrapes: list[Scraped] = []

    def read() -> dict[str, Buckets]:
        scrapes.append(scraped(scene))
        return {name: positions(sample) for name, (_, sample) in scrapes[-1].items()}

    stages = until_reported(scene, read, "equal buckets of all stages")
    return stages, scrapes[-1]


def test_prometheus_has_the_buckets_of_the_reports(
    scene: Scene, prove: Callable[[str], None]
) -> None:
    for _ in range(2):
        scene.run_job()
        scene.until_scraped()
    stages, found = until_equal(scene)

    assert {"rx.total", "tx.total", "tcp.connect"} <= found.keys() == stages.keys()
    assert found.keys() <= {stage.name for stage in TARGET_STAGES}
    for name, (labels, sample) in found.items():
        histogram = stages[name].histogram
        for line in bucket_table(name, buckets_of(histogram), positions(sample)):
            prove(line)
        assert positions(sample) == buckets_of(histogram), name
        assert sample.count == sum(histogram.counts)
        assert sample.sum == pytest.approx(histogram.sum_ns / 1e9)
        assert pod_of(labels) == ("shop", POD, "blue")


def pod_of(labels: Labels) -> tuple[str, str, str]:
    return labels["namespace"], labels["pod"], labels["node"]


def test_a_scrape_during_traffic_lies_between_two_reports(scene: Scene) -> None:
    """The agent may read the kernel more often than it reports."""
    for _ in range(5):
        scene.run_job()
    scene.until_scraped()

    for stage in ("rx.total", "tx.total"):
        ((_, samples),) = scene.prometheus.history(f"{metric(stage)}[10m]")
        reports = sorted(scene.reports.by_stage[stage], key=total)
        assert samples
        for sample in map(positions, samples):
            before = [each for each in reports if total(each) <= total(sample)][-1:]
            after = [each for each in reports if total(each) >= total(sample)][:1]
            assert all(is_within(earlier, sample) for earlier in before)
            assert [is_within(sample, later) for later in after] == [True]
        counts = [sample.count for sample in samples]
        assert counts == sorted(counts)


def total(buckets: Buckets) -> int:
    return sum(buckets.values())


def is_within(buckets: Buckets, others: Buckets) -> bool:
    return all(count <= others.get(position, 0) for position, count in buckets.items())


def test_a_quantile_is_within_a_bucket_of_the_reports(scene: Scene) -> None:
    scene.run_job()
    scene.until_scraped()
    until_equal(scene)

    (pod,) = scene.reports.newest["each"].pods
    for stage in pod.stages:
        for quantile, ours_ns in ((0.5, stage.p50_ns), (0.9, stage.p90_ns), (0.99, stage.p99_ns)):
            theirs = scene.prometheus.value(f"histogram_quantile({quantile}, {metric(stage.name)})")
            assert theirs is not None
            assert abs(position_of(round(theirs * 1e9)) - position_of(ours_ns)) <= 1, stage


def test_the_sum_of_a_probe_is_that_of_its_pods(scene: Scene) -> None:
    scene.run_job()
    scene.until_scraped()
    until_equal(scene)
    ((labels, together),) = scene.prometheus.histograms(metric("rx.total", "all"))
    ((_, alone),) = scene.prometheus.histograms(metric("rx.total"))

    assert together == alone
    assert "pod" not in labels
    verdicts = {
        labels["latencyprobe_verdict"]: value
        for labels, value in scene.prometheus.values('latencyprobe_verdict{probe="each"}')
    }
    assert sum(verdicts.values()) == 1
    said = scene.reports.newest["each"].pods[0].verdict.bottleneck
    assert verdicts[said] == 1
    assert scene.prometheus.value(f'latencyprobe_pods{{probe="all",verdict="{said}"}}') == 1


@contextlib.contextmanager
def tracing(scene: Scene, limits_ns: dict[str, int]) -> Iterator[list[TracedPacket]]:
    """Trace packets of the pod's own probe; the packets, as they come."""
    limits = [pb.StageLimit(stage=stage, min_ns=ns) for stage, ns in limits_ns.items()]
    stream = scene.stub.Trace(pb.TraceRequest(probe_id="each", limits=limits))
    packets: list[TracedPacket] = []

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            for events in stream:
                packets.extend(map(packet_from_proto, events.packets))

    next(iter(stream))  # Comes once packets are reported.
    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield packets
    finally:
        stream.cancel()
        reading.join()


def test_slow_packets_of_a_trace_are_exemplars_in_each_format_that_has_them(
    scene: Scene,
) -> None:
    native = metric("rx.total")
    classic = native.replace("seconds{", "seconds_bucket{")
    by_text = scene.by_text
    for scraping in (scene.prometheus, by_text):
        assert scraping.exemplars('{__name__=~"latencyprobe.*"}') == []
    with tracing(scene, {"rx.total": 0}) as packets:
        scene.run_job()
        until(lambda: scene.prometheus.exemplars(native), "by protobuf", seconds=patient(60))
        until(lambda: by_text.exemplars(classic), "by OpenMetrics", seconds=patient(60))
        found = [*scene.prometheus.exemplars(native), *by_text.exemplars(classic)]
        others = by_text.exemplars(classic.replace("rx.total", "rx.socket"))
        until(lambda: len(packets) >= REQUESTS, "the trace's packets", seconds=patient(60))

    # In the text the time is a fraction of seconds, of which Prometheus takes whole milliseconds.
    traced = {
        (*shown_of(packet), packet.ended_unix_ns // 10**6 - late)
        for packet in packets
        for late in (0, 1)
    }
    for labels, exemplars in found:
        assert pod_of(labels) == ("shop", POD, "blue")
        for each in exemplars:
            shown = tuple(each.labels.get(name) for name in ("remote", "local", "rx_socket"))
            assert (round(each.value * 1e9), shown, each.ended_ms) in traced
            if "le" in labels:
                assert each.value <= float(labels["le"])
    # Its limit was of another stage.
    assert others == []


def shown_of(packet: TracedPacket) -> tuple[int, tuple[str, str, str]]:
    """The value and the labels that an exemplar of it has."""
    socket_time = format_ns(packet.stages_ns["rx.socket"])
    return packet.stages_ns["rx.total"], (str(packet.remote), str(packet.local), socket_time)


# ----------------------------------------------------------------- the boards of Grafana

# No pod of Kubernetes has such a name as this one, so that Grafana does not escape it.
CHOSEN = {"namespace": "shop", "probe": "each", "pod": ALL}


def show_status(scene: Scene, outcome: str = "missed") -> None:
    """Show the newest report as the operator does, with an objective and its outcome."""
    (pod,) = scene.reports.newest["each"].pods
    percentiles = {stage.name: (stage.p50_ns, stage.p90_ns, stage.p99_ns) for stage in pod.stages}
    p99_ns = percentiles["rx.total"][-1]
    objective = ObjectiveFigures("reads", "rx.total", 99, p99_ns // 2, p99_ns, outcome)
    snapshot = ProbeSnapshot(
        "shop", "each", 1, {"Ready": 1}, percentiles, (objective,), pod.verdict.bottleneck
    )
    scene.operator.figures.show("uid", snapshot)
    scene.operator.reports.inc()


def lose_datagrams(scene: Scene) -> None:
    """A container of the pod, some of whose datagrams its own netfilter drops."""
    directory = scene.cgroup / "sender"
    sender = start_datagrams(scene.pod.namespace, directory, scene.server.address, 10)
    assert sender.wait(patient(60)) == 0


@contextlib.contextmanager
def unanswered_request(scene: Scene) -> Iterator[None]:
    """A container of the pod that waits for an answer; it gets all of them at the end."""
    scene.jobs += 1
    with listen(scene.server.namespace, scene.server.address) as listener:
        directory = scene.cgroup / f"main-{scene.jobs}"
        job = start_job(scene.pod.namespace, directory, scene.server.address, REQUESTS)
        yield
        answer_job(listener, REQUESTS)
        assert job.wait(patient(60)) == 0


def test_each_panel_of_the_boards_shows_live_figures(
    scene: Scene, prove: Callable[[str], None]
) -> None:
    load_rules(scene.pod, DROP_OUTGOING)
    # Twice, since a rate takes two scrapes with different counts.
    for _ in range(2):
        lose_datagrams(scene)
        scene.run_job()
        scene.until_scraped()
        show_status(scene)

    filled = FilledBoards(scene.prometheus, CHOSEN)
    with unanswered_request(scene), contextlib.suppress(AssertionError):
        until(lambda: not filled.empty(), "figures in all panels", seconds=patient(60))
    for line in filled.lines():
        prove(line)
    assert [str(query) for query in queries() if query not in filled.shown] == []


def test_the_alerts_judge_live_figures(scene: Scene) -> None:
    scene.run_job()
    scene.until_scraped()

    def firing() -> dict[str, Labels]:
        return {
            name: active["labels"]
            for name, rule in scene.prometheus.alerts().items()
            for active in rule["alerts"]
            if active["state"] == "firing"
        }

    # The only one that waits for no time of its own.
    name = "LatencyProbeObjectiveMissed"
    show_status(scene, "missed")
    until(lambda: name in firing(), f"{name} to fire", seconds=patient(30))
    assert firing() == {
        name: {
            "alertname": name,
            "severity": "warning",
            "namespace": "shop",
            "probe": "each",
            "objective": "reads",
            "stage": "rx.total",
            "percentile": "p99",
        }
    }
    show_status(scene, "met")
    until(lambda: firing() == {}, f"{name} to heal", seconds=patient(30))
    rules = scene.prometheus.alerts()
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    assert rules["LatencyProbeNoLeader"]["state"] == "inactive"


@pytest.mark.parametrize(("panel", "total"), [("Received", "rx.total"), ("Sent", "tx.total")])
def test_the_areas_of_the_budget_add_up_to_the_mean_of_a_packet(
    scene: Scene, panel: str, total: str
) -> None:
    scene.run_job()
    scene.until_scraped()
    until_equal(scene)
    (query,) = (each for each in queries() if each.panel == f"{panel}: mean time by stage")

    # Since the start: a stage that was scraped first with its second sample has another rate.
    values = FilledBoards(scene.prometheus, CHOSEN).values(query.board)
    areas = re.sub(r"rate\((.+?)\[10m\]\)", r"\1", query.filled(values))
    packets = f"sum({metric(total)})"
    mean = f"(histogram_sum({packets}) / histogram_count({packets}))"
    assert "rate" not in areas
    assert scene.prometheus.value(f"sum({areas}) / {mean}") == pytest.approx(1, rel=1e-9)


def by_stage(push: Iterable[Exported], probe_name: str = "each") -> dict[str, Exported]:
    """The histograms of a probe in a push, by stage."""
    return {
        each.attributes["latencyprobe.stage"]: each
        for each in push
        if each.attributes["latencyprobe.probe"] == probe_name
    }


def pushed_positions(found: Exported) -> Buckets:
    """The counts by position: OTLP numbers a bucket by its lower bound."""
    point = found.point
    assert isinstance(point, ExponentialPoint)
    assert point.scale == 3
    counts = exponential_buckets(point).items()
    buckets = {index - FIRST_BUCKET + 2: count for index, count in counts}
    return {UNDERFLOW: point.zero_count, **buckets} if point.zero_count else buckets


def test_a_collector_has_the_buckets_of_the_reports(scene: Scene) -> None:
    scene.run_job()
    scene.until_scraped()
    until_equal(scene)
    pushes: list[list[Exported]] = []

    def pushed() -> dict[str, Buckets]:
        pushes.append(scene.pushed.newest("latencyprobe.stage.duration"))
        return {name: pushed_positions(each) for name, each in by_stage(pushes[-1]).items()}

    reported = until_reported(scene, pushed, "a push of all replies")

    assert {"rx.total", "tx.total", "tcp.connect"} <= reported.keys()
    for name, each in by_stage(pushes[-1]).items():
        assert isinstance(each.point, ExponentialPoint)
        histogram = reported[name].histogram
        assert each.point.count == sum(histogram.counts)
        assert each.point.sum == pytest.approx(histogram.sum_ns / 1e9)
        assert 0 < each.point.start_time_unix_nano < each.point.time_unix_nano
        resource = each.resource
        assert resource["service.name"] == "latencyprobe-agent"
        assert (resource["k8s.namespace.name"], resource["k8s.pod.name"]) == ("shop", POD)
        assert resource["host.name"] == "blue"
    together = by_stage(pushes[-1], "all")["rx.total"]
    assert pushed_positions(together) == buckets_of(reported["rx.total"].histogram)
    assert "k8s.pod.name" not in together.resource


def complaints(text: bytes) -> tuple[int, bytes]:
    """The exit status and the output of promtool."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_promtool_accepts_the_operators_metrics() -> None:
    metrics = OperatorMetrics()
    objective = ObjectiveFigures("reads", "rx.total", 99.9, 1, 1, "met")
    snapshot = ProbeSnapshot(
        "shop", "checkout", 1, {"Ready": 1}, {"rx.total": (1, 2, 3)}, (objective,), "Peer"
    )
    metrics.figures.show("uid", snapshot)
    assert complaints(metrics_page(metrics.registry)({}).body) == (0, b"")


def counts_by_stage(samples: list[Sample]) -> dict[str, float]:
    """The numbers of samples of a page's histograms."""
    counts = [each for each in samples if each.name.endswith("_count")]
    found = {each.labels["stage"]: each.value for each in counts}
    assert len(found) == len(counts)
    return found


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
def test_other_formats_have_the_same_samples_in_coarse_buckets(scene: Scene, accept: str) -> None:
    scene.run_job()
    scene.until_scraped()
    request = Request(f"http://{scene.metrics}/metrics", headers={"Accept": accept})
    read = read_text if accept == TEXT else read_openmetrics
    compared: list[tuple[Stages, str, list[Sample]]] = []

    def have_equal_counts() -> bool:
        stages = scene.reports.stages()
        with urlopen(request, timeout=patient(10)) as answer:
            text = answer.read().decode()
        (family,) = (each for each in read(text) if each.name == "latencyprobe_stage_seconds")
        samples = [each for each in family.samples if each.labels["probe"] == "each"]
        compared.append((stages, text, samples))
        return counts_by_stage(samples) == {
            name: sum(each.histogram.counts) for name, each in stages.items()
        }

    until(have_equal_counts, "a page of the newest report", seconds=patient(60))
    stages, text, samples = compared[-1]

    assert {each.labels["pod"] for each in samples} == {POD}
    for name, stage in stages.items():
        ours = buckets_of(stage.histogram)
        of_stage = [each for each in samples if each.labels["stage"] == name]
        for each in of_stage:
            if each.name.endswith("_bucket"):
                limit_ns = float(each.labels["le"]) * 1e9 * (1 + 1e-12)
                known = sum(n for position, n in ours.items() if bounds_of(position)[1] <= limit_ns)
                assert each.value == known
    if accept == TEXT:
        assert complaints(text.encode()) == (0, b"")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Reads an agent that wants a certificate or a token, by a job with each and by one without."""
    folder = tmp_path_factory.mktemp("guarded")
    servers, clients = Authority("servers"), Authority("clients")
    write(folder, "agent", servers.issue(AGENT_NAME, server=True, client=False, days=1))
    write(folder, "client", clients.issue("prometheus", server=False, client=True, days=1))
    (folder / "servers.crt").write_bytes(servers.credential.certificate_pem)
    (folder / "clients.crt").write_bytes(clients.credential.certificate_pem)
    (folder / "token").write_text("s3cret")
    options = (
        *("--socket", f"{folder}/s/agent.sock", "--metrics-address", "127.0.0.1:0"),
        *("--metrics-cert-file", f"{folder}/agent.crt"),
        *("--metrics-key-file", f"{folder}/agent.key"),
        *("--metrics-client-ca-file", f"{folder}/clients.crt"),
        *("--metrics-token-file", f"{folder}/token"),
    )
    tls = {"ca_file": f"{folder}/servers.crt", "server_name": AGENT_NAME}
    own = {"cert_file": f"{folder}/client.crt", "key_file": f"{folder}/client.key"}
    token = {"authorization": {"credentials_file": f"{folder}/token"}}
    log = folder / "log"
    with running_agent(*options, log=log):
        address = log.read_text().split("metrics on ")[1].split()[0]
        jobs = [
            scrape_job("certificate", address, scheme="https", tls_config={**tls, **own}),
            scrape_job("token", address, scheme="https", tls_config=tls, **token),
            scrape_job("neither", address, scheme="https", tls_config=tls),
        ]
        with running_prometheus(folder, jobs) as scraping:
            yield scraping
    assert "Traceback" not in log.read_text()


def write(folder: Path, name: str, credential: Credential) -> None:
    (folder / f"{name}.crt").write_bytes(credential.certificate_pem)
    (folder / f"{name}.key").write_bytes(credential.key_pem)


@pytest.mark.parametrize(
    ("job", "error"),
    [
        ("certificate", ""),
        ("token", ""),
        ("neither", "server returned HTTP status 403 Forbidden"),
    ],
)
def test_prometheus_reads_a_guarded_agent_by_certificate_or_token(
    guarded: Prometheus, job: str, error: str
) -> None:
    own = f'{{job="{job}"}}'
    # The target's error is shown a moment before the samples are stored: `up` is one of them.
    until(
        lambda: error in guarded.errors(job) and guarded.value(f"up{own}") == float(not error),
        f"a scrape with the error {error!r}: {guarded.targets()}",
        seconds=patient(60),
    )
    known = guarded.values(f"latencyprobe_sampling_ratio{own}")
    assert bool(known) is not bool(error)
