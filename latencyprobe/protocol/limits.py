"""Limits on the numbers and lists that a peer may report.

They hold for one message. A sum of many messages may exceed them; its limits are the domain's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from latencyprobe.domain.histogram import POSITIONS
from latencyprobe.domain.measurement import MAX_NODE_STAGES
from latencyprobe.protocol.measurements import MAX_OPEN_COUNTERS, CorruptMessageError
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

LARGEST_NUMBER = 2**53 - 1
# An agent samples one packet in 2**n, or several such shares after each other in one report.
LOWEST_SAMPLING_RATIO = 2.0**-16
MAX_STAGES = 256
_WHOLE_PERCENT = 100


def check_target(message: pb.TargetReport) -> None:
    """Raise CorruptMessageError if the report on a target exceeds the limits."""
    check_length("stages", len(message.stages), MAX_STAGES)
    check_stages(message.stages, "stages")
    check_counters(message.counters, "counters")
    check_counters(message.netns_counters, "netns_counters")


def check_node(message: pb.NodeContext) -> None:
    """Raise CorruptMessageError if the report on a node exceeds the limits."""
    check_length("node.stages", len(message.stages), MAX_NODE_STAGES)
    check_stages(message.stages, "node.stages")
    check_counters(message.counters, "node.counters")


def check_cpu_percent(cpu_percent: float) -> None:
    """Raise CorruptMessageError if this is not a CPU time that an agent can have measured."""
    if not (math.isfinite(cpu_percent) and 0 <= cpu_percent <= LARGEST_NUMBER):
        raise CorruptMessageError("overhead.cpu_percent", f"invalid number {cpu_percent}")


def check_sampling_ratio(ratio: float, field: str) -> None:
    """Raise CorruptMessageError if no agent samples this share of the packets."""
    if not LOWEST_SAMPLING_RATIO <= ratio <= 1:
        raise CorruptMessageError(
            field,
            f"sampling ratio {ratio} is not between {LOWEST_SAMPLING_RATIO:g} and 1",
        )


def check_percent(percent: float, field: str) -> None:
    """Raise CorruptMessageError if this is no part of a total; parts may exceed it.

    They may have samples whose total was lost.
    """
    if not 0 <= percent <= LARGEST_NUMBER:
        raise CorruptMessageError(field, f"invalid share {percent}")


def check_whole_percent(percent: float, field: str) -> None:
    """Raise CorruptMessageError if this is no share of a whole."""
    if not 0 <= percent <= _WHOLE_PERCENT:
        raise CorruptMessageError(
            field, f"invalid share {percent}: it must be between 0 and {_WHOLE_PERCENT}"
        )


def check_stages(stages: Iterable[pb.StageDelta], field: str) -> None:
    """Raise CorruptMessageError if the figures of a stage exceed the limits."""
    for index, stage in enumerate(stages):
        if not _is_within_limits(stage):
            _check_stage(stage, f"{field}[{index}]")


def _is_within_limits(stage: pb.StageDelta) -> bool:
    """Decide with few calls: an operator takes in 19,000 stages a second."""
    histogram = stage.histogram
    counts = histogram.counts
    if len(counts) > POSITIONS or len(histogram.positions) > POSITIONS:
        return False
    largest = max(
        stage.lost,
        stage.unmatched,
        stage.clamped,
        histogram.sum_ns,
        histogram.min_ns,
        histogram.max_ns,
        *counts,
    )
    return largest <= LARGEST_NUMBER and stage.sampling_ratio in (0, 1)


def _check_stage(stage: pb.StageDelta, where: str) -> None:
    histogram = stage.histogram
    check_length(f"{where}.histogram.positions", len(histogram.positions), POSITIONS)
    check_length(f"{where}.histogram.counts", len(histogram.counts), POSITIONS)
    check_numbers((stage.lost, stage.unmatched, stage.clamped), where)
    check_numbers((histogram.sum_ns, histogram.min_ns, histogram.max_ns), f"{where}.histogram")
    check_numbers(histogram.counts, f"{where}.histogram.counts")
    # 0 is the value of stages that a newer agent reports, and of absent ones.
    if stage.sampling_ratio:
        check_sampling_ratio(stage.sampling_ratio, where)


def check_counters(counters: Mapping[str, int], field: str) -> None:
    """Raise CorruptMessageError for too many counters, or too large ones."""
    check_length(field, len(counters), MAX_OPEN_COUNTERS, "counters")
    check_numbers(counters.values(), field)


def check_length(field: str, length: int, most: int, noun: str = "entries") -> None:
    """Raise CorruptMessageError if a list is longer than this."""
    if length > most:
        raise CorruptMessageError(field, f"{length} {noun}, but at most {most} are allowed")


def check_numbers(numbers: Iterable[int], field: str) -> None:
    """Raise CorruptMessageError if a number is not below 2^53."""
    largest = max(numbers, default=0)
    if largest > LARGEST_NUMBER:
        raise CorruptMessageError(field, f"{largest} is too large: it must be below 2^53")


def check_moment(moment: Duration | Timestamp, field: str) -> None:
    """Raise CorruptMessageError for a time before zero, one from 2^53 s on, or odd nanoseconds."""
    if moment.seconds < 0 or not 0 <= moment.nanos < 10**9:
        raise CorruptMessageError(field, "is negative or out of range")
    check_numbers((moment.seconds,), field)
