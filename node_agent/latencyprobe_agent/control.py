"""The control of the budget: a pure function from a figure of the cost to the means in use.

It has three means, in this order:

1. *Packets*: with shift `n`, one packet in 2**n is measured. That spares the run time of programs,
   half of it at least, and no call of a program.
2. *Time slices*: with shift `n`, the programs of packets are attached for one part of the time in
   2**n. That spares all that they cost. Rare events are counted all the time.
3. *Modules* are stopped, one after the other: see STOP_ORDER. The last one never is.

Each new figure of the cost is judged. Above the budget, the first means that is enough is used, as
far as needed, at once: the load may have grown a hundredfold. Back it goes one step at a time,
after some figures with room for twice the cost. A step back that had to be undone doubles the
number of those figures. So a load that fluctuates does not cause oscillation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from latencyprobe.domain.stages import Module
from latencyprobe_agent.budget import MAX_PACKET_SHIFT, MAX_SHIFT, MAX_SLICE_SHIFT
from latencyprobe_agent.kernel.contract import Overhead, attached_share

# The modules in the order in which they are stopped. The most is known without sched and irq, which
# explain the others' figures; connections and responses cost least.
STOP_ORDER: tuple[Module, ...] = (Module.SCHED, Module.IRQ, Module.TX, Module.RX)
# The programs are brought to this part of the budget, and back only up to that one.
_AIM, _ROOM = 0.8, 0.7
# Sampling by packets saves this part of the run time, at the limit: programs run all the same.
_SAVED = 0.5
# A raise has helped if this part of the run time is gone.
_RELIEF = 0.25
# Figures with room before a step back: one comes every two seconds, or every period.
PATIENCE, MOST_PATIENCE = 3, 48
# The same before a module is measured again: its cost is not known any more.
MODULE_PATIENCE, MOST_MODULE_PATIENCE = 30, 960
# A step back that holds for that many figures was right.
_PROOF = 4


class Cost(NamedTuple):
    """The cost that packets pay, in percent of one core.

    `permanent`: at hooks that time slices do not detach. `calls` and `runs`: at the others.
    """

    permanent: float = 0.0
    calls: float = 0.0
    runs: float = 0.0

    @property
    def total(self) -> float:
        """The sum."""
        return self.permanent + self.calls + self.runs

    @property
    def of_packets(self) -> float:
        """The part that time slices reduce."""
        return self.calls + self.runs

    @classmethod
    def of(cls, overhead: Overhead) -> Cost:
        """Return the cost in a figure."""
        of_packets = [each for each in overhead.hooks if not each.is_permanent]
        permanent = sum(each.cpu_percent for each in overhead.hooks if each.is_permanent)
        calls = sum(each.call_percent for each in of_packets)
        return cls(permanent, calls, max((overhead.cpu_percent or 0.0) - permanent - calls, 0.0))


@dataclass(frozen=True, slots=True)
class Effort:
    """The means in use: two shifts, and the number of stopped modules."""

    packets: int = 0
    slices: int = 0
    stopped: int = 0

    @property
    def shift(self) -> int:
        """One packet in 2**shift is measured."""
        return self.packets + self.slices

    def within(self, max_shift: int) -> Effort:
        """Return the nearest effort that measures one packet in 2**`max_shift`, or more."""
        slices = min(self.slices, MAX_SLICE_SHIFT, max_shift)
        return replace(
            self, packets=min(self.packets, MAX_PACKET_SHIFT, max_shift - slices), slices=slices
        )


@dataclass(frozen=True, slots=True)
class EffortLimits:
    """The bounds of an effort: percent of one core, the shift, and the modules that may stop."""

    cpu_percent: float
    max_shift: int = MAX_SHIFT
    stoppable: int = 0


class Raise(NamedTuple):
    """The shift and the cost before a raise of the sampling by packets."""

    packets: int
    cost: Cost

    def has_helped(self, cost: Cost) -> bool:
        """Return True if programs run for less time now, for as many calls."""
        more_calls = cost.calls / self.cost.calls if self.cost.calls else 1.0
        return cost.runs <= (1 - _RELIEF) * more_calls * self.cost.runs


@dataclass(frozen=True, slots=True)
class Control:
    """The effort, and the facts for the next decision.

    `raised_from`: before the last raise of the sampling by packets. `calm`:
    figures in a row with room for a step back. `since_return`: figures since the last step back.
    `returned_module`: that step was a module. `patience` and `module_patience`: the figures with
    room that are needed.
    """

    effort: Effort = Effort()
    raised_from: Raise | None = None
    calm: int = 0
    since_return: int = MOST_MODULE_PATIENCE
    returned_module: bool = False
    patience: int = PATIENCE
    module_patience: int = MODULE_PATIENCE

    def after(self, cost: Cost, limits: EffortLimits) -> Control:
        """Return the control after a new figure of the cost."""
        if limits.cpu_percent <= 0:
            return Control()
        effort = self.effort.within(limits.max_shift)
        effort = replace(effort, stopped=min(effort.stopped, limits.stoppable))
        if effort != self.effort:
            return replace(self, effort=effort, calm=0)
        counted = replace(self, since_return=min(self.since_return + 1, MOST_MODULE_PATIENCE))
        if cost.total > limits.cpu_percent:
            return _raised(counted, cost, limits)
        return _eased(_proven(counted), cost, limits)


def _raised(control: Control, cost: Cost, limits: EffortLimits) -> Control:
    """Return the control with as much more effort as this cost needs."""
    blamed = _blamed(control)
    aim = _AIM * limits.cpu_percent
    before = control.effort
    in_vain = control.raised_from is not None and not control.raised_from.has_helped(cost)
    sampling = None if in_vain else _with_packets(before, cost, aim, limits)
    if sampling is not None:
        return replace(blamed, effort=sampling, raised_from=Raise(before.packets, cost))
    start = before
    if in_vain and control.raised_from is not None:
        start = replace(before, packets=control.raised_from.packets)
    effort = _with_slices(start, cost, aim, limits)
    if effort == before or cost.permanent > aim:
        effort = replace(effort, stopped=min(before.stopped + 1, limits.stoppable))
    return replace(blamed, effort=effort, raised_from=None)


def _blamed(control: Control) -> Control:
    """Return the control with more patience, if the last step back was wrong."""
    calm = replace(control, calm=0, since_return=MOST_MODULE_PATIENCE)
    if control.since_return > _PROOF:
        return calm
    if control.returned_module:
        patience = min(2 * control.module_patience, MOST_MODULE_PATIENCE)
        return replace(calm, module_patience=patience)
    return replace(calm, patience=min(2 * control.patience, MOST_PATIENCE))


def _proven(control: Control) -> Control:
    """Return the control with less patience, if the last step back has held for long."""
    if control.since_return == 2 * control.patience + _PROOF:
        return replace(control, patience=max(control.patience // 2, PATIENCE))
    return control


def _eased(control: Control, cost: Cost, limits: EffortLimits) -> Control:
    """Return the control with one step less effort, if there was room for long enough."""
    effort, expected = _less(control.effort, cost)
    if effort == control.effort or expected > _ROOM * limits.cpu_percent:
        return replace(control, calm=0)
    calm = control.calm + 1
    is_module = effort.stopped < control.effort.stopped
    if calm < (control.module_patience if is_module else control.patience):
        return replace(control, calm=calm)
    return replace(
        control,
        effort=effort,
        raised_from=None,
        calm=0,
        since_return=0,
        returned_module=is_module,
    )


def _less(effort: Effort, cost: Cost) -> tuple[Effort, float]:
    """Return the next effort back, and the cost that it would have."""
    if effort.slices:
        growth = attached_share(effort.slices - 1) / attached_share(effort.slices)
        expected = cost.permanent + growth * cost.of_packets
        return replace(effort, slices=effort.slices - 1), expected
    if effort.packets:
        expected = cost.permanent + cost.calls + 2 * cost.runs
        return replace(effort, packets=effort.packets - 1), expected
    if effort.stopped:
        return replace(effort, stopped=effort.stopped - 1), cost.total
    return effort, cost.total


def _with_packets(before: Effort, cost: Cost, aim: float, limits: EffortLimits) -> Effort | None:
    """Return the least sampling by packets that is enough, or None."""
    highest = min(MAX_PACKET_SHIFT, limits.max_shift - before.slices)
    for packets in range(before.packets + 1, highest + 1):
        spared = _SAVED * (1 - 2.0 ** (before.packets - packets)) * cost.runs
        if cost.total - spared <= aim:
            return replace(before, packets=packets)
    return None


def _with_slices(before: Effort, cost: Cost, aim: float, limits: EffortLimits) -> Effort:
    """Return the least effort with more time slices that is enough, or else the most."""
    # Where the permanent cost alone is too high, the rest makes room for what comes next.
    room = aim - cost.permanent if cost.permanent <= aim else aim / 2
    highest = min(MAX_SLICE_SHIFT, limits.max_shift - before.packets)
    for slices in range(before.slices, highest + 1):
        share = attached_share(slices) / attached_share(before.slices)
        if share * cost.of_packets <= room:
            return replace(before, slices=slices)
    packets = min(MAX_PACKET_SHIFT, limits.max_shift - highest)
    return replace(before, packets=max(packets, before.packets), slices=highest)
