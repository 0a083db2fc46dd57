"""Families of metrics as requests of OTLP. All sums are cumulative, from the time they began.

A histogram of ours is an ExponentialHistogram of scale 3 with the same buckets. OTLP names a bucket
by the exponent of its lower bound, so its index is one less than that of Prometheus. There is no
bucket up to infinity: samples of the overflow are in the bucket after the last one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from latencyprobe import __version__
from latencyprobe.domain.histogram import FIRST_BUCKET, SCHEMA, UNDERFLOW
from latencyprobe.exposition.families import (
    ZERO_THRESHOLD_S,
    Durations,
    Exemplar,
    Labels,
    StageHistogram,
    StageHistograms,
)
from latencyprobe.otlp.resources import RESOURCE_LABELS, Owner, ProcessResource
from latencyprobe.otlp.vocabulary import INSTRUMENTS, Instrument, InstrumentKind, attribute_of

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

    _NumberPoints = RepeatedCompositeFieldContainer[pb.NumberDataPoint]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
SCOPE = "latencyprobe"
# A collector takes 4 MiB by default.
REQUEST_BYTES = 1 << 20
_PART_BYTES = REQUEST_BYTES // 4
_CUMULATIVE = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
# The index of position 1.
_FIRST_INDEX = FIRST_BUCKET - 1


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """An encoded request, and the number of data points in it."""

    data: bytes
    points: int


class Encoder:
    """An encoder of the metrics of this process.

    `began_s`: the begin, in seconds since 1970, of sums that do not state theirs.
    """

    def __init__(self, resource: ProcessResource, *, began_s: float | None = None) -> None:
        self._resource = resource
        self._began_s = time.time() if began_s is None else began_s

    def requests(
        self, families: Iterable[Metric], now_s: float | None = None
    ) -> list[ExportRequest]:
        """Return the families as they are now, in requests of a bounded size."""
        now_s = time.time() if now_s is None else now_s
        snapshot = _Snapshot(self._resource, self._began_s, now_s)
        for family in families:
            snapshot.add(family)
        return list(_packed(snapshot.parts))


@dataclass(slots=True)
class _Part:
    """The metrics of one resource, or some of them."""

    message: pb.ResourceMetrics
    metrics: dict[str, pb.Metric] = field(default_factory=dict)
    points: int = 0
    size: int = 0


def _packed(parts: Iterable[_Part]) -> Iterator[ExportRequest]:
    request, points, size = ExportMetricsServiceRequest(), 0, 0
    for part in parts:
        if points and size + part.size > REQUEST_BYTES:
            yield ExportRequest(request.SerializeToString(), points)
            request, points, size = ExportMetricsServiceRequest(), 0, 0
        request.resource_metrics.append(part.message)
        points += part.points
        size += part.size
    if points:
        yield ExportRequest(request.SerializeToString(), points)


class _Snapshot:
    """The metrics at one time, by resource."""

    def __init__(self, resource: ProcessResource, began_s: float, now_s: float) -> None:
        self._resource = resource
        self._now_ns = _unix_ns(now_s)
        self._began_ns = min(_unix_ns(began_s), self._now_ns)
        self._open: dict[Owner | None, _Part] = {}
        self.parts: list[_Part] = []

    def add(self, family: Metric) -> None:
        instrument = INSTRUMENTS[family.name]
        if isinstance(family, StageHistograms):
            for each in family.histograms:
                self._add_durations(family, instrument, each)
        elif instrument.kind is InstrumentKind.HISTOGRAM:
            for labels, samples in _by_series(family, "le"):
                self._add_histogram(family, instrument, labels, samples)
        else:
            for labels, samples in _by_series(family):
                self._add_number(family, instrument, labels, samples)

    def _add_durations(self, family: Metric, instrument: Instrument, shown: StageHistogram) -> None:
        part, metric = self._metric(family, instrument, shown.labels)
        metric.exponential_histogram.aggregation_temporality = _CUMULATIVE
        point = metric.exponential_histogram.data_points.add()
        self._describe(point, shown.labels, instrument, family, shown.began_s)
        _fill_exponential(point, shown.durations)
        _add_exemplars(point, shown.exemplars)
        _count(part, point.ByteSize())

    def _add_histogram(
        self, family: Metric, instrument: Instrument, labels: Labels, samples: list[Sample]
    ) -> None:
        part, metric = self._metric(family, instrument, labels)
        metric.histogram.aggregation_temporality = _CUMULATIVE
        point = metric.histogram.data_points.add()
        self._describe(point, labels, instrument, family, _fill_explicit(point, family, samples))
        _count(part, point.ByteSize())

    def _add_number(
        self, family: Metric, instrument: Instrument, labels: Labels, samples: list[Sample]
    ) -> None:
        part, metric = self._metric(family, instrument, labels)
        values = {sample.name.removeprefix(family.name): sample.value for sample in samples}
        began_s = values.pop("_created", None)
        (value,) = values.values()
        point = _points_of(metric, instrument).add()
        self._describe(point, labels, instrument, family, began_s)
        if instrument.is_integer:
            point.as_int = round(value)
        else:
            point.as_double = value
        _count(part, point.ByteSize())

    def _describe(
        self,
        point: pb.NumberDataPoint | pb.HistogramDataPoint | pb.ExponentialHistogramDataPoint,
        labels: Labels,
        instrument: Instrument,
        family: Metric,
        began_s: float | None,
    ) -> None:
        point.time_unix_nano = self._now_ns
        if instrument.kind is not InstrumentKind.GAUGE:
            began_ns = self._began_ns if began_s is None else _unix_ns(began_s)
            # The clock may have been set back.
            point.start_time_unix_nano = min(began_ns, self._now_ns)
        for label, value in labels.items():
            if label not in RESOURCE_LABELS:
                key = instrument.state if label == family.name else attribute_of(label)
                point.attributes.add(key=key).value.string_value = value

    def _metric(
        self, family: Metric, instrument: Instrument, labels: Labels
    ) -> tuple[_Part, pb.Metric]:
        owner = Owner.of(labels)
        part = self._open.get(owner)
        if part is None or part.size > _PART_BYTES:
            part = self._open[owner] = self._part(owner)
            self.parts.append(part)
        metric = part.metrics.get(instrument.name)
        if metric is None:
            metric = part.message.scope_metrics[0].metrics.add(
                name=instrument.name, description=family.documentation, unit=instrument.unit
            )
            part.metrics[instrument.name] = metric
            part.size += metric.ByteSize()
        return part, metric

    def _part(self, owner: Owner | None) -> _Part:
        message = pb.ResourceMetrics(schema_url=SCHEMA_URL)
        for key, value in self._resource.of(owner).items():
            message.resource.attributes.add(key=key).value.string_value = value
        scope = message.scope_metrics.add(schema_url=SCHEMA_URL).scope
        scope.name, scope.version = SCOPE, __version__
        return _Part(message, size=message.ByteSize())


def _count(part: _Part, size: int) -> None:
    part.points += 1
    part.size += size


def _unix_ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _by_series(family: Metric, part_label: str = "") -> Iterator[tuple[Labels, list[Sample]]]:
    """Yield the samples with the same labels together. `part_label`: of a part of a histogram."""
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in family.samples:
        labels = tuple(pair for pair in sample.labels.items() if pair[0] != part_label)
        series.setdefault(labels, []).append(sample)
    for labels, samples in series.items():
        yield dict(labels), samples


def _points_of(metric: pb.Metric, instrument: Instrument) -> _NumberPoints:
    if instrument.kind is InstrumentKind.GAUGE:
        return metric.gauge.data_points
    metric.sum.aggregation_temporality = _CUMULATIVE
    metric.sum.is_monotonic = instrument.kind is InstrumentKind.COUNTER
    return metric.sum.data_points


def _fill_exponential(point: pb.ExponentialHistogramDataPoint, durations: Durations) -> None:
    buckets = durations.buckets
    point.count = sum(buckets.values())
    point.sum = durations.sum_ns / 1e9
    point.scale = SCHEMA
    point.zero_threshold = ZERO_THRESHOLD_S
    point.zero_count = buckets.get(UNDERFLOW, 0)
    positions = buckets.keys() - {UNDERFLOW}
    if positions:
        first, last = min(positions), max(positions)
        point.positive.offset = _FIRST_INDEX + first - 1
        point.positive.bucket_counts.extend(buckets.get(p, 0) for p in range(first, last + 1))


def _add_exemplars(point: pb.ExponentialHistogramDataPoint, exemplars: Iterable[Exemplar]) -> None:
    for each in exemplars:
        made = point.exemplars.add(time_unix_nano=each.unix_ns, as_double=each.duration_ns / 1e9)
        for label, value in each.labels.items():
            made.filtered_attributes.add(key=attribute_of(label)).value.string_value = value


def _fill_explicit(
    point: pb.HistogramDataPoint, family: Metric, samples: Iterable[Sample]
) -> float | None:
    """Fill a histogram of the library, whose buckets are cumulative; return when it began."""
    below, began_s = 0.0, None
    for sample in samples:
        match sample.name.removeprefix(family.name):
            case "_bucket":
                if sample.labels["le"] != "+Inf":
                    point.explicit_bounds.append(float(sample.labels["le"]))
                point.bucket_counts.append(round(sample.value - below))
                below = sample.value
            case "_sum":
                point.sum = sample.value
            case "_count":
                point.count = round(sample.value)
            case "_created":
                began_s = sample.value
    return began_s
