"""Measurements as the protocol carries them: between the domain's values and protobuf's messages.

Agent, operator and local command share these conversions. A received message is checked here, once:
an inconsistent one raises CorruptMessageError, which names the field. Names in it become printable.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    COUNTERS_OMITTED,
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
    joint_counters,
)
from latencyprobe.domain.stages import BY_NAME, is_counter
from latencyprobe.printable import bounded, printable
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

PROTOCOL_VERSION = 1
# The largest message that an agent takes in: a desired state. Parsing multiplies its size.
MAX_REQUEST_BYTES = 1 << 20
# The largest message that a client takes in: a report, or the answer to a desired state.
MAX_MESSAGE_BYTES = 16 << 20
# For a namespace's or a node's counters, which have the names of the kernel and the drivers.
MAX_OPEN_COUNTERS = 256
MAX_NAME_LENGTH = 64


class CorruptMessageError(ValueError):
    """A message that violates the protocol. `field` names the place, `problem` the violation."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}")


def measurement_to_proto(measurement: Measurement) -> tuple[list[pb.StageDelta], dict[str, int]]:
    """Return (stages, counters), the fields of a TargetReport; it takes `netns_counters` as is."""
    stages = [_stage_to_proto(name, measured) for name, measured in measurement.stages.items()]
    return stages, dict(measurement.counters)


def measurement_from_proto(
    stages: Iterable[pb.StageDelta],
    counters: Mapping[str, int],
    netns_counters: Mapping[str, int] = MappingProxyType({}),
) -> Measurement:
    """Decode the measurement in the fields of a TargetReport; raise CorruptMessageError.

    Unknown stages and counters of a newer agent are left out: the protocol may gain some without a
    new version.
    """
    measured: dict[str, StageMeasurement] = {}
    for index, delta in enumerate(stages):
        if not delta.name:
            raise CorruptMessageError(f"stages[{index}].name", "is empty")
        if delta.name in measured:
            raise CorruptMessageError(f"stages[{index}].name", f"{delta.name!r} is repeated")
        if delta.name in BY_NAME:
            measured[delta.name] = _stage_from_proto(delta, f"stages[{index}]")
    return Measurement(
        measured,
        counters_from_proto(counters),
        _open_counters(netns_counters, "netns_counters"),
    )


def plain_counters(counters: Mapping[str, int]) -> dict[str, int]:
    """Copy the counters of a message. To go through its own views takes twice as long."""
    return {name: counters[name] for name in counters}


def counters_from_proto(counters: Mapping[str, int]) -> dict[str, int]:
    """Decode the known counters in a message; raise CorruptMessageError."""
    # Interned, since an operator keeps the same names for each node.
    known = {
        sys.intern(name): count
        for name, count in counters.items()
        if name == COUNTERS_OMITTED or is_counter(name)
    }
    _check_names(known, "counters")
    return known


def node_to_proto(measurement: NodeMeasurement) -> pb.NodeContext:
    """Encode the measurement of the node for a ProbeReport."""
    stages = []
    for key, measured in measurement.stages.items():
        delta = _stage_to_proto(key.name, measured)
        delta.detail = key.detail
        stages.append(delta)
    return pb.NodeContext(stages=stages, counters=measurement.counters)


def node_from_proto(message: pb.NodeContext) -> NodeMeasurement:
    """Decode the measurement of the node; raise CorruptMessageError.

    Older agents omit the field; it then decodes to an empty measurement.
    """
    measured: dict[NodeStage, StageMeasurement] = {}
    for index, delta in enumerate(message.stages):
        field = f"node.stages[{index}]"
        if len(delta.detail) > MAX_NAME_LENGTH:
            raise CorruptMessageError(
                f"{field}.detail", f"is longer than {MAX_NAME_LENGTH} characters"
            )
        key = NodeStage(delta.name, printable(delta.detail))
        if not key.name:
            raise CorruptMessageError(f"{field}.name", "is empty")
        if key in measured:
            raise CorruptMessageError(field, f"{key.name!r} with {key.detail!r} is repeated")
        if key.name in BY_NAME:
            measured[key] = _stage_from_proto(delta, field)
    return NodeMeasurement(measured, _open_counters(message.counters, "node.counters"))


def _open_counters(counters: Mapping[str, int], field: str) -> dict[str, int]:
    """Return counters with open names (of devices and kernels), checked and printable.

    Names with the same printable form are one counter.
    """
    _check_names(counters, field)
    shown: dict[str, int] = {}
    for name, count in counters.items():
        shown[printable(name)] = shown.get(printable(name), 0) + count
    return shown


def with_short_names(counters: Mapping[str, int]) -> Mapping[str, int]:
    """Return counters by names that a reader is shown: printable, and no longer than a name.

    The printable form of a name may be ten times as long. Names with the same short form are one
    counter.
    """
    if all(map(is_short_name, counters)):
        return counters
    short: dict[str, int] = {}
    for name, count in counters.items():
        short = joint_counters(short, {bounded(name, MAX_NAME_LENGTH): count})
    return short


def is_short_name(name: str) -> bool:
    """Decide whether a name is printable, and no longer than a name may be."""
    return len(name) <= MAX_NAME_LENGTH and name.isprintable()


def _check_names(counters: Mapping[str, int], field: str) -> None:
    if len(counters) > MAX_OPEN_COUNTERS:
        raise CorruptMessageError(
            field, f"{len(counters)} counters, but at most {MAX_OPEN_COUNTERS} are allowed"
        )
    for name in counters:
        if not 0 < len(name) <= MAX_NAME_LENGTH:
            raise CorruptMessageError(
                field, f"a name has {len(name)} characters, not 1 to {MAX_NAME_LENGTH}"
            )


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
        raise CorruptMessageError(
            f"{field}.positions", "must be in ascending order, without repetitions"
        )
    try:
        return Histogram(buckets, message.sum_ns, message.min_ns, message.max_ns)
    except ValueError as error:
        raise CorruptMessageError(field, str(error)) from None
