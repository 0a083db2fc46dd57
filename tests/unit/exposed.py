"""The protobuf exposition, read back: messages behind their lengths, and buckets out of spans."""

from __future__ import annotations

from collections.abc import Iterator

from latencyprobe.exposition import metrics_pb2 as pb


def families(data: bytes) -> dict[str, pb.MetricFamily]:
    """The families of a body, by name."""
    return {family.name: family for family in _messages(data)}


def _messages(data: bytes) -> Iterator[pb.MetricFamily]:
    place = 0
    while place < len(data):
        length = shift = 0
        while True:
            byte = data[place]
            place += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield pb.MetricFamily.FromString(data[place : place + length])
        place += length


def labels(metric: pb.Metric) -> dict[str, str]:
    """The labels of a metric."""
    return {pair.name: pair.value for pair in metric.label}


def buckets(histogram: pb.Histogram) -> dict[int, int]:
    """The counts of a native histogram, by the index of the bucket."""
    counts: dict[int, int] = {}
    deltas = iter(histogram.positive_delta)
    index = count = 0
    for span in histogram.positive_span:
        index += span.offset
        for _ in range(span.length):
            count += next(deltas)
            counts[index] = count
            index += 1
    assert next(deltas, None) is None
    return counts
