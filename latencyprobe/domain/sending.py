"""Waits for bytes to be sent: for a window, for pacing, or for more bytes to send with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from latencyprobe.domain.attention import Attention
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.evidence import of_count
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.wait import Wait, are_many, counted, pending_wait, shown

_BEHIND_CONGESTION = "sendsBehindCongestion"
_PACED = "sendsPaced"
# By what held the bytes back: their time, their number, the cause.
_TO_BE_SENT = (
    ("behindWindowNs", "sendsBehindWindow", Bottleneck.RECEIVE_WINDOW),
    ("behindCongestionNs", _BEHIND_CONGESTION, Bottleneck.CONGESTION),
    ("pacedNs", _PACED, Bottleneck.CONGESTION),
    ("heldBackNs", "sendsHeldBack", Bottleneck.HELD_BACK),
)
_ANSWERS = ("app.response", "peer.response")


@dataclass
class Sending:
    """The bytes that a target has to send, and those that its peers have for it.

    `congestion`: the cause of a small congestion window. `lost_ns`: the time of losses that are not
    made good yet. The bytes behind them wait for those.
    """

    measurement: Measurement
    attention: Attention
    congestion: Bottleneck
    lost_ns: int

    def waits(self) -> Iterator[Wait]:
        """Yield the waits to send, on both sides."""
        waited = self.measurement.stage("tx.socket")
        sent = waited.histogram.count + self.measurement.stage("tx.total").unmatched + waited.lost
        for ns_name, count_name, cause in _TO_BE_SENT:
            ns, count = self._of_cause(ns_name, count_name)
            if not ns:
                continue
            seen = shown(counted(self.measurement, (count_name,)))
            root = self._root(count_name, cause)
            held_back = ("peer.response",) if cause is Bottleneck.HELD_BACK else ()
            bounds = self.attention.bounds("tx.socket", *held_back)
            yield Wait(root, ns, bounds.add_up(ns, count, sent), "tx.socket", seen)
        yield self._held_back_by_the_peer()
        yield self._behind_own_window()
        yield self._unsent()

    def _root(self, count_name: str, cause: Bottleneck) -> Bottleneck:
        """Return the cause behind this one. The rate that BBR finds may be that of the reader."""
        counters = self.measurement.counters
        if count_name == _BEHIND_CONGESTION:
            return self.congestion
        if count_name == _PACED and are_many(self._zero_windows, counters.get(_PACED, 0)):
            return Bottleneck.RECEIVE_WINDOW
        return cause

    @property
    def _zero_windows(self) -> int:
        return self.measurement.counters.get("zeroWindowsReceived", 0)

    def _of_cause(self, ns_name: str, count_name: str) -> tuple[int, int]:
        """Return time and number of a cause; the time by the numbers if it was not measured."""
        counters = self.measurement.counters
        count = counters.get(count_name, 0)
        if any(counters.get(each) for each, _, _ in _TO_BE_SENT):
            return counters.get(ns_name, 0), count
        of_all = sum(counters.get(each, 0) for _, each, _ in _TO_BE_SENT)
        waited = self.measurement.stage("tx.socket")
        whole_ns = round(waited.histogram.sum_ns / waited.sampling_ratio)
        return (whole_ns * count // of_all if of_all else 0), count

    def _held_back_by_the_peer(self) -> Wait:
        counters = self.measurement.counters
        ns, count = counters.get("heldBackByPeerNs", 0), counters.get("heldBackByPeer", 0)
        received = self.measurement.stage("rx.total").histogram.count
        figure = f"{count:,} times the peer's next piece came only after this side's delayed ACK"
        figures = (of_count(count, figure),) if count else ()
        is_noteworthy = self.attention.bounds("peer.response").add_up(ns, count, received)
        return Wait(Bottleneck.HELD_BACK, ns, is_noteworthy, None, figures)

    def _behind_own_window(self) -> Wait:
        """Return the wait of peers for the window of this side, which is small for the distance."""
        counters = self.measurement.counters
        ns, count = counters.get("ownWindowFullNs", 0), counters.get("ownWindowFull", 0)
        answers = (self.measurement.stage(name) for name in _ANSWERS)
        messages = max(round(each.histogram.count / each.sampling_ratio) for each in answers)
        figure = f"in {count:,} round trips the peer used up the receive window of this side"
        figures = (of_count(count, figure),) if count else ()
        is_noteworthy = self.attention.bounds("peer.response").add_up(ns, count, messages)
        return Wait(Bottleneck.RECEIVE_WINDOW, ns, is_noteworthy, None, figures)

    def _unsent(self) -> Wait:
        cause = Bottleneck.RECEIVE_WINDOW if self._zero_windows else Bottleneck.CONGESTION
        bounds = self.attention.bounds("tx.socket")
        unsent = pending_wait(self.measurement, "unsentWrites", cause, "tx.socket", bounds)
        left_ns = max(unsent.ns - self.lost_ns, 0)
        return unsent._replace(ns=left_ns, is_noteworthy=unsent.is_noteworthy and left_ns > 0)
