"""Figures that were sent, and that the client has not acknowledged yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from latencyprobe_agent.collector import ProbeFigures

# A client that acknowledges is a few reports behind. What is older counts as delivered: unpacked
# figures are large.
_MOST_REPORTS = 8


class Unacknowledged:
    """The figures of the newest reports of one stream, by sequence.

    Nothing is kept for a client that never acknowledges. One that does begins with the first
    report, which has no figures.
    """

    def __init__(self) -> None:
        self._sent: deque[tuple[int, Sequence[ProbeFigures]]] = deque(maxlen=_MOST_REPORTS)
        self._newest = 0
        self._is_used = False

    def note(self, sequence: int, figures: Sequence[ProbeFigures]) -> None:
        """Note that a report with these figures was sent."""
        self._newest = sequence
        if figures and self._is_used:
            self._sent.append((sequence, figures))

    def acknowledge(self, sequence: int) -> None:
        """Forget what the client has; a sequence that was never sent is ignored."""
        if not 0 < sequence <= self._newest:
            return
        self._is_used = True
        while self._sent and self._sent[0][0] <= sequence:
            self._sent.popleft()

    def rest(self) -> list[ProbeFigures]:
        """Return the figures that may not have arrived, newest first."""
        return [each for _, figures in reversed(self._sent) for each in figures]
