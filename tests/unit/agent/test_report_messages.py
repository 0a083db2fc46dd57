"""Times in reports: by the wall clock, and of the length that the monotonic one says."""

from __future__ import annotations

import pytest

from latencyprobe_agent.collector import Moment, ProbeFigures
from latencyprobe_agent.serving.messages import report_frame
from latencyprobe_agent.serving.requests import parse_desired
from tests.unit.agent.states import probe, state

NOON_NS = 1_700_000_000_000_000_000
HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize("jump_ns", [0, HOUR_NS, -HOUR_NS])
def test_a_clock_that_is_set_neither_stretches_nor_reverses_a_report(jump_ns: int) -> None:
    (desired,) = parse_desired(state(probe())).probes
    begin = Moment(100.0, NOON_NS)
    end = Moment(102.5, NOON_NS + 2_500_000_000 + jump_ns)
    report = report_frame(ProbeFigures(desired, begin, end, {}))
    assert report.end.ToNanoseconds() == end.unix_ns
    assert report.end.ToNanoseconds() - report.begin.ToNanoseconds() == 2_500_000_000
