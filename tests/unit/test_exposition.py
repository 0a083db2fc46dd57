"""Metrics in three formats: native buckets are ours, the others agree, and no text breaks them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Info, Summary
from prometheus_client import Histogram as LibraryHistogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.registry import Collector

from latencyprobe.domain.histogram import OVERFLOW, POSITIONS, UNDERFLOW, Histogram, bounds_of
from latencyprobe.exposition import metrics_pb2 as pb
from latencyprobe.exposition.families import (
    MAX_EXEMPLAR_LENGTH,
    MAX_LABEL_LENGTH,
    Exemplar,
    StageHistograms,
    exemplar_labels,
    label_value,
    native_buckets,
)
from latencyprobe.exposition.page import KEPT_S, metrics_page, preferred
from latencyprobe.exposition.protobuf import encode
from latencyprobe.printable import printable
from latencyprobe.process.http_server import Page
from tests.unit.exposed import buckets, families, labels

PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
# What Prometheus 2.42 sends with and without native histograms.
TEXTS = "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
WITH_NATIVE = f"{PROTOBUF},{OPENMETRICS};q=0.8,{TEXTS}"
WITHOUT_NATIVE = f"{OPENMETRICS},{TEXTS}"

counts_by_position = st.dictionaries(
    st.integers(0, POSITIONS - 1), st.integers(1, 2**40), max_size=40
)


def histogram_of(counts: dict[int, int]) -> Histogram:
    return Histogram(counts, sum_ns=5, min_ns=1, max_ns=2)


class Family(Collector):
    """A registry's collector of one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def page_of(*made: Metric, accept: str = "") -> str:
    registry = CollectorRegistry()
    for family in made:
        registry.register(Family(family))
    return metrics_page(registry)({"accept": accept}).body.decode()


# ------------------------------------------------------------------- native histograms


@given(counts_by_position)
def test_a_native_histogram_has_our_buckets_by_the_index_of_their_bounds(
    counts: dict[int, int],
) -> None:
    family = StageHistograms("waiting_seconds", "Waiting.")
    family.add({"stage": "rx.socket"}, histogram_of(counts))

    (metric,) = families(encode([family]))["waiting_seconds"].metric
    native = metric.histogram

    assert labels(metric) == {"stage": "rx.socket"}
    assert native.zero_count == counts.get(UNDERFLOW, 0)
    assert native.sample_count == sum(counts.values())
    found = buckets(native)
    assert sum(found.values()) + native.zero_count == sum(counts.values())
    for position in counts.keys() - {UNDERFLOW, OVERFLOW}:
        index = round(8 * math.log2(bounds_of(position)[1] / 1e9))
        assert bounds_of(position)[1] == pytest.approx(1e9 * 2 ** (index / 8), rel=1e-12)
        assert found[index] == counts[position]
    if OVERFLOW in counts:
        # The bucket behind that of the largest number.
        assert found[8 * 1024 + 1] == counts[OVERFLOW]


def test_the_zero_bucket_ends_where_the_first_bucket_begins() -> None:
    family = StageHistograms("waiting_seconds", "Waiting.")
    family.add({}, histogram_of({UNDERFLOW: 1, 1: 1}))

    (metric,) = families(encode([family]))["waiting_seconds"].metric

    assert 1e9 * metric.histogram.zero_threshold == pytest.approx(bounds_of(1)[0], rel=1e-12)
    assert metric.histogram.schema == 3


def test_neighbours_share_a_span() -> None:
    native = native_buckets({1: 5, 2: 3, 3: 3, 10: 1})

    assert [(span.gap, span.length) for span in native.spans] == [(-190, 3), (6, 1)]
    assert native.deltas == [5, -2, 0, -2]


@given(counts_by_position)
def test_classic_buckets_count_exactly_what_is_under_their_bounds(counts: dict[int, int]) -> None:
    family = StageHistograms("waiting_seconds", "Waiting.")
    family.add({}, histogram_of(counts))

    samples = family.classic().samples
    cumulative = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}

    assert list(cumulative)[-1] == "+Inf"
    for bound, count in cumulative.items():
        limit = float(bound) * 1e9 * (1 + 1e-12)
        assert count == sum(n for p, n in counts.items() if bounds_of(p)[1] <= limit)


# --------------------------------------------------------------------------- exemplars

FAST_NS, SLOW_NS, SLOWER_NS = 2_000, 2_000_000, 3_000_000


def with_exemplars() -> StageHistograms:
    """Two exemplars in one classic bucket, the newer one first, and one in another."""
    family = StageHistograms("waiting_seconds", "Waiting.")
    durations = Histogram.of([FAST_NS, SLOW_NS, SLOWER_NS])
    ended = {SLOWER_NS: 1_700_000_002_000_000_000, SLOW_NS: 1_700_000_001_000_000_000}
    ended[FAST_NS] = 1_700_000_003_500_000_000
    shown = [Exemplar({"remote": f"peer-{ns}"}, ns, at) for ns, at in ended.items()]
    family.add({"stage": "rx.socket"}, durations, shown)
    return family


def test_openmetrics_has_the_newest_exemplar_of_each_bucket() -> None:
    text = page_of(with_exemplars(), accept=OPENMETRICS)

    (family,) = read_openmetrics(text)  # type: ignore[no-untyped-call]
    before, found = 0.0, {}
    for sample in family.samples:
        if sample.exemplar:
            bound = float(sample.labels["le"])
            assert before < sample.exemplar.value <= bound
            found[sample.exemplar.value] = (
                sample.exemplar.labels,
                float(sample.exemplar.timestamp),
            )
        before = float(sample.labels.get("le", 0))
    assert found == {
        FAST_NS / 1e9: ({"remote": f"peer-{FAST_NS}"}, 1_700_000_003.5),
        SLOWER_NS / 1e9: ({"remote": f"peer-{SLOWER_NS}"}, 1_700_000_002.0),
    }


def test_the_plain_text_has_no_exemplars() -> None:
    assert "peer" not in page_of(with_exemplars())


def test_a_native_histogram_has_all_exemplars_oldest_first() -> None:
    (metric,) = families(encode([with_exemplars()]))["waiting_seconds"].metric

    times = [each.timestamp.ToNanoseconds() for each in metric.histogram.exemplars]
    assert times == sorted(times)
    values = [each.value for each in metric.histogram.exemplars]
    assert values == [SLOW_NS / 1e9, SLOWER_NS / 1e9, FAST_NS / 1e9]
    assert buckets(metric.histogram)
    assert metric.histogram.schema == 3


def test_a_native_histogram_has_its_newest_exemplar_for_older_versions_too() -> None:
    family = with_exemplars()
    (metric,) = families(encode([family]))["waiting_seconds"].metric

    classic = metric.histogram.bucket
    shown = [each for each in classic if each.HasField("exemplar")]
    assert [each.exemplar.value for each in shown] == [FAST_NS / 1e9]
    assert {pair.name: pair.value for pair in shown[0].exemplar.label} == {
        "remote": f"peer-{FAST_NS}"
    }
    # All of them, so that no reader has a part of the buckets.
    text = {s.labels["le"]: s.value for s in family.classic().samples if "le" in s.labels}
    assert [each.cumulative_count for each in classic] == list(text.values())
    without = StageHistograms("waiting_seconds", "Waiting.")
    without.add({}, Histogram.of([FAST_NS]))
    (metric,) = families(encode([without]))["waiting_seconds"].metric
    assert not metric.histogram.bucket


def test_an_exemplar_has_the_first_labels_that_fit() -> None:
    full = [("remote", "x" * 90), ("local", "x" * 40), ("rx_stack", "5us"), ("rx_host", "y" * 14)]

    found = exemplar_labels(full)

    assert list(found) == ["remote", "rx_stack", "rx_host"]
    assert sum(len(name) + len(value) for name, value in found.items()) == MAX_EXEMPLAR_LENGTH


# ---------------------------------------------------------------- the library's metrics


def everything() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("served", "Counted.", ["code"], registry=registry).labels("200").inc(3)
    Gauge("open", "Now.", registry=registry).set(-2.5)
    Info("build", "Of what.", registry=registry).info({"version": "1"})
    Enum("mood", "How.", states=["good", "bad"], registry=registry).state("bad")
    Summary("size", "How much.", registry=registry).observe(7)
    LibraryHistogram("took", "How long.", buckets=(1, 10), registry=registry).observe(3)
    return registry


def samples_of(family: pb.MetricFamily) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
    """The samples that Prometheus makes of a message, as the text has them."""
    made = set()
    for metric in family.metric:
        own = labels(metric)

        def add(name: str, value: float, own: dict[str, str] = own, **more: str) -> None:
            made.add((name, tuple(sorted({**own, **more}.items())), value))

        if metric.HasField("histogram"):
            add(f"{family.name}_count", metric.histogram.sample_count)
            add(f"{family.name}_sum", metric.histogram.sample_sum)
            for bucket in metric.histogram.bucket:
                bound = "+Inf" if math.isinf(bucket.upper_bound) else str(bucket.upper_bound)
                add(f"{family.name}_bucket", bucket.cumulative_count, le=bound)
        elif metric.HasField("summary"):
            add(f"{family.name}_count", metric.summary.sample_count)
            add(f"{family.name}_sum", metric.summary.sample_sum)
        else:
            kind = "counter" if metric.HasField("counter") else "gauge"
            add(family.name, getattr(metric, kind).value)
    return made


def test_protobuf_and_text_have_the_same_samples_of_each_type() -> None:
    page = metrics_page(everything())
    text = page({}).body.decode()
    written = {
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in read_text(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }

    messages = families(page({"accept": PROTOBUF}).body)

    assert set().union(*map(samples_of, messages.values())) == written
    assert messages["served_total"].type == pb.COUNTER
    assert messages["took"].type == pb.HISTOGRAM
    assert messages["size"].type == pb.SUMMARY


def test_protobuf_has_the_time_when_a_counter_began() -> None:
    registry = everything()
    created = registry.get_sample_value("served_created", {"code": "200"})
    assert created is not None

    (metric,) = families(metrics_page(registry)({"accept": PROTOBUF}).body)["served_total"].metric

    assert metric.counter.created_timestamp.ToNanoseconds() / 1e9 == pytest.approx(created)


# ------------------------------------------------------------------------- negotiation


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (WITH_NATIVE, "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily"),
        (WITHOUT_NATIVE, "application/openmetrics-text; version=1.0.0"),
        (f"{OPENMETRICS};q=0.5,{PROTOBUF};q=0.9", "application/vnd.google.protobuf"),
        (f"{OPENMETRICS};q=0.9,{PROTOBUF};q=0.5", "application/openmetrics-text"),
        (f"{PROTOBUF};q=0,text/plain", "text/plain"),
        (f"{PROTOBUF};q=much,text/plain;q=0.1", "text/plain"),
        (PROTOBUF.replace("delimited", "compact-text"), "text/plain"),
        ("application/vnd.google.protobuf", "text/plain"),
        ("*/*", "text/plain"),
        ("", "text/plain"),
        (";;,=,q=", "text/plain"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=1.a", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=0.0.1", "text/plain; version=0.0.4"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", "text/plain; version=0.0.4"),
    ],
)
def test_a_client_gets_the_format_that_it_prefers(accept: str, content_type: str) -> None:
    answer = metrics_page(everything())({"accept": accept})

    assert answer.content_type.startswith(content_type)


# ------------------------------------------------------------------------ kept pages


class Counting(Collector):
    """A collector with one figure: how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def collect(self) -> list[Metric]:
        self.asked += 1
        return [GaugeMetricFamily("asked", "Asked.", value=self.asked)]


@pytest.fixture
def counting() -> Counting:
    return Counting()


def kept_page(counting: Counting, now: list[float]) -> Page:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(counting)
    counting.asked = 0
    return metrics_page(registry, clock=lambda: now[0])


def test_a_flood_of_requests_collects_once_a_second(counting: Counting) -> None:
    now = [0.0]
    page = kept_page(counting, now)

    for _ in range(5):
        for _ in range(1000):
            assert page({}).body.endswith(f"asked {counting.asked}.0\n".encode())
        now[0] += KEPT_S

    assert counting.asked == 5


def test_a_reader_gets_newer_figures_within_a_second_also_during_a_flood(
    counting: Counting,
) -> None:
    now = [0.0]
    page = kept_page(counting, now)

    first = page({}).body
    for _ in range(99):
        now[0] += KEPT_S / 100
        assert page({}).body == first
    now[0] += KEPT_S / 50

    assert page({}).body != first


def test_a_flood_of_accept_headers_collects_once_a_format(counting: Counting) -> None:
    page = kept_page(counting, [0.0])

    for number in range(1000):
        for kind in (PROTOBUF, "application/openmetrics-text", "text/plain"):
            accept = f"{kind};version=1.{number};escaping=e{number};q=0.{number + 1:04}"
            assert page({"accept": accept}).body

    assert counting.asked == 3


@given(st.text(max_size=80))
def test_no_accept_header_is_an_error(accept: str) -> None:
    assert metrics_page(everything())({"accept": accept}).body
    assert preferred(accept) in ("", *(each.strip() for each in accept.split(",")))


# ----------------------------------------------------------------------------- hostile


@given(st.text(alphabet=st.characters(), max_size=600))
def test_no_text_in_a_label_breaks_a_format(text: str) -> None:
    family = StageHistograms("waiting_seconds", "Waiting.")
    family.add({"pod": text}, histogram_of({3: 1}))
    page = page_of(family)

    (read,) = read_text(page)
    assert {sample.labels["pod"] for sample in read.samples} == {label_value(text)}
    (read,) = read_openmetrics(page_of(family, accept=OPENMETRICS))  # type: ignore[no-untyped-call]
    assert {sample.labels["pod"] for sample in read.samples} == {label_value(text)}
    (metric,) = families(encode([family]))["waiting_seconds"].metric
    assert labels(metric) == {"pod": label_value(text)}


@pytest.mark.parametrize("text", ["a\nb", "a\udc80b", "a\x00b", "a\u202eb"])
def test_characters_that_cannot_be_printed_are_escapes_in_a_label_as_elsewhere(text: str) -> None:
    assert label_value(text) == printable(text) != text


def test_a_label_has_a_longest_value() -> None:
    assert label_value("x" * 10_000) == "x" * MAX_LABEL_LENGTH
    assert label_value("é" * 10_000) == "é" * MAX_LABEL_LENGTH
    assert len(label_value("\x00" * 10_000)) == MAX_LABEL_LENGTH
