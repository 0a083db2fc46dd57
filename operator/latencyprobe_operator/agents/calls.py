"""The calls of one agent's service that the operator makes."""

from __future__ import annotations

from grpc import aio

from latencyprobe.protocol.v1 import node_agent_pb2 as pb

_SERVICE = "/latencyprobe.v1.NodeAgent"


class AgentCalls:
    """The calls over one channel, by the names of the protocol. Reports arrive encoded.

    A method is made when it is called. A stub keeps all of them: 2 KiB of each agent.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: aio.Channel) -> None:
        self._channel = channel

    @property
    def GetNodeInfo(  # noqa: N802 - the protocol's name
        self,
    ) -> aio.UnaryUnaryMultiCallable[pb.GetNodeInfoRequest, pb.NodeInfo]:
        """Return the method that describes the agent."""
        return self._channel.unary_unary(
            f"{_SERVICE}/GetNodeInfo",
            request_serializer=pb.GetNodeInfoRequest.SerializeToString,
            response_deserializer=pb.NodeInfo.FromString,
        )

    @property
    def Apply(  # noqa: N802 - the protocol's name
        self,
    ) -> aio.UnaryUnaryMultiCallable[pb.DesiredState, pb.ApplyResult]:
        """Return the method that applies a desired state."""
        return self._channel.unary_unary(
            f"{_SERVICE}/Apply",
            request_serializer=pb.DesiredState.SerializeToString,
            response_deserializer=pb.ApplyResult.FromString,
        )

    @property
    def WatchReports(  # noqa: N802 - the protocol's name
        self,
    ) -> aio.StreamStreamMultiCallable[pb.WatchReportsRequest, bytes]:
        """Return the method that streams reports.

        They wait for their turn as they are: decoded, one takes eight times as much memory.
        """
        return self._channel.stream_stream(
            f"{_SERVICE}/WatchReports",
            request_serializer=pb.WatchReportsRequest.SerializeToString,
        )
