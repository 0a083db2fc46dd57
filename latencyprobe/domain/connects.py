"""Connects that failed, by the kernel's reasons."""

from __future__ import annotations

from collections.abc import Mapping

_FAILED = (
    "connectRefused",
    "connectRejected",
    "connectTimedOut",
    "connectUnreachable",
    "connectFailedOther",
)
# The SYNs of these had an answer, or no route: a rule of this node may have dropped them.
_TURNED_AWAY = ("connectRefused", "connectRejected", "connectUnreachable")
# A rejected SYN is sent again if the answer finds the socket in its own connect().
_SENT_AGAIN = ("connectRejected", "connectUnreachable")


def failed_connects(counters: Mapping[str, int]) -> Mapping[str, int]:
    """Return the failures that are not 0, by name.

    `connectsNotSent`: calls of connect() that failed before their SYN. No report has it by itself.
    """
    failed = {name: n for name in _FAILED if (n := counters.get(name, 0))}
    unsent = counters.get("connectCalls", 0) - counters.get("connectsSent", 0)
    return {**failed, "connectsNotSent": unsent} if unsent > 0 else failed


def turned_away(counters: Mapping[str, int]) -> int:
    """Return the SYNs of these connects, which a rule of this node may have dropped."""
    return sum(counters.get(name, 0) for name in _TURNED_AWAY) + turned_away_again(counters)


def turned_away_again(counters: Mapping[str, int]) -> int:
    """Return the connects that failed after their SYN was sent again."""
    failed = sum(counters.get(name, 0) for name in _SENT_AGAIN)
    return min(failed, counters.get("connectRetransmits", 0))
