"""Figures of pods as metrics: each where it belongs, and none that a name could break."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.exposition.page import metrics_page
from latencyprobe.exposition.protobuf import CONTENT_TYPE
from latencyprobe_agent.totals import MAX_COUNTERS
from tests.unit.agent.sample_figures import (
    HOSTILE,
    measured,
    registry_of,
    sample_figures,
    window_report,
)
from tests.unit.agent.scripted import samples
from tests.unit.agent.totals_of import Followed, probe_on
from tests.unit.exposed import families, labels

OWNER = {"namespace": "shop", "probe": "checkout", "node": "blue"}
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def test_each_figure_has_its_metric() -> None:
    registry = sample_figures()
    owner = {**OWNER, "pod": "a", "container": ""}

    def value(name: str, **more: str) -> float | None:
        return registry.get_sample_value(name, {**owner, **more})

    assert value("latencyprobe_missing_samples_total", stage="rx.total", reason="lost") == 2
    assert value("latencyprobe_missing_samples_total", stage="rx.total", reason="clamped") == 1
    assert value("latencyprobe_missing_samples_total", stage="rx.total", reason="unmatched") is None
    assert value("latencyprobe_events_total", counter="retransmits") == 3
    assert value("latencyprobe_events_total", counter="rtos") is None
    assert value("latencyprobe_counted_seconds_total", counter="behindWindow") == 1.5
    assert value("latencyprobe_counted_seconds_total", counter="waitedForCgroup.7") == 0.25
    assert value("latencyprobe_drops_total", reason="NO_SOCKET") == 4
    assert value("latencyprobe_pending", kind="unreadSegments") == 7
    assert value("latencyprobe_pending_oldest_seconds", kind="unreadSegments") == 2
    assert value("latencyprobe_verdict", latencyprobe_verdict="SlowReader") == 1
    assert value("latencyprobe_verdict", latencyprobe_verdict="None") == 0
    of_probe = registry.get_sample_value
    assert of_probe("latencyprobe_pods", {**OWNER, "verdict": "SlowReader"}) == 2
    assert of_probe("latencyprobe_unobserved_seconds", OWNER) == 1.5
    assert of_probe("latencyprobe_pods_without_series", OWNER) == 0
    assert of_probe("latencyprobe_sampling_ratio", {"node": "blue"}) == 0.25
    state = {"node": "blue", "stage": "rx.total", "latencyprobe_coverage": "Active"}
    assert of_probe("latencyprobe_coverage", state) == 1


def test_a_pod_without_a_sum_of_its_own_has_no_verdict_there() -> None:
    registry = registry_of(measured(), window_report(b=Bottleneck.PEER))

    names = {sample.name for family in registry.collect() for sample in family.samples}

    assert "latencyprobe_verdict" not in names
    assert "latencyprobe_pods" in names


def test_the_text_has_a_coarse_set_of_buckets() -> None:
    page = metrics_page(registry_of(measured()))({}).body.decode()

    (family,) = (f for f in read_text(page) if f.name == "latencyprobe_stage_seconds")
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert len(buckets) == 15
    assert (buckets["3.814697265625e-06"], buckets["1.52587890625e-05"]) == (0, 1)
    assert 0.000005 in {s.value for s in family.samples if s.name.endswith("_sum")}


def test_no_name_of_a_pod_node_or_counter_breaks_a_format() -> None:
    followed = Followed()
    followed.follow(probe_on(HOSTILE, name=f"{HOSTILE}/{HOSTILE}"))
    counters = {f"drops.{HOSTILE}": 1, HOSTILE: 1, f"{HOSTILE}Ns": 1}
    # As if the vocabulary had names like these: others are filtered before.
    followed.current()
    for total in followed.current().values():
        total.add(Measurement({"rx.total": StageMeasurement()}, counters))
        total.add(samples(5))
    page = metrics_page(registry_of(followed.totals, node=HOSTILE))

    text = {family.name for family in read_text(page({}).body.decode())}
    openmetrics = page({"accept": OPENMETRICS}).body.decode()
    read = {family.name for family in read_openmetrics(openmetrics)}  # type: ignore[no-untyped-call]
    binary = families(page({"accept": CONTENT_TYPE.replace(" ", "")}).body)

    assert {"latencyprobe_stage_seconds", "latencyprobe_events", "latencyprobe_drops"} <= text
    assert text == read
    for family in binary.values():
        for metric in family.metric:
            assert all(value.isprintable() for value in labels(metric).values())


def test_the_number_of_series_is_bounded() -> None:
    followed = Followed(max_pods=5)
    pods = [f"pod-{number}" for number in range(100)]
    followed.follow(probe_on(*pods))
    for number in range(1000):
        followed.read(samples(5) + Measurement(counters={f"drops.R{number}": 1}), pods)

    page = metrics_page(registry_of(followed.totals))({"accept": CONTENT_TYPE.replace(" ", "")})
    series = sum(len(family.metric) for family in families(page.body).values())

    subjects = 5 + 1
    assert series <= subjects * (MAX_COUNTERS + 1 + 1) + 1 + 1 + 2 * len(CoverageState)


def test_protobuf_has_the_time_when_a_sum_began_and_texts_have_no_series_for_it() -> None:
    page = metrics_page(registry_of(measured()))
    accept = {"accept": CONTENT_TYPE.replace(" ", "")}

    def begun() -> dict[str, float]:
        read = families(page(accept).body)
        (stage,) = read["latencyprobe_stage_seconds"].metric
        (drops,) = read["latencyprobe_drops_total"].metric
        return {
            "stage": stage.histogram.created_timestamp.ToNanoseconds(),
            "drops": drops.counter.created_timestamp.ToNanoseconds(),
        }

    first = begun()
    assert first["stage"] == first["drops"] > 0
    assert begun() == first
    names = {s.name for f in read_text(page({}).body.decode()) for s in f.samples}
    assert not {name for name in names if name.endswith("_created")}
    assert "latencyprobe_drops_total" in names
