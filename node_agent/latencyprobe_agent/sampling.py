"""The governor: keeps the eBPF programs within their budget by sampling packets.

Sampling is by powers of two: with shift `n` one packet in 2**n is measured. Each new figure of the
programs' CPU time moves the shift. It goes up at once, as far as needed. It goes down one step at a
time. To avoid oscillation, that needs twice the cost to be well inside the budget.

Sampling makes only targets' packets cheaper. If other packets cause the cost, fewer samples only
make the figures worse. So a raise that did not help is undone, and not repeated for a while.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from latencyprobe_agent.budget import MAX_SHIFT, Budget
from latencyprobe_agent.kernel.contract import Overhead

log = logging.getLogger(__name__)

# Figures until a raise that did not help is repeated: one arrives every ten seconds.
PATIENCE = 12
_ROOM = 0.4
# A raise has helped if this much of the cost is gone.
_RELIEF = 0.25


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling in force, and the facts for the next decision.

    `raised_from`: (shift, CPU percent) before the last raise, until its effect is known.
    `patience`: number of figures before the next raise.
    """

    shift: int = 0
    raised_from: tuple[int, float] | None = None
    patience: int = 0

    def after(
        self, cpu_percent: float, budget_percent: float, max_shift: int = MAX_SHIFT
    ) -> Sampling:
        """Return the sampling after a new figure of CPU time; both are percent of one core."""
        if budget_percent <= 0:
            return Sampling()
        if self.shift > max_shift:
            return Sampling(max_shift, None, self.patience)
        if cpu_percent > budget_percent:
            return self._over_budget(cpu_percent, cpu_percent / budget_percent, max_shift)
        patience = max(self.patience - 1, 0)
        if cpu_percent < _ROOM * budget_percent and self.shift:
            return Sampling(self.shift - 1, None, patience)
        return Sampling(self.shift, None, patience)

    def _over_budget(self, cpu_percent: float, excess: float, max_shift: int) -> Sampling:
        if self.raised_from is not None:
            shift_before, cpu_before = self.raised_from
            if cpu_percent > (1 - _RELIEF) * cpu_before:
                return Sampling(shift_before, None, PATIENCE)
        if self.patience:
            return Sampling(self.shift, None, self.patience - 1)
        shift = min(self.shift + max(math.ceil(math.log2(excess)), 1), max_shift)
        raised_from = (self.shift, cpu_percent) if shift > self.shift else None
        return Sampling(shift, raised_from)


class Governor:
    """The sampling, judged by each new figure of CPU time against the budget in force."""

    def __init__(self) -> None:
        self._sampling = Sampling()
        self._budget = Budget()
        self._figure: int | None = None

    @property
    def ratio(self) -> float:
        """The share of the packets that is measured."""
        return 2.0**-self._sampling.shift

    def keep_to(self, budget: Budget) -> None:
        """Have this budget from now on, which judges the last figure once more."""
        self._budget = budget
        self._figure = None

    def judge(self, overhead: Overhead) -> int | None:
        """Return the new shift, if this is a new figure and the sampling changes with it."""
        if overhead.cpu_percent is None or overhead.figure == self._figure:
            return None
        self._figure = overhead.figure
        before = self._sampling.shift
        self._sampling = self._sampling.after(
            overhead.cpu_percent, self._budget.cpu_percent, self._budget.max_shift
        )
        if self._sampling.shift == before:
            return None
        log.info(
            "programs take %.1f %% of a core, the budget is %g %%: measuring 1 packet in %d",
            overhead.cpu_percent,
            self._budget.cpu_percent,
            1 << self._sampling.shift,
        )
        return self._sampling.shift
