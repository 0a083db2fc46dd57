"""Measurements packed into bytes, for a receiver that keeps many of them in memory.

A packed measurement is a compressed message, a fraction of the size of its Python objects. A sum of
measurements may have more counters and stages than a message: the largest are kept.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Collection, Mapping

from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
    largest_counters,
)
from latencyprobe.protocol.limits import MAX_NODE_STAGES
from latencyprobe.protocol.measurements import (
    MAX_OPEN_COUNTERS,
    measurement_from_proto,
    measurement_to_proto,
    node_from_proto,
    node_to_proto,
)
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

# Saves two fifths, in 20 us.
_LEVEL = 1


def pack(measurement: Measurement) -> bytes:
    """Pack the measurement of a target."""
    stages, counters = measurement_to_proto(measurement)
    message = pb.TargetReport(
        stages=stages,
        counters=largest_counters(counters, MAX_OPEN_COUNTERS),
        netns_counters=largest_counters(measurement.netns_counters, MAX_OPEN_COUNTERS),
    )
    return zlib.compress(message.SerializeToString(), level=_LEVEL)


def unpack(packed: bytes) -> Measurement:
    """Return the measurement that `pack` packed."""
    message = _message(packed)
    return measurement_from_proto(message.stages, message.counters, message.netns_counters)


def unpack_stages(packed: bytes, names: Collection[str]) -> Mapping[str, StageMeasurement]:
    """Return these stages of a packed measurement, without decoding the others."""
    stages = (stage for stage in _message(packed).stages if stage.name in names)
    return measurement_from_proto(stages, {}).stages


def pack_node(stages: Mapping[NodeStage, StageMeasurement]) -> bytes:
    """Pack the stages of a node; no stages take no bytes."""
    if not stages:
        return b""
    if len(stages) > MAX_NODE_STAGES:
        stages = dict(
            heapq.nlargest(MAX_NODE_STAGES, stages.items(), key=lambda s: s[1].histogram.count)
        )
    message = node_to_proto(NodeMeasurement(stages)).SerializeToString()
    return zlib.compress(message, level=_LEVEL)


def unpack_node(packed: bytes) -> Mapping[NodeStage, StageMeasurement]:
    """Return the stages that `pack_node` packed."""
    if not packed:
        return {}
    return node_from_proto(pb.NodeContext.FromString(zlib.decompress(packed))).stages


def _message(packed: bytes) -> pb.TargetReport:
    return pb.TargetReport.FromString(zlib.decompress(packed))
