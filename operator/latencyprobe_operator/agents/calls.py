"""The calls of one agent's service that the operator makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from grpc import aio

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub

if TYPE_CHECKING:
    from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentAsyncStub

_WATCH_REPORTS = "/latencyprobe.v1.NodeAgent/WatchReports"


class SizedReport(NamedTuple):
    """A report and its size in bytes, which cannot be found quickly once it is decoded."""

    message: pb.Report
    size: int


class AgentCalls:
    """The calls over one channel, by the names of the protocol. Reports arrive as `SizedReport`."""

    def __init__(self, channel: aio.Channel) -> None:
        stub: NodeAgentAsyncStub = NodeAgentStub(channel)
        self.GetNodeInfo = stub.GetNodeInfo
        self.Apply = stub.Apply
        self.WatchReports: aio.StreamStreamMultiCallable[pb.WatchReportsRequest, SizedReport] = (
            channel.stream_stream(
                _WATCH_REPORTS,
                request_serializer=pb.WatchReportsRequest.SerializeToString,
                response_deserializer=_sized,
            )
        )


def _sized(encoded: bytes) -> SizedReport:
    return SizedReport(pb.Report.FromString(encoded), len(encoded))
