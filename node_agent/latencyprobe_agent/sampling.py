"""The governor: keeps the eBPF programs of a node within their budget.

On a node whose tasks wait for a CPU, the budget is smaller: measuring backs off first. That is the
kernel's pressure stall information, `some` of /proc/pressure/cpu over ten seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from latencyprobe.domain.stages import Module
from latencyprobe_agent.budget import Budget
from latencyprobe_agent.control import STOP_ORDER, Control, Cost, Effort, EffortLimits
from latencyprobe_agent.kernel.contract import Overhead

log = logging.getLogger(__name__)

# CPU pressure from which the budget is a half, and a quarter.
_PRESSED, _HARD_PRESSED = 50.0, 80.0


class Governor:
    """The control, by each new figure of the cost against the budget in force."""

    def __init__(self) -> None:
        self._control = Control()
        self._budget = Budget()
        self._stoppable: tuple[Module, ...] = ()
        self._figure: int | None = None

    @property
    def has_budget(self) -> bool:
        """True if there is a budget to keep to."""
        return self._budget.cpu_percent > 0

    @property
    def effort(self) -> Effort:
        """The means in use."""
        return self._control.effort

    @property
    def ratio(self) -> float:
        """The share of the packets that is measured."""
        return 2.0**-self.effort.shift

    @property
    def stopped(self) -> frozenset[Module]:
        """The modules that the budget has no room for."""
        return frozenset(self._stoppable[: self.effort.stopped])

    def keep_to(self, budget: Budget, modules: Collection[Module] = ()) -> None:
        """Have this budget for these modules from now on; judge the last figure once more."""
        wanted = [module for module in STOP_ORDER if module in modules]
        self._budget = budget
        self._stoppable = tuple(wanted[: max(len(set(modules)) - 1, 0)])
        self._figure = None

    def judge(self, overhead: Overhead, pressure_percent: float = 0.0) -> bool:
        """Return True if this is a new figure, and the effort changes with it.

        `pressure_percent`: the part of the time in which tasks of the node wait for a CPU.
        """
        if overhead.cpu_percent is None or overhead.figure == self._figure:
            return False
        if overhead.slice_shift != self.effort.slices:
            return False  # it is of the time before the last change
        self._figure = overhead.figure
        before = self.effort
        cpu_percent = under_pressure(self._budget.cpu_percent, pressure_percent)
        limits = EffortLimits(cpu_percent, self._budget.max_shift, len(self._stoppable))
        self._control = self._control.after(Cost.of(overhead), limits)
        if self.effort == before:
            return False
        log.info(
            "programs take %.1f %% of a core, the budget is %g %%%s: measuring 1 packet in %d of "
            "1 part of the time in %d%s",
            overhead.cpu_percent,
            cpu_percent,
            f" at a CPU pressure of {pressure_percent:.0f} %" if pressure_percent else "",
            1 << self.effort.packets,
            1 << self.effort.slices,
            "".join(
                f", without module {module}" for module in STOP_ORDER if module in self.stopped
            ),
        )
        return True


def under_pressure(budget_percent: float, pressure_percent: float) -> float:
    """Return the part of a budget that remains on a node with this CPU pressure."""
    if pressure_percent >= _HARD_PRESSED:
        return budget_percent / 4
    return budget_percent / 2 if pressure_percent >= _PRESSED else budget_percent
