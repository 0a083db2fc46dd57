"""Desired states on processes that exist: the test's own."""

from __future__ import annotations

import os

from google.protobuf.duration_pb2 import Duration

from latencyprobe.protocol.v1 import node_agent_pb2 as pb


def seconds(value: float) -> Duration:
    """As a Duration."""
    return Duration(nanos=round(value * 1e9) % 10**9, seconds=int(value))


def probe(
    name: str = "p",
    *,
    pid: int | None = None,
    interval_s: float = 0.1,
    modules: tuple[str, ...] = ("rx", "tx", "tcp"),
    ports: tuple[int, ...] = (),
    protocols: tuple[str, ...] = (),
    node_figures: bool = True,
) -> pb.Probe:
    """A probe on one process."""
    return pb.Probe(
        id=name,
        modules=modules,
        interval=seconds(interval_s),
        filter=pb.SocketFilter(ports=ports, protocols=protocols),
        targets=[pb.Target(id="t", pid=pid or os.getpid())],
        node_figures=node_figures,
    )


def state(*probes: pb.Probe, generation: int = 1, lease_s: float = 0) -> pb.DesiredState:
    """All that is wanted."""
    return pb.DesiredState(generation=generation, probes=probes, lease=seconds(lease_s))
