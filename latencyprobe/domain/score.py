"""Scores: one number per pod and window, by which the worst pods of a cluster are found.

Agents make the scores, and the operator compares them. Both must mean the same: the protocol names
SCORE_VERSION with them. A change of `score_of` changes it.
"""

from __future__ import annotations

from collections.abc import Mapping

from latencyprobe.domain.causes import NO_ACCUSATION
from latencyprobe.domain.connects import failed_connects
from latencyprobe.domain.losses import drops_that_may_matter
from latencyprobe.domain.report import TargetReport
from latencyprobe.domain.waits import TOTALS

SCORE_VERSION = 3
# Above every p99: histograms end at 64 s, which is under 2^36 ns.
TROUBLED = 1 << 40
# Counters of packets and connections that failed, rather than of those that waited.
_FAILURES = frozenset({"acceptQueueOverflows", "receiveQueueOverflows"})


def score_of(report: TargetReport) -> int:
    """Return the score of a pod over one window; the larger, the worse.

    It is the p99 of the slower total in nanoseconds. A pod with failures, drops that may matter or
    a verdict is above all pods without.
    """
    p99s = (stage.p99_ns for stage in report.stages if stage.name in TOTALS)
    slowest_ns = min(max(p99s, default=0), TROUBLED - 1)
    return slowest_ns + TROUBLED * _is_troubled(report)


def _is_troubled(report: TargetReport) -> bool:
    return report.verdict.bottleneck not in NO_ACCUSATION or _has_failures(report.counters)


def _has_failures(counters: Mapping[str, int]) -> bool:
    failed = any(count and name in _FAILURES for name, count in counters.items())
    return failed or bool(failed_connects(counters) or drops_that_may_matter(counters))
