"""Fair admission: the selection of claims when a table is too small for all of them.

A *claim* requests entries in tables of limited size, for one probe in one namespace. Two claims
that need the same entry share it. Every namespace that needs a table is entitled to an equal part
of it, and unused entries are free for all. Operator and agent decide alike.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

# Limits on the desired state of one agent: room for 12 probes on 110 containers, or 4 on 330. With
# every stage in use, a target takes 0.3 ms and 4 KB of each report. It also takes up to 150 KB of
# memory: 70 KB for a window of its own in each probe, and as much for what it adds up between two
# reports. Probes that share a slot share the latter, if they have the same interval.
MAX_PROBES = 320
MAX_TARGETS = 1408
# Of one probe in an agent's summary: those that have ended in the window count too.
MAX_SUMMARISED_PODS = 4096

_PIECE_BYTES = 64
# Two are nearly always enough.
_MOST_ROUNDS = 8

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Claim(Generic[Key]):
    """A request for entries in tables, by the tables' names.

    `key` names what is admitted: claims of one key are admitted together. `place` orders the claims
    of one probe. `is_held`: the key was admitted before.
    """

    key: Key
    namespace: str
    probe_id: str
    place: str
    needs: Mapping[Hashable, frozenset[Hashable]]
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class Shortage:
    """The table that was full for a claim, and the number of entries that its namespace has."""

    table: Hashable
    namespace: str
    share: int


def refused_claims(
    claims: Iterable[Claim[Key]], sizes: Mapping[Hashable, int]
) -> dict[Key, Shortage]:
    """Return the keys that are not admitted, each with the reason.

    First, each namespace gets the claims that fit into its equal part of every table. The remaining
    entries go to the namespace that uses the smallest part so far, one claim at a time. No claim is
    refused while there are entries for it. Within a namespace, held claims come first, and probes
    take turns. The order of the claims has no influence.

    Admitted claims stay so while nothing changes. Held claims come first, which may change the
    choice once more. So the choice is repeated, with its own result as held, until it is the same.
    """
    asked = list(claims)
    refused = _refused_once(asked, sizes)
    for _ in range(_MOST_ROUNDS):
        if not refused:
            break
        asked = [replace(claim, is_held=claim.key not in refused) for claim in asked]
        before, refused = refused, _refused_once(asked, sizes)
        if refused.keys() == before.keys():
            break
    return refused


def _refused_once(
    claims: Iterable[Claim[Key]], sizes: Mapping[Hashable, int]
) -> dict[Key, Shortage]:
    by_namespace: dict[str, list[Claim[Key]]] = defaultdict(list)
    for claim in claims:
        by_namespace[claim.namespace].append(claim)
    tables = _Tables(sizes, by_namespace)
    admitted: set[Key] = set()
    waiting: dict[str, list[Claim[Key]]] = {}
    for namespace, own in by_namespace.items():
        in_turn = _in_turn(own)
        waiting[namespace] = [
            claim for claim in in_turn if not tables.take(claim, within_part=True)
        ]
        admitted.update({claim.key for claim in in_turn} - {c.key for c in waiting[namespace]})
    lacking = _share_the_rest(waiting, tables, admitted)
    return {
        claim.key: Shortage(table, claim.namespace, tables.used(claim.namespace, table))
        for claim, table in lacking
        if claim.key not in admitted
    }


def _share_the_rest(
    waiting: Mapping[str, Sequence[Claim[Key]]], tables: _Tables, admitted: set[Key]
) -> list[tuple[Claim[Key], Hashable]]:
    """Admit the waiting claims that fit; return the others, each with the table that is full."""
    queues = {namespace: iter(claims) for namespace, claims in waiting.items()}
    turns = [(tables.usage(namespace), namespace) for namespace in queues]
    heapq.heapify(turns)
    lacking = []
    while turns:
        _, namespace = heapq.heappop(turns)
        claim = next(queues[namespace], None)
        if claim is None:
            continue
        if tables.take(claim, within_part=False):
            admitted.add(claim.key)
        else:
            lacking.append((claim, tables.full_for(claim)))
        heapq.heappush(turns, (tables.usage(namespace), namespace))
    return lacking


def _in_turn(claims: Iterable[Claim[Key]]) -> list[Claim[Key]]:
    """Order the claims of one namespace: held ones first, then the probes by turns."""
    turns: Counter[tuple[bool, str]] = Counter()
    ranked = []
    for claim in sorted(claims, key=lambda c: (c.probe_id, c.place)):
        turn = (claim.is_held, claim.probe_id)
        ranked.append(((not claim.is_held, turns[turn], claim.probe_id), claim))
        turns[turn] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [claim for _, claim in ranked]


class _Tables:
    """The entries in use, in all and by namespace."""

    def __init__(
        self, sizes: Mapping[Hashable, int], claims: Mapping[str, Sequence[Claim[Key]]]
    ) -> None:
        self._sizes = sizes
        self._taken: dict[Hashable, set[Hashable]] = defaultdict(set)
        self._own: dict[tuple[str, Hashable], set[Hashable]] = defaultdict(set)
        self._contenders = Counter(
            table for own in claims.values() for table in {t for claim in own for t in claim.needs}
        )
        self._contested = [table for table, count in self._contenders.items() if count > 1]

    def take(self, claim: Claim[Key], *, within_part: bool) -> bool:
        """Take the entries if they are free; `within_part`: in the namespace's equal part."""
        for table, need in claim.needs.items():
            size, taken = self._sizes[table], self._taken[table]
            own = self._own[claim.namespace, table]
            if within_part and len(own) + len(need - own) > size // self._contenders[table]:
                return False
            if len(taken) + len(need - taken) > size:
                return False
        for table, need in claim.needs.items():
            self._own[claim.namespace, table] |= need
            self._taken[table] |= need
        return True

    def full_for(self, claim: Claim[Key]) -> Hashable:
        """Return the first table that is full for the claim."""
        for table, need in claim.needs.items():
            taken = self._taken[table]
            if len(taken) + len(need - taken) > self._sizes[table]:
                return table
        raise AssertionError("there was room for the claim")

    def used(self, namespace: str, table: Hashable) -> int:
        """Return the number of entries that a namespace has."""
        return len(self._own[namespace, table])

    def usage(self, namespace: str) -> float:
        """Return the largest part that a namespace has of any table that others need too."""
        return max(
            (self.used(namespace, table) / self._sizes[table] for table in self._contested),
            default=0.0,
        )


TargetName = tuple[str, str]
"""The ids of a probe and of one of its targets."""


def surplus_targets(
    targets: Iterable[tuple[str, TargetName]], held: Container[TargetName] = ()
) -> dict[TargetName, str]:
    """Return the targets beyond MAX_PROBES and MAX_TARGETS, each with a message.

    Each target comes with its namespace. `held` are those that were admitted before.
    """
    claims = (
        Claim(
            key=name,
            namespace=namespace,
            probe_id=name[0],
            place=name[1],
            needs={"probes": frozenset({name[0]}), "targets": frozenset({name})},
            is_held=name in held,
        )
        for namespace, name in targets
    )
    sizes: dict[Hashable, int] = {"probes": MAX_PROBES, "targets": MAX_TARGETS}
    return {
        name: f"the agent of this node measures at most {sizes[short.table]} {short.table}; "
        f"{share_text(short)}: use fewer probes on this node, or select fewer pods"
        for name, short in refused_claims(claims, sizes).items()
    }


def oversize_targets(
    targets: Iterable[tuple[str, TargetName]],
    probe_bytes: Mapping[str, int],
    target_bytes: Mapping[TargetName, int],
    max_bytes: int,
    held: Container[TargetName] = (),
) -> dict[TargetName, str]:
    """Return the targets beyond the size of a message, each with a message.

    Each target comes with its namespace, and takes its own bytes and once those of its probe. Sizes
    are rounded up to pieces of some bytes: entries of a table like any other.
    """
    pieces_of_probes = {name: _pieces(name, size) for name, size in probe_bytes.items()}
    claims = (
        Claim(
            key=name,
            namespace=namespace,
            probe_id=name[0],
            place=name[1],
            needs={"bytes": pieces_of_probes[name[0]] | _pieces(name, target_bytes[name])},
            is_held=name in held,
        )
        for namespace, name in targets
    )
    return {
        name: f"a message to an agent has at most {max_bytes} bytes; "
        f"{share_text(replace(short, share=short.share * _PIECE_BYTES))} bytes: "
        "use fewer probes on this node, or select fewer pods"
        for name, short in refused_claims(claims, {"bytes": max_bytes // _PIECE_BYTES}).items()
    }


def _pieces(of: Hashable, size_bytes: int) -> frozenset[Hashable]:
    return frozenset((of, number) for number in range(-(-size_bytes // _PIECE_BYTES)))


def share_text(shortage: Shortage) -> str:
    """Return a clause on the part that a namespace has of a table."""
    whose = f"of namespace {shortage.namespace}" if shortage.namespace else "of this client"
    return f"the share {whose} is {shortage.share}"
