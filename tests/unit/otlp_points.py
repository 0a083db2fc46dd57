"""Requests of OTLP, read back: points with the attributes of their resource and their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

NumberPoint = pb.NumberDataPoint
ExponentialPoint = pb.ExponentialHistogramDataPoint
Point = pb.NumberDataPoint | pb.HistogramDataPoint | pb.ExponentialHistogramDataPoint


@dataclass(frozen=True)
class Exported:
    """A point of a metric."""

    metric: pb.Metric
    resource: dict[str, str]
    attributes: dict[str, str]
    point: Point

    @property
    def value(self) -> float:
        """The value of a number."""
        assert isinstance(self.point, pb.NumberDataPoint)
        kind = self.point.WhichOneof("value")
        assert kind is not None
        return float(getattr(self.point, kind))


def exported(requests: Iterable[ExportMetricsServiceRequest]) -> list[Exported]:
    """All points of these requests."""
    return [
        Exported(
            metric, attributes_of(each.resource.attributes), attributes_of(point.attributes), point
        )
        for request in requests
        for each in request.resource_metrics
        for scope in each.scope_metrics
        for metric in scope.metrics
        for point in points_of(metric)
    ]


def points_of(metric: pb.Metric) -> Iterator[Point]:
    """The points of a metric."""
    kind = metric.WhichOneof("data")
    assert kind is not None
    yield from getattr(metric, kind).data_points


def attributes_of(attributes: Iterable[KeyValue]) -> dict[str, str]:
    """Attributes, all of which are texts."""
    made = {each.key: each.value.string_value for each in attributes}
    assert all(each.value.WhichOneof("value") == "string_value" for each in attributes)
    return made


def exponential_buckets(point: ExponentialPoint) -> dict[int, int]:
    """The counts of an exponential histogram, by the index of the bucket; no zeroes."""
    counts = enumerate(point.positive.bucket_counts, start=point.positive.offset)
    return {index: count for index, count in counts if count}
