"""A wait: seconds that a target's requests or packets lost in a window, by cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from latencyprobe.domain.attention import DEFAULT_BOUNDS, OPEN_TOO_LONG_NS, Bounds
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.evidence import of_count
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.patience import KINDS_OF_PEERS
from latencyprobe.domain.pending import PENDING_BY_NAME, Pending, describe

# The cost of an event whose cost was not measured: a refused connect, a dropped datagram. It is the
# first time-out of TCP's connects, and the least of resolvers.
FAILURE_NS = 1_000_000_000
# A few failures are part of every long day: a pod that was replaced.
MANY_FAILURES = 5
_SHARE_OF_MANY = 0.01
_NOTHING_PENDING = Pending(0)


class Wait(NamedTuple):
    """Waiting by one cause. A tuple, since some thirty are made for each pod and interval.

    `is_noteworthy`: it is worth a person's attention. `stage`: where the time is, if it is in one.
    `figures`: more that it rests on, as sentences. `is_distance`: it is there without any fault.
    `culprit`: the cause's name or address, if that is known.
    """

    cause: Bottleneck
    ns: int
    is_noteworthy: bool
    stage: str | None = None
    figures: tuple[str, ...] = ()
    is_distance: bool = False
    culprit: str = ""


def are_many(failures: int, among: int) -> bool:
    """Return True for several failures that are no small part of all requests."""
    return failures >= max(MANY_FAILURES, _SHARE_OF_MANY * among)


def counted(measurement: Measurement, names: Iterable[str]) -> Mapping[str, int]:
    """Return the counters of these names that are not 0."""
    return {name: n for name in names if (n := measurement.counters.get(name, 0))}


def shown(counters: Mapping[str, int]) -> tuple[str, ...]:
    """Return counters as one sentence; none without counters."""
    if not counters:
        return ()
    text = ", ".join(f"{name} {count:,}" for name, count in counters.items())
    return (of_count(next(iter(counters.values())), text),)


def pending_of_kind(measurement: Measurement, kind: str) -> Pending:
    """Return what is pending of a kind; nothing where that was not read."""
    return (measurement.pending or {}).get(kind, _NOTHING_PENDING)


def pending_wait(
    measurement: Measurement,
    kind: str,
    cause: Bottleneck,
    stage: str | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> Wait:
    """Return the waiting of a pending kind, which has not ended; its worst peer is the culprit."""
    pending = pending_of_kind(measurement, kind)
    figures = (describe(PENDING_BY_NAME[kind], pending),) if pending.count else ()
    is_too_long = pending.oldest_ns >= bounds.at_least(OPEN_TOO_LONG_NS)
    peers = measurement.peers if kind in KINDS_OF_PEERS and pending.count else ()
    culprit = next((str(each.address) for each in peers if each.kind == kind), "")
    return Wait(cause, pending.waiting_ns, is_too_long, stage, figures, culprit=culprit)
