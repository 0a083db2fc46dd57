"""Metrics as requests of OTLP: our buckets are copied, and each point says where it comes from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from latencyprobe import __version__
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import OVERFLOW, POSITIONS, UNDERFLOW, Histogram, bounds_of
from latencyprobe.exposition.families import Exemplar, StageHistograms
from latencyprobe.otlp.counts import PushCounts
from latencyprobe.otlp.encoding import REQUEST_BYTES, Encoder
from latencyprobe.otlp.resources import ProcessResource
from latencyprobe.otlp.vocabulary import INSTRUMENTS
from latencyprobe_agent.serving.figures import FigureCollector
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probe_figures import ObjectiveFigures, ProbeSnapshot
from tests.unit.agent.sample_figures import HOSTILE, Source, registry_of, sample_figures
from tests.unit.agent.scripted import samples
from tests.unit.agent.totals_of import Followed, probe_on
from tests.unit.otlp_points import Exported, attributes_of, exponential_buckets, exported

STAGE = "latencyprobe_stage_seconds"
NODE = {"host.name": "blue", "k8s.node.name": "blue"}
OWN_POD = {
    "k8s.namespace.name": "latencyprobe-agents",
    "k8s.pod.name": "latencyprobe-agent-x",
    "k8s.container.name": "agent",
}

counts_by_position = st.dictionaries(
    st.integers(0, POSITIONS - 1), st.integers(1, 2**40), max_size=40
)


def points(
    families: Iterable[Metric],
    resource: Mapping[str, str] | None = None,
    *,
    began_s: float = 5.0,
    now_s: float = 100.0,
) -> list[Exported]:
    made = ProcessResource.make("agent", {**NODE} if resource is None else resource)
    requests = Encoder(made, began_s=began_s).requests(families, now_s)
    read = [ExportMetricsServiceRequest.FromString(each.data) for each in requests]
    for request, message in zip(requests, read, strict=True):
        assert request.points == len(exported([message]))
    return exported(read)


def stage_point(counts: dict[int, int]) -> pb.ExponentialHistogramDataPoint:
    family = StageHistograms(STAGE, "Time.")
    family.add({"stage": "rx.socket"}, Histogram(counts, sum_ns=5_000, min_ns=1, max_ns=2))
    (only,) = points([family])
    assert isinstance(only.point, pb.ExponentialHistogramDataPoint)
    return only.point


def of(name: str, found: Iterable[Exported]) -> list[Exported]:
    return [each for each in found if each.metric.name == name]


# --------------------------------------------------------------------------- histograms


@given(counts_by_position)
def test_an_exponential_histogram_has_our_buckets_by_their_lower_bounds(
    counts: dict[int, int],
) -> None:
    point = stage_point(counts)

    found = exponential_buckets(point)
    assert (point.scale, point.count, point.sum) == (3, sum(counts.values()), 5e-6)
    assert point.zero_count == counts.get(UNDERFLOW, 0)
    assert len(found) == len(counts.keys() - {UNDERFLOW})
    for position in counts.keys() - {UNDERFLOW}:
        lower, upper = bounds_of(position)
        index = round(8 * math.log2(lower / 1e9))
        assert found[index] == counts[position]
        # The bucket `index` of scale 3 ends at 2**((index + 1) / 8), as ours does.
        if position != OVERFLOW:
            assert upper == pytest.approx(1e9 * 2 ** ((index + 1) / 8), rel=1e-12)


def test_the_zero_bucket_ends_where_the_first_bucket_begins() -> None:
    point = stage_point({UNDERFLOW: 1, 1: 1})

    assert 1e9 * point.zero_threshold == pytest.approx(bounds_of(1)[0], rel=1e-12)
    assert point.zero_threshold == pytest.approx(2 ** (point.positive.offset / 8), rel=1e-12)


def test_a_histogram_has_its_exemplars_oldest_first() -> None:
    family = StageHistograms(STAGE, "Time.")
    shown = [
        Exemplar({"remote": "10.0.0.7:80", "rx_socket": "2ms"}, 2_000_000, 90 * 10**9 + 1),
        Exemplar({}, 5_000_000, 80 * 10**9),
    ]
    family.add({"stage": "rx.total"}, Histogram.of([2_000_000, 5_000_000]), shown)
    (only,) = points([family])

    assert isinstance(only.point, pb.ExponentialHistogramDataPoint)
    found = [
        (each.time_unix_nano, each.as_double, attributes_of(each.filtered_attributes))
        for each in only.point.exemplars
    ]
    assert found == [
        (80 * 10**9, 0.005, {}),
        (
            90 * 10**9 + 1,
            0.002,
            {"latencyprobe.remote": "10.0.0.7:80", "latencyprobe.rx_socket": "2ms"},
        ),
    ]


def test_a_histogram_without_samples_has_no_buckets() -> None:
    point = stage_point({})

    assert (point.count, list(point.positive.bucket_counts)) == (0, [])


def test_the_librarys_histograms_have_a_count_for_each_bucket() -> None:
    metrics = AgentMetrics()
    with metrics.time_apply():
        pass
    (only,) = of("latencyprobe.apply.duration", points(metrics.registry.collect()))

    point = only.point
    assert isinstance(point, pb.HistogramDataPoint)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert (sum(point.bucket_counts), point.count, only.metric.unit) == (1, 1, "s")
    assert point.bucket_counts[0] == 1


# ---------------------------------------------------------------------- where and since


def test_metrics_of_a_pod_are_in_a_resource_of_that_pod() -> None:
    found = points(sample_figures().collect(), {**NODE, **OWN_POD})

    (verdict,) = (each for each in of("latencyprobe.pod.verdict", found) if each.value)
    (number,) = of("latencyprobe.pod.count", found)
    (ratio,) = of("latencyprobe.sampling.ratio", found)
    service = {
        "service.name": "agent",
        "service.version": __version__,
        "service.instance.id": "latencyprobe-agents.latencyprobe-agent-x.agent",
    }
    of_probe = {**service, **NODE, "k8s.namespace.name": "shop"}
    assert verdict.resource == {**of_probe, "k8s.pod.name": "a"}
    assert verdict.attributes == {
        "latencyprobe.probe": "checkout",
        "latencyprobe.verdict": "SlowReader",
    }
    assert number.resource == of_probe
    assert ratio.resource == {**service, **NODE, **OWN_POD}
    assert ratio.attributes == {}


def test_the_verdict_has_a_point_for_each_state() -> None:
    found = of("latencyprobe.pod.verdict", points(sample_figures().collect()))

    values = {each.attributes["latencyprobe.verdict"]: each.value for each in found}
    assert values == {each: each is Bottleneck.SLOW_READER for each in Bottleneck}


def test_a_process_without_a_pod_has_an_instance_of_its_own() -> None:
    instances = {
        ProcessResource.make("agent", NODE).attributes["service.instance.id"] for _ in range(2)
    }

    assert len(instances) == 2


def test_a_sum_begins_when_its_pod_was_first_measured_and_again_after_it_was_forgotten() -> None:
    followed = Followed()
    registry = registry_of(followed.totals)

    def begun(now: float) -> int:
        followed.now = now
        followed.follow(probe_on("a"))
        followed.read(samples(5))
        (stage,) = of("latencyprobe.stage.duration", points(registry.collect(), now_s=4e9))
        assert stage.point.time_unix_nano == 4 * 10**18
        return int(stage.point.start_time_unix_nano)

    first = begun(1_000.0)
    assert begun(1_100.0) == first
    for now in (1_200.0, 2_000.0):
        followed.now = now
        followed.follow()

    assert round((begun(2_100.0) - first) / 1e9) == 1_100


def test_after_a_restart_the_same_series_begins_later_and_at_0() -> None:
    def started_and_measured(times: int) -> Exported:
        followed = Followed()
        followed.now = time.monotonic()
        followed.follow(probe_on("a"))
        for _ in range(times):
            followed.read(samples(5))
        registry = CollectorRegistry()
        registry.register(FigureCollector(Source(), followed.totals, "blue"))
        (stage,) = of("latencyprobe.stage.duration", points(registry.collect(), OWN_POD, now_s=4e9))
        return stage

    before, after = started_and_measured(3), started_and_measured(1)

    assert (before.resource, before.attributes) == (after.resource, after.attributes)
    assert before.point.start_time_unix_nano < after.point.start_time_unix_nano
    assert isinstance(after.point, pb.ExponentialHistogramDataPoint)
    assert after.point.count == 1


def test_counters_of_the_process_began_with_it_and_gauges_never() -> None:
    metrics = AgentMetrics()
    metrics.show_missed_pods(3)
    found = points(metrics.registry.collect(), now_s=2e9)

    (missed,) = of("latencyprobe.pod.missed", found)
    assert isinstance(missed.point, pb.NumberDataPoint)
    created = metrics.registry.get_sample_value("latencyprobe_missed_pods_created")
    assert created is not None
    assert missed.point.start_time_unix_nano == round(created * 1e9)
    assert (missed.point.as_int, missed.metric.sum.is_monotonic) == (3, True)
    assert missed.metric.sum.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    (usage,) = of("latencyprobe.program.cpu.usage", found)
    assert usage.point.start_time_unix_nano == 0
    (loaded, *_) = of("latencyprobe.module.loaded", found)
    assert not loaded.metric.sum.is_monotonic
    assert loaded.point.start_time_unix_nano == 5 * 10**9


def test_a_clock_that_was_set_back_does_not_end_a_sum_before_it_began() -> None:
    found = points(AgentMetrics().registry.collect(), began_s=90.0, now_s=10.0)

    assert {each.point.time_unix_nano for each in found} == {10 * 10**9}
    assert all(each.point.start_time_unix_nano <= 10 * 10**9 for each in found)


# ------------------------------------------------------------------------------- bounds


def test_requests_are_of_a_bounded_size_and_hold_every_point_once() -> None:
    followed = Followed(max_pods=300)
    pods = [f"pod-{number}" for number in range(300)]
    followed.follow(probe_on(*pods))
    for duration in range(1, 2000, 7):
        followed.read(samples(duration * 100), pods)
    registry = registry_of(followed.totals)
    requests = Encoder(ProcessResource.make("agent", NODE)).requests(registry.collect())

    read = [ExportMetricsServiceRequest.FromString(each.data) for each in requests]
    found = [
        each.resource["k8s.pod.name"] for each in of("latencyprobe.stage.duration", exported(read))
    ]
    assert sorted(found) == sorted(pods)
    assert max(len(each.data) for each in requests) <= REQUEST_BYTES * 5 / 4


def test_a_large_resource_is_in_several_parts() -> None:
    metrics = OperatorMetrics()
    stages = {f"stage-{number}": (1, 2, 3) for number in range(40)}
    for number in range(300):
        metrics.figures.show(f"{number}", ProbeSnapshot("shop", f"probe-{number}", 1, {}, stages))
    encoder = Encoder(ProcessResource.make("operator", {}))

    requests = encoder.requests(metrics.registry.collect())

    assert len(requests) > 1
    assert max(len(each.data) for each in requests) <= REQUEST_BYTES * 5 / 4
    read = exported(ExportMetricsServiceRequest.FromString(each.data) for each in requests)
    assert len(of("latencyprobe.probe.stage.duration", read)) == 300 * 40 * 3


def test_no_name_of_a_pod_breaks_a_request() -> None:
    followed = Followed()
    followed.follow(probe_on(HOSTILE, name=f"{HOSTILE}/{HOSTILE}"))
    followed.read(samples(5), [HOSTILE])

    found = points(registry_of(followed.totals, node=HOSTILE).collect())

    assert of("latencyprobe.stage.duration", found)
    assert all(value.isprintable() for each in found for value in each.resource.values())


# -------------------------------------------------------------------------------- names


def everything() -> list[CollectorRegistry]:
    """Registries with every family of agent and operator."""
    agent, operator, pushing = AgentMetrics(), OperatorMetrics(), CollectorRegistry()
    agent.show_certificates({})
    operator.show_certificates({})
    objective = ObjectiveFigures("reads", "rx.total", 99, 1, 1, "met")
    snapshot = ProbeSnapshot("shop", "checkout", 1, {"Ready": 1}, {}, (objective,), "Peer")
    operator.figures.show("uid", snapshot)
    PushCounts(pushing)
    return [agent.registry, sample_figures(), operator.registry, pushing]


def test_every_family_of_metrics_has_a_name_and_no_other() -> None:
    names = [family.name for registry in everything() for family in registry.collect()]

    assert sorted(names) == sorted(INSTRUMENTS)


def test_no_two_families_have_one_name() -> None:
    names = [instrument.name for instrument in INSTRUMENTS.values()]

    assert len(set(names)) == len(names)


def test_every_family_is_encoded_as_its_instrument_says() -> None:
    kinds = {
        "Counter": "sum",
        "UpDownCounter": "sum",
        "Gauge": "gauge",
        "Histogram": "histogram",
        "ExponentialHistogram": "exponential_histogram",
    }
    by_name = {instrument.name: instrument for instrument in INSTRUMENTS.values()}
    found = [each for registry in everything() for each in points(registry.collect())]

    for each in found:
        instrument = by_name[each.metric.name]
        assert each.metric.WhichOneof("data") == kinds[instrument.kind]
        assert each.metric.unit == instrument.unit
        assert each.metric.description
        assert "" not in each.attributes
    assert {each.metric.name for each in found} >= {"latencyprobe.objective.outcome"}
