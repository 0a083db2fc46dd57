"""The budget of a node's eBPF programs, from all probes there and the administrator's ceilings.

All probes of a node share the programs, and one sampling ratio. So no namespace may lower it for
another: each has the strictest budget of its own probes, and the most generous namespace decides.
The ceilings bound them all. Budgets are percent of one core; 0 means no limit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from latencyprobe_agent.desired import DesiredProbe

DEFAULT_MAX_CPU_PERCENT = 5.0
# Of the sampling by packets and by time slices: see sampling.py.
MAX_PACKET_SHIFT = 6
MAX_SLICE_SHIFT = 7
MAX_SHIFT = MAX_PACKET_SHIFT + MAX_SLICE_SHIFT
LOWEST_SAMPLING_RATIO = 2.0**-MAX_SHIFT


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The administrator's limits for one node.

    `max_cpu_percent`: for all programs. `min_sampling_ratio`: never are fewer packets measured.
    """

    max_cpu_percent: float = 0.0
    min_sampling_ratio: float = LOWEST_SAMPLING_RATIO

    def __post_init__(self) -> None:
        if not 0 <= self.max_cpu_percent < math.inf:
            raise ValueError(f"invalid budget {self.max_cpu_percent}: it must be 0 or more")
        if not 0 < self.min_sampling_ratio <= 1:
            raise ValueError(
                f"invalid sampling ratio {self.min_sampling_ratio}: it must be above 0, at most 1"
            )


NO_CEILINGS = Ceilings()


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of the sampling: to keep to `cpu_percent`, down to 1 packet in 2**`max_shift`."""

    cpu_percent: float = 0.0
    max_shift: int = MAX_SHIFT


def budget_in_force(probes: Iterable[DesiredProbe], ceilings: Ceilings = NO_CEILINGS) -> Budget:
    """Return the budget of a node with these probes."""
    by_namespace: dict[str, list[float]] = defaultdict(list)
    for probe in probes:
        by_namespace[probe.namespace].append(probe.max_cpu_percent)
    wanted = most_generous(map(strictest, by_namespace.values()))
    allowed = (s for s in range(MAX_SHIFT + 1) if 2.0**-s >= ceilings.min_sampling_ratio)
    return Budget(strictest((wanted, ceilings.max_cpu_percent)), max(allowed))


def strictest(budgets: Iterable[float]) -> float:
    """Return the smallest of these budgets."""
    return min((budget for budget in budgets if budget > 0), default=0.0)


def most_generous(budgets: Iterable[float]) -> float:
    """Return the largest of these budgets."""
    found = list(budgets)
    return max(found, default=0.0) if all(budget > 0 for budget in found) else 0.0
