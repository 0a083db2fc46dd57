"""Verdicts on what waits now: the peer that does not answer, and an age that is not known."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import CONNECTS, MISSING_ANSWERS, RESENT, Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.verdict import judge

AGE_NS, COUNT = 9_000_000_000, 20
WORST, OTHER = (Endpoint(ip_address(f"10.0.0.{host}"), 5432) for host in (7, 8))


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (CONNECTS, Bottleneck.CONNECT_FAILURES),
        (RESENT, Bottleneck.PACKET_LOSS),
        (MISSING_ANSWERS, Bottleneck.PEER),
    ],
)
def test_the_culprit_is_the_peer_for_which_most_waits(kind: str, cause: Bottleneck) -> None:
    waiting = Pending(2 * COUNT, 2 * COUNT, oldest_ns=AGE_NS, waiting_ns=3 * COUNT * AGE_NS)
    peers = tuple(
        Peer(address, kind, COUNT, AGE_NS, times * COUNT * AGE_NS)
        for address, times in ((WORST, 2), (OTHER, 1))
    )
    verdict = judge(Measurement(pending={kind: waiting}, peers=peers))
    assert (verdict.bottleneck, verdict.culprit) == (cause, "10.0.0.7:5432")
    assert "the longest for 10.0.0.7:5432" in verdict.evidence


def test_a_short_wait_for_one_peer_is_no_culprit_of_long_ones_for_others() -> None:
    refused = Measurement(counters={"connectRefused": 1000})
    waiting = Pending(1, 1, oldest_ns=AGE_NS, waiting_ns=AGE_NS)
    peers = (Peer(WORST, CONNECTS, 1, AGE_NS, AGE_NS),)
    verdict = judge(refused + Measurement(pending={CONNECTS: waiting}, peers=peers))
    assert (verdict.bottleneck, verdict.culprit) == (Bottleneck.CONNECT_FAILURES, "")


@pytest.mark.parametrize("kind", ["unreadSegments", "unacceptedConnections"])
@pytest.mark.parametrize("packets", [0, 200])
def test_waiting_since_an_unknown_time_is_not_nothing(kind: str, packets: int) -> None:
    quick = StageMeasurement(Histogram.of([1000] * packets)) if packets else StageMeasurement()
    stages = {"rx.total": quick} if packets else {}
    verdict = judge(Measurement(stages, pending={kind: Pending(3, 3)}))
    assert any("of an age that is not known yet" in line for line in verdict.evidence)
    assert "Nothing to do" not in verdict.next_step
    assert "was seen" not in verdict.next_step
