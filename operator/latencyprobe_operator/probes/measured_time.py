"""The time that a probe has measured, for an operator that goes on with it by another clock.

An operator counts by a clock that passes evenly. The next one begins at its own wall clock, which
may have been set, or differ. So each status has the time so far. The next operator adds
what has passed since, by its wall clock, but never less than nothing. A gap beyond the lease of the
agents is not believed either: nothing was measured in it. With an election, the gap is that of a
failover: at most the age of a status and the duration of the Lease. The rest is a difference of
clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latencyprobe_operator.api.status_fields import Phase
from latencyprobe_operator.api.timestamps import epoch_s, timestamp

# As agents.generations.LEASE_S.
LONGEST_GAP_S = 300.0
# As writer._STALE_S, and as StatusSchedule decides: while a probe measures, its status is not older
# than both of these.
_STATUS_AGE_S = 60.0
_STATUS_AGE_INTERVALS = 1.5
# Timestamps are of whole seconds, and so is the time so far.
_ROUNDING_S = 2.0
_MEASURING = frozenset({Phase.PENDING, Phase.RUNNING, Phase.DEGRADED})


def longest_gap_s(lease_s: float | None, interval_s: float) -> float:
    """Return the longest time that may have been measured since a status of another operator.

    `lease_s`: the duration of the operators' Lease; None without an election. `interval_s`: that of
    the status.
    """
    if lease_s is None:
        return LONGEST_GAP_S
    age_s = max(_STATUS_AGE_S, _STATUS_AGE_INTERVALS * interval_s)
    return min(age_s + lease_s, LONGEST_GAP_S)


def begin_of(status: Mapping[str, Any], now: float, *, most_s: float = LONGEST_GAP_S) -> str | None:
    """Return the timestamp of the begin of measuring, by the present clock; None before it.

    That of the status, unless it contradicts the time that was measured. `most_s`: as
    `longest_gap_s` returns it.
    """
    begin, measured_s = status.get("startTime"), status.get("measuredSeconds")
    if not begin or not isinstance(measured_s, int):
        return begin or None
    gap_s = now - epoch_s(begin) - measured_s
    longest_s = most_s if status.get("phase") in _MEASURING else gap_s
    possible_s = max(min(gap_s, longest_s), 0.0)
    if abs(gap_s - possible_s) <= _ROUNDING_S:
        return str(begin)
    return timestamp(now - measured_s - possible_s)
