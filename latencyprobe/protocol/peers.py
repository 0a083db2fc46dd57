"""The peers that requests wait for, as the protocol carries them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from latencyprobe.domain.patience import KINDS_OF_PEERS, MAX_REPORTED_PEERS, Peer
from latencyprobe.domain.pending import LONGEST_PENDING_NS
from latencyprobe.protocol.endpoints import endpoint_from_proto, endpoint_to_proto
from latencyprobe.protocol.limits import LARGEST_NUMBER, check_length, check_numbers
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

# Of one target or pod. A newer agent may send more of them, or more kinds.
MAX_PEERS = 64


def peers_to_proto(peers: Iterable[Peer]) -> list[pb.Peer]:
    """Encode peers."""
    return [
        pb.Peer(
            endpoint=endpoint_to_proto(peer.address),
            kind=peer.kind,
            count=min(peer.count, LARGEST_NUMBER),
            oldest_ns=min(peer.oldest_ns, LONGEST_PENDING_NS),
            waiting_ns=min(peer.waiting_ns, LARGEST_NUMBER),
        )
        for peer in peers
    ]


def peers_from_proto(messages: Sequence[pb.Peer], field: str) -> tuple[Peer, ...]:
    """Decode and check peers; raise CorruptMessageError.

    Unknown kinds of a newer agent are left out. So are those beyond MAX_REPORTED_PEERS, the last.
    """
    check_length(field, len(messages), MAX_PEERS)
    found = []
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        check_numbers((message.count, message.waiting_ns), where)
        if message.oldest_ns > LONGEST_PENDING_NS:
            raise CorruptMessageError(
                f"{where}.oldest_ns",
                f"{message.oldest_ns} is too large: it must be at most {LONGEST_PENDING_NS}",
            )
        if message.kind in KINDS_OF_PEERS:
            found.append(_peer(message, where))
    if len({(peer.address, peer.kind) for peer in found}) < len(found):
        raise CorruptMessageError(field, "a peer is repeated")
    return tuple(found[:MAX_REPORTED_PEERS])


def _peer(message: pb.Peer, where: str) -> Peer:
    return Peer(
        endpoint_from_proto(message.endpoint, f"{where}.endpoint"),
        message.kind,
        message.count,
        message.oldest_ns,
        message.waiting_ns,
    )
