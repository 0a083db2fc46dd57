"""The begin of measuring by another operator's clock."""

from __future__ import annotations

from typing import Any

import pytest

from latencyprobe_operator.agents.generations import LEASE_S
from latencyprobe_operator.api.timestamps import epoch_s
from latencyprobe_operator.probes.measured_time import (
    _STATUS_AGE_S,
    LONGEST_GAP_S,
    begin_of,
    longest_gap_s,
)
from latencyprobe_operator.probes.writer import _STALE_S

BEGIN = "2026-01-01T00:00:00Z"


def status(**parts: Any) -> dict[str, Any]:
    """The status of a probe that had measured for 1,000 s."""
    return {"startTime": BEGIN, "measuredSeconds": 1000, "phase": "Running", **parts}


@pytest.mark.parametrize(
    ("passed_s", "found", "elapsed_s"),
    [
        (1000, status(), 1000),
        (1020, status(), 1020),
        (999, status(), 999),
        (1300, status(), 1300),
        (1400, status(), 1300),
        (90_000, status(), 1300),
        (500, status(), 1000),
        (-90_000, status(phase="Degraded"), 1000),
        (90_000, status(phase="Completed"), 90_000),
        (-90_000, status(phase="Completed"), 1000),
        (90_000, {"startTime": BEGIN, "phase": "Suspended"}, 90_000),
        (90_000, status(measuredSeconds="a lot"), 90_000),
    ],
)
def test_no_more_has_passed_than_can_be(
    passed_s: float, found: dict[str, Any], elapsed_s: float
) -> None:
    now = epoch_s(BEGIN) + passed_s
    begin = begin_of(found, now)

    assert begin
    assert now - epoch_s(begin) == elapsed_s


def test_nothing_has_begun_without_a_begin() -> None:
    assert begin_of({}, 0.0) is None
    assert begin_of({"measuredSeconds": 5, "phase": "Running"}, 0.0) is None


def test_the_longest_gap_is_the_lease_of_the_agents() -> None:
    assert LONGEST_GAP_S == LEASE_S


@pytest.mark.parametrize("ahead_s", [0, 240, 86_400])
def test_a_failover_takes_a_status_and_a_lease_from_a_probe_at_most_by_any_clock(
    ahead_s: int,
) -> None:
    duration_s, failover_s, lease_s = 300, 15, 15
    now = epoch_s(BEGIN) + 60 + failover_s + ahead_s
    begin = begin_of(status(measuredSeconds=60), now, most_s=longest_gap_s(lease_s, 10))

    assert begin
    left_s = epoch_s(begin) + duration_s - now
    assert duration_s - 60 - failover_s >= left_s >= duration_s - 60 - (_STALE_S + lease_s)


def test_the_longest_gap_is_that_of_a_failover_if_there_is_an_election() -> None:
    assert _STATUS_AGE_S == _STALE_S
    assert longest_gap_s(15, 10) == 75
    assert longest_gap_s(15, 120) == 195
    assert longest_gap_s(15, 600) == LONGEST_GAP_S
    assert longest_gap_s(3600, 10) == LONGEST_GAP_S
    assert longest_gap_s(None, 10) == LONGEST_GAP_S
