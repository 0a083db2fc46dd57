"""Addresses and ports, as the protocol carries them."""

from __future__ import annotations

from latencyprobe.domain.packets import Endpoint
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

_ADDRESS_BYTES = (4, 16)
_LARGEST_PORT = 65535


def endpoint_to_proto(endpoint: Endpoint | None) -> pb.Endpoint | None:
    """Encode an endpoint; None: it is unknown."""
    if endpoint is None:
        return None
    return pb.Endpoint(address=endpoint.address.packed, port=endpoint.port)


def endpoint_from_proto(message: pb.Endpoint, field: str) -> Endpoint:
    """Decode and check an endpoint; raise CorruptMessageError."""
    if len(message.address) not in _ADDRESS_BYTES or message.port > _LARGEST_PORT:
        raise CorruptMessageError(field, f"invalid address {message.address!r} port {message.port}")
    return Endpoint.of(message.address, message.port)
