"""Fair admission: the selection of claims when a table is too small for all of them.

A *claim* requests entries in tables of limited size, for one probe in one namespace. Two claims
that need the same entry share it. Every namespace that needs a table is entitled to an equal part
of it, and unused entries are free for all. Operator and agent decide alike.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

# Limits on the desired state of one agent: room for 12 probes on 110 containers, or 4 on 330. With
# every stage in use, a target takes 0.3 ms and 4 KB of each report. It also takes up to 150 KB of
# memory: 70 KB for a window of its own in each probe, and as much for what it adds up between two
# reports. Probes that share a slot share the latter, if they have the same interval.
MAX_PROBES = 320
MAX_TARGETS = 1408
# A window of a pod takes 1.1 ms of a core in each interval of its probe, with every stage in use:
# 0.4 ms to add the figures, and 0.7 ms for percentiles and the verdict. Each further container of
# the pod takes 0.3 ms. This limit is for intervals below LONG_INTERVAL_S: three probes at 1 s on
# 110 pods. The other 1,078 targets, each at 10 s, add 108 windows per second. All of them take half
# of the one core that an agent can use.
MAX_WINDOWS_PER_SECOND = 330
# Windows of this interval and of longer ones have no limit but that of targets. So no other
# namespace can take their room.
LONG_INTERVAL_S = 10
# Of one probe in an agent's summary: those that have ended in the window count too.
MAX_SUMMARISED_PODS = 4096

# Of limits that are shared one by one.
_TABLE = "table"
# Windows per second in whole numbers, for any interval.
_MILLIONTHS = 1_000_000
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
    """The table that was full for a claim, and the part that its namespace may have."""

    table: Hashable
    namespace: str
    share: int


def refused_claims(
    claims: Iterable[Claim[Key]],
    sizes: Mapping[Hashable, int],
    weights: Mapping[Any, int] = MappingProxyType({}),
) -> dict[Key, Shortage]:
    """Return the keys that are not admitted, each with the reason.

    `weights`: of the entries that take more of a table's size than 1.

    First, each namespace gets the claims that fit into its equal part of every table. The remaining
    entries go to the namespace that uses the smallest part so far, one claim at a time. No claim is
    refused while there are entries for it. Within a namespace, held claims come first, and probes
    take turns. The order of the claims has no influence.

    Admitted claims of one table stay so while nothing changes; those of several tables do so after
    a few choices. Held claims come first, which may change the choice once more. So the choice is
    repeated, with its own result as held, until it is the same.
    """
    asked = list(claims)
    if _all_fit(asked, sizes, weights):
        return {}
    refused = _refused_once(asked, sizes, weights)
    for _ in range(_MOST_ROUNDS):
        if not refused:
            break
        asked = [replace(claim, is_held=claim.key not in refused) for claim in asked]
        before, refused = refused, _refused_once(asked, sizes, weights)
        if refused.keys() == before.keys():
            break
    return refused


def _all_fit(
    claims: Iterable[Claim[Key]],
    sizes: Mapping[Hashable, int],
    weights: Mapping[Any, int],
) -> bool:
    wanted: dict[Hashable, set[Hashable]] = defaultdict(set)
    for claim in claims:
        for table, need in claim.needs.items():
            wanted[table] |= need
    return all(_weight_of(entries, weights) <= sizes[table] for table, entries in wanted.items())


def _weight_of(entries: Collection[Hashable], weights: Mapping[Any, int]) -> int:
    return sum(weights.get(entry, 1) for entry in entries)


def _refused_once(
    claims: Iterable[Claim[Key]],
    sizes: Mapping[Hashable, int],
    weights: Mapping[Any, int],
) -> dict[Key, Shortage]:
    by_namespace: dict[str, list[Claim[Key]]] = defaultdict(list)
    for claim in claims:
        by_namespace[claim.namespace].append(claim)
    tables = _Tables(sizes, by_namespace, weights)
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
        claim.key: Shortage(table, claim.namespace, tables.share(claim.namespace, table))
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
    """The entries in use, in all and by namespace, and their weights together."""

    def __init__(
        self,
        sizes: Mapping[Hashable, int],
        claims: Mapping[str, Sequence[Claim[Key]]],
        weights: Mapping[Any, int],
    ) -> None:
        self._sizes = sizes
        self._weights = weights
        self._taken: dict[Hashable, set[Hashable]] = defaultdict(set)
        self._own: dict[tuple[str, Hashable], set[Hashable]] = defaultdict(set)
        self._taken_size: Counter[Hashable] = Counter()
        self._own_size: Counter[tuple[str, Hashable]] = Counter()
        self._contenders = Counter(
            table for own in claims.values() for table in {t for claim in own for t in claim.needs}
        )
        self._contested = [table for table, count in self._contenders.items() if count > 1]

    def take(self, claim: Claim[Key], *, within_part: bool) -> bool:
        """Take the entries if they are free; `within_part`: in the namespace's equal part."""
        owner = claim.namespace
        for table, need in claim.needs.items():
            own_size = self._own_size[owner, table] + self._more(need, self._own[owner, table])
            if within_part and own_size > self._part(table):
                return False
            if not self._has_room(table, need):
                return False
        for table, need in claim.needs.items():
            own, taken = self._own[owner, table], self._taken[table]
            self._own_size[owner, table] += self._more(need, own)
            self._taken_size[table] += self._more(need, taken)
            own |= need
            taken |= need
        return True

    def full_for(self, claim: Claim[Key]) -> Hashable:
        """Return the first table that is full for the claim."""
        for table, need in claim.needs.items():
            if not self._has_room(table, need):
                return table
        raise AssertionError("there was room for the claim")

    def share(self, namespace: str, table: Hashable) -> int:
        """Return the part that a namespace may have: an equal one, or more if it has more."""
        return max(self._own_size[namespace, table], self._part(table))

    def usage(self, namespace: str) -> float:
        """Return the largest part that a namespace has of any table that others need too."""
        return max(
            (self._own_size[namespace, table] / self._sizes[table] for table in self._contested),
            default=0.0,
        )

    def _part(self, table: Hashable) -> int:
        return self._sizes[table] // self._contenders[table]

    def _more(self, need: frozenset[Hashable], entries: set[Hashable]) -> int:
        """Return the weight of the needed entries that are not among these."""
        more = need - entries
        return _weight_of(more, self._weights) if self._weights else len(more)

    def _has_room(self, table: Hashable, need: frozenset[Hashable]) -> bool:
        more = self._more(need, self._taken[table])
        return self._taken_size[table] + more <= self._sizes[table]


TargetName = tuple[str, str]
"""The ids of a probe and of one of its targets."""


class WindowOfPod(NamedTuple):
    """The window of a pod that a probe keeps; all targets of the pod share it."""

    probe_id: str
    pod_uid: str
    interval_s: float


def surplus_targets(
    targets: Iterable[tuple[str, TargetName]],
    held: Container[TargetName] = (),
    windows: Mapping[TargetName, WindowOfPod] = MappingProxyType({}),
) -> dict[TargetName, str]:
    """Return the targets beyond the limits of an agent, each with a message.

    Each target comes with its namespace. `held` are those that were admitted before. `windows`: of
    the targets that have one. The limits are shared one by one: a namespace that needs much of one
    must not lose its part of another.

    The choice among windows is made first, without regard to `held`. Targets that the other limits
    refuse are not held, and would change places with held ones again and again.
    """
    listed = list(targets)
    surplus = {
        name: f"an agent computes at most {MAX_WINDOWS_PER_SECOND} windows of pods per second "
        f"for intervals below {LONG_INTERVAL_S} s; {share_text(shortage, _MILLIONTHS)}: "
        "use a longer interval, or select fewer pods"
        for name, shortage in _without_time(listed, windows).items()
    }
    for size, things in ((MAX_PROBES, "probes"), (MAX_TARGETS, "targets")):
        left = [name for _, name in listed if name not in surplus]
        entries = {name: name[0] if things == "probes" else name for name in left}
        for name, shortage in _without_room(listed, entries, size, held).items():
            surplus[name] = (
                f"the agent of this node measures at most {size} {things}; "
                f"{share_text(shortage)}: use fewer probes on this node, or select fewer pods"
            )
    return surplus


def _without_time(
    targets: Iterable[tuple[str, TargetName]], windows: Mapping[TargetName, WindowOfPod]
) -> dict[TargetName, Shortage]:
    """Return the targets whose windows would take too much time."""
    limited = {
        name: window for name, window in windows.items() if window.interval_s < LONG_INTERVAL_S
    }
    weights = {window: int(_MILLIONTHS / window.interval_s) for window in limited.values()}
    owners = {limited[name]: namespace for namespace, name in targets if name in limited}
    claims = (
        Claim(window, namespace, window.probe_id, window.pod_uid, {_TABLE: frozenset({window})})
        for window, namespace in owners.items()
    )
    refused = _refused_once(claims, {_TABLE: MAX_WINDOWS_PER_SECOND * _MILLIONTHS}, weights)
    return {name: refused[window] for name, window in limited.items() if window in refused}


def _without_room(
    targets: Iterable[tuple[str, TargetName]],
    entries: Mapping[TargetName, Hashable],
    size: int,
    held: Container[TargetName],
) -> dict[TargetName, Shortage]:
    """Return the targets whose entries do not fit into a table of this size."""
    claims = (
        Claim(
            key=entries[name],
            namespace=namespace,
            probe_id=name[0],
            place=name[1],
            needs={_TABLE: frozenset({entries[name]})},
            is_held=name in held,
        )
        for namespace, name in targets
        if name in entries
    )
    refused = refused_claims(claims, {_TABLE: size})
    return {name: refused[entry] for name, entry in entries.items() if entry in refused}


def oversize_targets(
    targets: Iterable[tuple[str, TargetName]],
    probe_bytes: Mapping[str, int],
    target_bytes: Mapping[TargetName, int],
    max_bytes: int,
    held: Container[TargetName] = (),
) -> dict[TargetName, str]:
    """Return the targets beyond the size of a message, each with a message.

    Each target comes with its namespace, and takes its own bytes and once those of its probe.
    """
    claims = (
        Claim(
            key=name,
            namespace=namespace,
            probe_id=name[0],
            place=name[1],
            needs={_TABLE: frozenset({name[0], name})},
            is_held=name in held,
        )
        for namespace, name in targets
    )
    weights: dict[Any, int] = {**probe_bytes, **target_bytes}
    return {
        name: f"a message to an agent has at most {max_bytes} bytes; {share_text(shortage)} bytes: "
        "use fewer probes on this node, or select fewer pods"
        for name, shortage in refused_claims(claims, {_TABLE: max_bytes}, weights).items()
    }


def share_text(shortage: Shortage, unit: int = 1) -> str:
    """Return a clause on the part that a namespace may have of a table, in these units."""
    whose = f"of namespace {shortage.namespace}" if shortage.namespace else "of this client"
    share = f"{shortage.share / unit:.1f}".removesuffix(".0")
    return f"the share {whose} is {share}"
