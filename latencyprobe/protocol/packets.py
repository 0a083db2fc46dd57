"""Traced packets as the protocol carries them; `measurements` explains the checks.

The command of a packet stays exact: programs compare it with /proc. Its writers make it printable.
"""

from __future__ import annotations

from typing import Literal

from latencyprobe.domain.packets import Endpoint, TraceCounts, TracedPacket, User
from latencyprobe.domain.stages import PACKET_STAGES
from latencyprobe.printable import printable
from latencyprobe.protocol.endpoints import endpoint_from_proto, endpoint_to_proto
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

_KNOWN = frozenset(stage.name for stage in PACKET_STAGES)
_TOTALS = frozenset(stage.name for stage in PACKET_STAGES if stage.whole is None)


def packet_to_proto(packet: TracedPacket) -> pb.TracedPacket:
    """Encode the packet as a message."""
    user = packet.user
    return pb.TracedPacket(
        ended_unix_ns=packet.ended_unix_ns,
        pid=user.pid if user else 0,
        thread_id=user.thread_id if user else 0,
        command=user.command if user else "",
        cpu=packet.cpu,
        protocol=packet.protocol,
        local=endpoint_to_proto(packet.local),
        remote=endpoint_to_proto(packet.remote),
        stages_ns=packet.stages_ns,
    )


def packet_from_proto(message: pb.TracedPacket) -> TracedPacket:
    """Decode the packet in a message; raise CorruptMessageError.

    Unknown stages of a newer agent are left out.
    """
    stages_ns = {name: ns for name, ns in message.stages_ns.items() if name in _KNOWN}
    if len(_TOTALS & stages_ns.keys()) != 1:
        raise CorruptMessageError("stages_ns", "must have exactly one total")
    return TracedPacket(
        ended_unix_ns=message.ended_unix_ns,
        user=User(message.pid, message.thread_id, message.command) if message.pid else None,
        cpu=message.cpu,
        protocol=printable(message.protocol),
        local=_endpoint(message, "local"),
        remote=_endpoint(message, "remote"),
        stages_ns={s.name: stages_ns[s.name] for s in PACKET_STAGES if s.name in stages_ns},
    )


def counts_to_proto(counts: TraceCounts, sampling_ratio: float) -> pb.TraceCounts:
    """Encode the counts as a message."""
    return pb.TraceCounts(
        reported=counts.reported,
        rate_limited=counts.limited,
        lost=counts.lost,
        sampling_ratio=sampling_ratio,
    )


def counts_from_proto(message: pb.TraceCounts) -> TraceCounts:
    """Decode the counts in a message."""
    return TraceCounts(message.reported, message.rate_limited, message.lost)


def _endpoint(message: pb.TracedPacket, field: Literal["local", "remote"]) -> Endpoint | None:
    endpoint: pb.Endpoint = getattr(message, field)
    return endpoint_from_proto(endpoint, field) if message.HasField(field) else None
