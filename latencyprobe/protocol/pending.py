"""Pending waits, as the protocol carries them: between the domain's values and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latencyprobe.domain.pending import LONGEST_PENDING_NS, PENDING_BY_NAME, Pending
from latencyprobe.protocol.limits import LARGEST_NUMBER, check_length, check_numbers
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

# Of one target or pod. A newer agent may know more kinds than this version does.
MAX_PENDING = 64


def pending_to_proto(pending: Mapping[str, Pending] | None) -> list[pb.Pending]:
    """Encode what is pending, by kind; None, which was not read, as nothing."""
    return [
        pb.Pending(
            kind=kind,
            count=min(each.count, LARGEST_NUMBER),
            sockets=min(each.sockets, LARGEST_NUMBER),
            bytes=min(each.bytes, LARGEST_NUMBER),
            oldest_ns=min(each.oldest_ns, LONGEST_PENDING_NS),
            waiting_ns=min(each.waiting_ns, LARGEST_NUMBER),
        )
        for kind, each in (pending or {}).items()
    ]


def pending_from_proto(messages: Sequence[pb.Pending], field: str) -> dict[str, Pending]:
    """Decode and check what is pending; raise CorruptMessageError.

    Unknown kinds of a newer agent are left out: see `newer_pending`.
    """
    check_length(field, len(messages), MAX_PENDING)
    found: dict[str, Pending] = {}
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        figures = (message.count, message.sockets, message.bytes, message.waiting_ns)
        check_numbers(figures, where)
        if message.oldest_ns > LONGEST_PENDING_NS:
            raise CorruptMessageError(
                f"{where}.oldest_ns",
                f"{message.oldest_ns} is too large: it must be at most {LONGEST_PENDING_NS}",
            )
        if message.kind in found:
            raise CorruptMessageError(f"{where}.kind", f"{message.kind!r} is repeated")
        if message.kind in PENDING_BY_NAME and message.count:
            found[message.kind] = _pending(message)
    return found


def newer_pending(messages: Sequence[pb.Pending]) -> dict[str, Pending]:
    """Return what is pending of unknown kinds, in messages that `pending_from_proto` has taken."""
    return {
        message.kind: _pending(message)
        for message in messages
        if message.kind not in PENDING_BY_NAME and message.count
    }


def _pending(message: pb.Pending) -> Pending:
    return Pending(
        message.count, message.sockets, message.bytes, message.oldest_ns, message.waiting_ns
    )
