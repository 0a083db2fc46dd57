"""Limits on the numbers and lists that a peer may report.

They hold for one message. A sum of many messages may exceed them; its limits are the domain's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from latencyprobe.domain.histogram import POSITIONS
from latencyprobe.protocol.measurements import MAX_OPEN_COUNTERS, CorruptMessageError
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

LARGEST_NUMBER = 2**53 - 1
# An agent samples one packet in 2**n, or several such shares after each other in one report.
LOWEST_SAMPLING_RATIO = 2.0**-16
MAX_STAGES = 256
# One for each interrupt handler of a node.
MAX_NODE_STAGES = 4096


def check_target(message: pb.TargetReport) -> None:
    """Raise CorruptMessageError if the report on a target exceeds the limits."""
    _check_length("stages", len(message.stages), MAX_STAGES)
    _check_stages(message.stages, "stages")
    _check_counters(message.counters, "counters")
    _check_counters(message.netns_counters, "netns_counters")


def check_node(message: pb.NodeContext) -> None:
    """Raise CorruptMessageError if the report on a node exceeds the limits."""
    _check_length("node.stages", len(message.stages), MAX_NODE_STAGES)
    _check_stages(message.stages, "node.stages")
    _check_counters(message.counters, "node.counters")


def check_cpu_percent(cpu_percent: float) -> None:
    """Raise CorruptMessageError if this is not a CPU time that an agent can have measured."""
    if not (math.isfinite(cpu_percent) and 0 <= cpu_percent <= LARGEST_NUMBER):
        raise CorruptMessageError("overhead.cpu_percent", f"invalid number {cpu_percent}")


def _check_stages(stages: Iterable[pb.StageDelta], field: str) -> None:
    for index, stage in enumerate(stages):
        where, histogram = f"{field}[{index}]", stage.histogram
        _check_length(f"{where}.histogram.positions", len(histogram.positions), POSITIONS)
        _check_length(f"{where}.histogram.counts", len(histogram.counts), POSITIONS)
        _check_numbers((stage.lost, stage.unmatched, stage.clamped), where)
        _check_numbers((histogram.sum_ns, histogram.min_ns, histogram.max_ns), f"{where}.histogram")
        _check_numbers(histogram.counts, f"{where}.histogram.counts")
        # 0 is the value of stages that a newer agent reports, and of absent ones.
        if 0 < stage.sampling_ratio < LOWEST_SAMPLING_RATIO:
            raise CorruptMessageError(
                where,
                f"sampling ratio {stage.sampling_ratio} is below {LOWEST_SAMPLING_RATIO:g}",
            )


def _check_counters(counters: Mapping[str, int], field: str) -> None:
    _check_length(field, len(counters), MAX_OPEN_COUNTERS, "counters")
    _check_numbers(counters.values(), field)


def _check_length(field: str, length: int, most: int, noun: str = "entries") -> None:
    if length > most:
        raise CorruptMessageError(field, f"{length} {noun}, but at most {most} are allowed")


def _check_numbers(numbers: Iterable[int], field: str) -> None:
    largest = max(numbers, default=0)
    if largest > LARGEST_NUMBER:
        raise CorruptMessageError(field, f"{largest} is too large: it must be below 2^53")
