"""Measurements as the protocol carries them: between the domain's values and protobuf's messages.

Agent, operator and local command share these conversions. What arrives is checked here, once: a
message that contradicts itself raises CorruptMessageError, which names the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from latencyprobe.histogram import Histogram
from latencyprobe.measurement import Measurement, StageMeasurement
from latencyprobe.stages import BY_NAME, COUNTERS
from latencyprobe.v1 import node_agent_pb2 as pb

PROTOCOL_VERSION = 1
# The names in the certificates, by which each side knows the other.
AGENT_NAME = "agent.latencyprobe.io"
OPERATOR_NAME = "operator.latencyprobe.io"
# What both sides let gRPC take in and send: the largest report is some 4 MB (256 targets with every
# bucket in use), the largest desired state under 1 MB.
MAX_MESSAGE_BYTES = 16 << 20

_COUNTER_NAMES = frozenset(counter.name for counter in COUNTERS)


class CorruptMessageError(ValueError):
    """A message that no agent of this protocol sends. `field` says where, `problem` what."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}")


def measurement_to_proto(measurement: Measurement) -> tuple[list[pb.StageDelta], dict[str, int]]:
    """(stages, counters), as the fields of a TargetReport."""
    stages = [_stage_to_proto(name, measured) for name, measured in measurement.stages.items()]
    return stages, dict(measurement.counters)


def measurement_from_proto(
    stages: Iterable[pb.StageDelta], counters: Mapping[str, int]
) -> Measurement:
    """The measurement in the fields of a TargetReport; raises CorruptMessageError.

    Stages and counters that this side does not know (a newer agent's) are left out: the protocol
    may gain some without a new version.
    """
    measured: dict[str, StageMeasurement] = {}
    for index, delta in enumerate(stages):
        if not delta.name:
            raise CorruptMessageError(f"stages[{index}].name", "is empty")
        if delta.name in measured:
            raise CorruptMessageError(f"stages[{index}].name", f"{delta.name!r} came before")
        if delta.name in BY_NAME:
            measured[delta.name] = _stage_from_proto(delta, f"stages[{index}]")
    known = {name: count for name, count in counters.items() if name in _COUNTER_NAMES}
    return Measurement(measured, known)


def _stage_to_proto(name: str, measured: StageMeasurement) -> pb.StageDelta:
    return pb.StageDelta(
        name=name,
        histogram=_histogram_to_proto(measured.histogram),
        lost=measured.lost,
        unmatched=measured.unmatched,
        clamped=measured.clamped,
        sampling_ratio=measured.sampling_ratio,
    )


def _stage_from_proto(delta: pb.StageDelta, field: str) -> StageMeasurement:
    histogram = _histogram_from_proto(delta.histogram, f"{field}.histogram")
    try:
        return StageMeasurement(
            histogram, delta.lost, delta.unmatched, delta.clamped, delta.sampling_ratio
        )
    except ValueError as error:
        raise CorruptMessageError(field, str(error)) from None


def _histogram_to_proto(histogram: Histogram) -> pb.Histogram:
    positions = sorted(histogram.buckets)
    return pb.Histogram(
        sum_ns=histogram.sum_ns,
        min_ns=histogram.min_ns,
        max_ns=histogram.max_ns,
        positions=positions,
        counts=[histogram.buckets[position] for position in positions],
    )


def _histogram_from_proto(message: pb.Histogram, field: str) -> Histogram:
    if len(message.positions) != len(message.counts):
        raise CorruptMessageError(
            field, f"{len(message.positions)} positions for {len(message.counts)} counts"
        )
    buckets = dict(zip(message.positions, message.counts, strict=True))
    if list(message.positions) != sorted(buckets):
        raise CorruptMessageError(f"{field}.positions", "must ascend, each once")
    try:
        return Histogram(buckets, message.sum_ns, message.min_ns, message.max_ns)
    except ValueError as error:
        raise CorruptMessageError(field, str(error)) from None
