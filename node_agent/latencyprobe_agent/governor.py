"""The governor: keeps the eBPF programs within their budget by looking at fewer packets.

Sampling is by powers of two: with shift `n` one packet in 2**n is measured. Each new figure of the
programs' CPU time moves the shift: up at once as far as needed, down one step at a time, and only
where twice the cost would still be well inside the budget, so that it does not swing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MAX_SHIFT = 8
_ROOM = 0.4


def strictest(budgets: Iterable[float]) -> float:
    """The budget that holds for programs that several probes share; 0 means no limit."""
    return min((budget for budget in budgets if budget > 0), default=0.0)


def next_shift(shift: int, cpu_percent: float, budget_percent: float) -> int:
    """The sampling shift after a figure of CPU time, in percent of one core."""
    if budget_percent <= 0:
        return 0
    if cpu_percent > budget_percent:
        steps = math.ceil(math.log2(cpu_percent / budget_percent))
        return min(shift + max(steps, 1), MAX_SHIFT)
    if cpu_percent < _ROOM * budget_percent:
        return max(shift - 1, 0)
    return shift
