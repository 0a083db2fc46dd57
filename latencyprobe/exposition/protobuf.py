"""The protobuf exposition: each family of metrics as a message, behind its length.

It is the one format with native histograms that Prometheus reads. `io.prometheus.client` is
Prometheus' own: proto/io/prometheus/client/metrics.proto.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from latencyprobe.exposition import metrics_pb2 as pb
from latencyprobe.exposition.families import (
    ZERO_THRESHOLD_S,
    Durations,
    Exemplar,
    StageHistogram,
    StageHistograms,
    native_buckets,
)

CONTENT_TYPE = (
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)
_PART_LABELS = {"histogram": "le", "gaugehistogram": "le", "summary": "quantile"}
# Suffixes of the samples' names that a family of this type has in its own name.
_OWN_SUFFIX = {"counter": "_total", "info": "_info"}


def encode(families: Iterable[Metric]) -> bytes:
    """Return the families as delimited messages; those without a sample are left out."""
    parts: list[bytes] = []
    for family in families:
        message = _native(family) if isinstance(family, StageHistograms) else _message(family)
        if message.metric:
            data = message.SerializeToString()
            parts += (_varint(len(data)), data)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _native(family: StageHistograms) -> pb.MetricFamily:
    message = pb.MetricFamily(name=family.name, help=family.documentation, type=pb.HISTOGRAM)
    for each in family.histograms:
        metric = message.metric.add()
        _label(metric, each.labels)
        _fill_native(metric.histogram, each.durations)
        if each.exemplars:
            _add_exemplars(metric.histogram, each)
        if each.began_s is not None:
            metric.histogram.created_timestamp.CopyFrom(_timestamp(each.began_s))
    return message


def _fill_native(histogram: pb.Histogram, durations: Durations) -> None:
    native = native_buckets(durations.buckets)
    histogram.sample_count = sum(durations.buckets.values())
    histogram.sample_sum = durations.sum_ns / 1e9
    histogram.schema = StageHistograms.schema
    histogram.zero_threshold = ZERO_THRESHOLD_S
    histogram.zero_count = native.zero_count
    for span in native.spans:
        histogram.positive_span.add(offset=span.gap, length=span.length)
    histogram.positive_delta.extend(native.deltas)


def _add_exemplars(histogram: pb.Histogram, shown: StageHistogram) -> None:
    """Add the exemplars; and once more the newest, where older versions of Prometheus read it.

    Before 2.51 it reads exemplars of classic buckets only, and before 2.46 the first one only.
    """
    for exemplar in shown.exemplars:
        _fill_exemplar(histogram.exemplars.add(), exemplar)
    newest = shown.exemplars[-1]
    for bound, count, shown_there in shown.classic_buckets():
        bucket = histogram.bucket.add(cumulative_count=count, upper_bound=float(bound))
        if shown_there is newest:
            _fill_exemplar(bucket.exemplar, newest)


def _fill_exemplar(message: pb.Exemplar, exemplar: Exemplar) -> None:
    for name in sorted(exemplar.labels):
        message.label.add(name=name, value=exemplar.labels[name])
    message.value = exemplar.duration_ns / 1e9
    seconds, nanos = divmod(exemplar.unix_ns, 10**9)
    message.timestamp.CopyFrom(Timestamp(seconds=seconds, nanos=nanos))


def _label(metric: pb.Metric, labels: Mapping[str, str]) -> None:
    for name in sorted(labels):
        metric.label.add(name=name, value=labels[name])


# ------------------------------------------------------- families of prometheus_client


def _message(family: Metric) -> pb.MetricFamily:
    """Return a family of the library; samples with the same labels are one metric."""
    kind, fill = _KINDS.get(family.type, (pb.UNTYPED, _fill_untyped))
    name = family.name + _OWN_SUFFIX.get(family.type, "")
    message = pb.MetricFamily(name=name, help=family.documentation, type=kind)
    part_label = _PART_LABELS.get(family.type)
    metrics: dict[frozenset[tuple[str, str]], pb.Metric] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != part_label}
        key = frozenset(labels.items())
        if key not in metrics:
            metrics[key] = message.metric.add()
            _label(metrics[key], labels)
        fill(metrics[key], sample, sample.name.removeprefix(family.name))
    return message


def _fill_counter(metric: pb.Metric, sample: Sample, suffix: str) -> None:
    if suffix == "_created":
        metric.counter.created_timestamp.CopyFrom(_timestamp(sample.value))
    else:
        metric.counter.value = sample.value


def _fill_gauge(metric: pb.Metric, sample: Sample, _: str) -> None:
    metric.gauge.value = sample.value


def _fill_untyped(metric: pb.Metric, sample: Sample, _: str) -> None:
    metric.untyped.value = sample.value


def _fill_summary(metric: pb.Metric, sample: Sample, suffix: str) -> None:
    match suffix:
        case "_count":
            metric.summary.sample_count = round(sample.value)
        case "_sum":
            metric.summary.sample_sum = sample.value
        case "_created":
            metric.summary.created_timestamp.CopyFrom(_timestamp(sample.value))
        case _:
            quantile = float(sample.labels["quantile"])
            metric.summary.quantile.add(quantile=quantile, value=sample.value)


def _fill_histogram(metric: pb.Metric, sample: Sample, suffix: str) -> None:
    match suffix:
        case "_bucket":
            bound = float(sample.labels["le"].replace("Inf", "inf"))
            metric.histogram.bucket.add(cumulative_count=round(sample.value), upper_bound=bound)
        case "_count" | "_gcount":
            metric.histogram.sample_count = round(sample.value)
        case "_sum" | "_gsum":
            metric.histogram.sample_sum = sample.value
        case "_created":
            metric.histogram.created_timestamp.CopyFrom(_timestamp(sample.value))


def _timestamp(seconds: float) -> Timestamp:
    fraction, whole = math.modf(seconds)
    return Timestamp(seconds=int(whole), nanos=int(fraction * 1e9))


_Fill = Callable[[pb.Metric, Sample, str], None]
_KINDS: Mapping[str, tuple[pb.MetricType, _Fill]] = {
    "counter": (pb.COUNTER, _fill_counter),
    "gauge": (pb.GAUGE, _fill_gauge),
    "info": (pb.GAUGE, _fill_gauge),
    "stateset": (pb.GAUGE, _fill_gauge),
    "summary": (pb.SUMMARY, _fill_summary),
    "histogram": (pb.HISTOGRAM, _fill_histogram),
    "gaugehistogram": (pb.GAUGE_HISTOGRAM, _fill_histogram),
}
