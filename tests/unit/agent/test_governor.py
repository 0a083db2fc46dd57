"""The control of the budget: from a figure of the cost to the means that keep it."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from latencyprobe.domain.stages import Module
from latencyprobe_agent.budget import (
    MAX_PACKET_SHIFT,
    MAX_SHIFT,
    MAX_SLICE_SHIFT,
    Budget,
    strictest,
)
from latencyprobe_agent.control import (
    MODULE_PATIENCE,
    MOST_PATIENCE,
    PATIENCE,
    STOP_ORDER,
    Control,
    Cost,
    Effort,
    EffortLimits,
)
from latencyprobe_agent.kernel.contract import HookCost, Overhead, attached_share
from latencyprobe_agent.pressure import CpuPressure, parse_pressure
from latencyprobe_agent.sampling import Governor, under_pressure


@dataclass(frozen=True)
class Load:
    """What packets would pay without any effort, in percent of one core.

    `spared`: the part of the run time that sampling by packets can spare, which no controller
    knows. `modules`: of the permanent cost, the parts of modules, in the order of STOP_ORDER.
    """

    calls: float
    runs: float = 0.0
    permanent: float = 0.0
    spared: float = 0.7
    modules: tuple[float, ...] = ()

    def cost(self, effort: Effort) -> Cost:
        share = attached_share(effort.slices)
        runs = self.runs * (1 - self.spared + self.spared * 2.0**-effort.packets)
        permanent = self.permanent + sum(self.modules[effort.stopped :])
        return Cost(permanent, share * self.calls, share * runs)

    def times(self, factor: float) -> Load:
        """The load of so many times the packets."""
        return Load(
            self.calls * factor,
            self.runs * factor,
            self.permanent,
            self.spared,
            self.modules,
        )


def run(
    loads: Iterable[Load],
    limits: EffortLimits,
    control: Control = Control(),  # noqa: B008
) -> Iterator[tuple[Control, Cost]]:
    """Have a load judged at each figure; yield the control before it, and the cost."""
    for load in loads:
        cost = load.cost(control.effort)
        yield control, cost
        control = control.after(cost, limits)


def last(loads: Iterable[Load], limits: EffortLimits, control: Control = Control()) -> Control:  # noqa: B008
    """The control after these figures."""
    for load in loads:
        control = control.after(load.cost(control.effort), limits)
    return control


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [([], 0), ([0, 0], 0), ([1], 1), ([5, 0, 2], 2)],
)
def test_the_strictest_budget_holds_and_0_is_no_budget(
    budgets: list[float], expected: float
) -> None:
    assert strictest(budgets) == expected


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (Cost(runs=0.9), Effort()),
        (Cost(runs=1.1), Effort(packets=2)),
        (Cost(calls=0.3, runs=0.75), Effort(packets=2)),
        (Cost(calls=1.1), Effort(slices=1)),
        (Cost(calls=0.8, runs=0.3), Effort(slices=1)),
        (Cost(runs=2.9), Effort(slices=3)),
        (Cost(calls=4, runs=4), Effort(slices=4)),
        (Cost(permanent=0.5, calls=1), Effort(slices=2)),
        (Cost(calls=100_000), Effort(packets=MAX_PACKET_SHIFT, slices=MAX_SLICE_SHIFT)),
    ],
)
def test_the_first_means_that_is_enough_is_used_at_once(cost: Cost, expected: Effort) -> None:
    assert Control().after(cost, EffortLimits(1.0)).effort == expected


@pytest.mark.parametrize("effort", [Effort(), Effort(2, 0), Effort(0, 3), Effort(6, 7)])
def test_sampling_never_goes_below_the_floor(effort: Effort) -> None:
    for max_shift in range(MAX_SHIFT + 1):
        limits = EffortLimits(1.0, max_shift)
        after = last([Load(1000.0, 1000.0)] * 5, limits, Control(effort)).effort
        assert after.shift == max_shift
        assert after.packets <= MAX_PACKET_SHIFT
        assert after.slices <= MAX_SLICE_SHIFT


def test_without_a_budget_every_packet_counts() -> None:
    control = Control(Effort(3, 3, 1), calm=7)
    assert control.after(Cost(50.0), EffortLimits(0.0)) == Control()


loads = st.builds(
    Load,
    calls=st.floats(0.001, 60),
    runs=st.floats(0.001, 60),
    permanent=st.floats(0, 0.4),
    spared=st.floats(0, 1),
)


@given(loads, st.floats(1, 100))
def test_any_load_is_within_the_budget_after_few_figures(load: Load, budget: float) -> None:
    assume(load.cost(Effort(MAX_PACKET_SHIFT, MAX_SLICE_SHIFT)).total <= 0.8 * budget)
    seen = list(run([load] * 6, EffortLimits(budget)))
    assert seen[-1][1].total <= budget


@given(loads, st.floats(1, 100), st.floats(1, 100))
def test_a_storm_is_absorbed_by_the_next_figure(load: Load, budget: float, factor: float) -> None:
    """A hundred times the packets within a second, on a node that has kept its budget."""
    limits = EffortLimits(budget)
    calm = last([load] * 30, limits)
    assume(load.cost(calm.effort).total <= budget)
    storm = load.times(factor)
    # What can be kept at all: the least that is left of it.
    assume(storm.cost(Effort(MAX_PACKET_SHIFT, MAX_SLICE_SHIFT)).total <= 0.8 * budget)
    (_, before), (_, after) = run([storm] * 2, limits, calm)
    if before.total > budget:
        # By packets first, where half of the run time may be enough; it may save less than that.
        assert after.total <= budget or load.spared < 0.5


@given(loads, st.floats(1, 100), st.integers(10, 400))
def test_a_steady_load_leaves_the_effort_alone(load: Load, budget: float, figures: int) -> None:
    seen = [control.effort for control, _ in run([load] * (figures + 60), EffortLimits(budget))]
    assert len(set(seen[60:])) == 1


@given(
    loads,
    st.floats(1, 100),
    st.lists(st.floats(0.8, 1.25), min_size=20, max_size=20),
)
def test_a_load_that_fluctuates_does_not_make_it_oscillate(
    load: Load, budget: float, noise: list[float]
) -> None:
    """By a quarter from figure to figure: changes become as rare as patience allows."""
    loads = (load.times(factor) for factor in itertools.islice(itertools.cycle(noise), 600))
    efforts = [control.effort for control, _ in run(loads, EffortLimits(budget))]
    changes = [a != b for a, b in itertools.pairwise(efforts[100:])]
    assert sum(changes) <= 2 * len(changes) / (MOST_PATIENCE / 2)


@given(loads, st.floats(1, 100))
def test_all_packets_are_measured_again_after_a_storm(load: Load, room: float) -> None:
    budget = load.cost(Effort()).total / 0.3 * room
    limits = EffortLimits(budget)
    stormy = last([load.times(100)] * 10, limits)
    calm = last([load] * (2 * (MAX_SHIFT + 1) * MOST_PATIENCE), limits, stormy)
    assert calm.effort == Effort()


def test_effort_is_eased_by_one_step_after_some_figures_with_room() -> None:
    control = Control(Effort(packets=2, slices=3))
    steps = [c.effort for c, _ in run([Load(0.01)] * 30, EffortLimits(1.0), control)]
    distinct = [effort for effort, _ in itertools.groupby(steps)]
    assert distinct[:4] == [Effort(2, 3), Effort(2, 2), Effort(2, 1), Effort(2, 0)]
    assert steps.count(Effort(2, 2)) == PATIENCE


def test_no_step_back_without_room_for_twice_the_cost() -> None:
    control = Control(Effort(slices=3))
    for _ in range(100):
        control = control.after(Cost(calls=0.4), EffortLimits(1.0))
    assert control.effort == Effort(slices=3)


def test_a_step_back_that_was_undone_takes_longer_the_next_time() -> None:
    control = last([Load(0.01)] * PATIENCE, EffortLimits(1.0), Control(Effort(slices=3)))
    assert control.effort == Effort(slices=2)
    control = control.after(Cost(calls=1.5), EffortLimits(1.0))
    assert control.effort.slices > 2
    assert control.patience == 2 * PATIENCE
    held = last([Load(0.01)] * (control.patience - 1), EffortLimits(1.0), control)
    assert held.effort == control.effort


def test_a_raise_of_the_sampling_that_did_not_help_is_taken_back_with_the_next_means() -> None:
    """The cost is that of other pods' packets: fewer samples of ours would change nothing."""
    control = Control().after(Cost(runs=1.1), EffortLimits(1.0))
    assert control.effort == Effort(packets=2)
    assert control.after(Cost(runs=1.1), EffortLimits(1.0)).effort == Effort(slices=1)


def test_a_raise_that_helps_is_kept_if_the_load_grows() -> None:
    control = Control().after(Cost(calls=0.3, runs=0.75), EffortLimits(1.0))
    assert control.effort == Effort(packets=2)
    after = control.after(Cost(calls=1.2, runs=1.5), EffortLimits(1.0))
    assert after.effort == Effort(packets=2, slices=2)


# Modules


def test_modules_stop_one_by_one_where_their_cost_is_permanent() -> None:
    load = Load(0.1, permanent=0.1, modules=(3.0, 2.0, 0.1))
    limits = EffortLimits(1.0, stoppable=3)
    stopped = [control.effort.stopped for control, _ in run([load] * 6, limits)]
    assert stopped == [0, 1, 2, 2, 2, 2]


def test_modules_stop_last_where_time_slices_can_keep_the_budget() -> None:
    limits = EffortLimits(1.0, stoppable=3)
    assert last([Load(60.0)] * 10, limits).effort.stopped == 0
    assert last([Load(60.0)] * 10, EffortLimits(1.0, 2, 3)).effort.stopped == 3


def test_no_more_modules_stop_than_may() -> None:
    load = Load(0.1, permanent=50)
    assert last([load] * 20, EffortLimits(1.0, stoppable=2)).effort.stopped == 2
    assert last([load] * 20, EffortLimits(1.0)).effort.stopped == 0


def test_a_stopped_module_is_tried_again_after_a_minute_and_then_ever_later() -> None:
    load = Load(0.01, modules=(3.0,))
    limits = EffortLimits(1.0, stoppable=1)
    stopped = [control.effort.stopped for control, _ in run([load] * 400, limits)]
    lengths = [len(list(each)) for value, each in itertools.groupby(stopped) if value]
    assert lengths[0] in range(MODULE_PATIENCE, MODULE_PATIENCE + 3 * PATIENCE * MAX_SHIFT)
    assert lengths[1] >= 2 * MODULE_PATIENCE
    assert lengths[2] >= 4 * MODULE_PATIENCE
    # Each attempt costs one figure above the budget.
    assert stopped.count(0) == len(lengths)


# The governor


def figure(number: int, *, packets: float = 0, permanent: float = 0, slices: int = 0) -> Overhead:
    hooks = (HookCost("a", packets, 0.0), HookCost("b", permanent, 0.0, is_permanent=True))
    return Overhead(packets + permanent, number, hooks=hooks, slice_shift=slices)


def test_each_figure_is_judged_once() -> None:
    governor = Governor()
    governor.keep_to(Budget(1.0))
    assert not governor.judge(Overhead(None))
    assert governor.judge(figure(1, packets=3))
    assert not governor.judge(figure(1, packets=3))
    assert governor.effort == Effort(slices=3)
    assert governor.ratio == 1 / 8


def test_a_figure_from_before_the_last_change_of_time_slices_is_not_judged() -> None:
    governor = Governor()
    governor.keep_to(Budget(1.0))
    governor.judge(figure(1, packets=3))
    assert not governor.judge(figure(2, packets=3))
    assert governor.judge(figure(3, packets=3, slices=3))


def test_another_budget_judges_the_last_figure_again() -> None:
    governor = Governor()
    assert not governor.has_budget
    assert not governor.judge(figure(1, packets=3))
    governor.keep_to(Budget(2.0))
    assert governor.judge(figure(1, packets=3))
    assert governor.has_budget is True


@pytest.mark.parametrize(
    ("modules", "stopped"),
    [
        (frozenset(Module), [Module.SCHED, Module.IRQ, Module.TX, Module.RX]),
        (frozenset({Module.RX, Module.TX, Module.TCP}), [Module.TX, Module.RX]),
        (frozenset({Module.SCHED, Module.RX}), [Module.SCHED]),
        (frozenset({Module.SCHED}), []),
        (frozenset(), []),
    ],
)
def test_modules_stop_in_the_stated_order_and_one_is_left(
    modules: frozenset[Module], stopped: list[Module]
) -> None:
    governor = Governor()
    governor.keep_to(Budget(1.0), modules)
    found: list[frozenset[Module]] = [governor.stopped]
    for number in range(10):
        governor.judge(figure(number, permanent=50, slices=governor.effort.slices))
        found.append(governor.stopped)
    expected = [frozenset(stopped[:n]) for n in range(len(stopped) + 1)]
    assert [each for each, _ in itertools.groupby(found)] == expected
    assert set(stopped) <= set(STOP_ORDER)


def test_modules_that_no_probe_wants_any_more_are_not_stopped() -> None:
    governor = Governor()
    governor.keep_to(Budget(1.0), frozenset(Module))
    for number in range(10):
        governor.judge(figure(number, permanent=50, slices=governor.effort.slices))
    governor.keep_to(Budget(1.0), frozenset({Module.TCP}))
    assert governor.stopped == frozenset()


# Pressure


@pytest.mark.parametrize(
    ("pressure", "expected"), [(0, 1.0), (49.9, 1.0), (50, 0.5), (79.9, 0.5), (80, 0.25)]
)
def test_a_node_under_pressure_has_a_smaller_budget(pressure: float, expected: float) -> None:
    assert under_pressure(1.0, pressure) == expected


def test_pressure_alone_makes_the_agent_measure_less(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    governor = Governor()
    governor.keep_to(Budget(1.0))
    assert not governor.judge(figure(1, packets=0.9), 20.0)
    assert governor.judge(figure(2, packets=0.9), 90.0)
    assert "the budget is 0.25 % at a CPU pressure of 90 %" in caplog.text


PSI = """\
some avg10=12.34 avg60=3.00 avg300=1.00 total=123456
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""


@pytest.mark.parametrize(("text", "expected"), [(PSI, 12.34), ("", 0), ("full avg10=7", 0)])
def test_the_pressure_is_that_of_ten_seconds(text: str, expected: float) -> None:
    assert parse_pressure(text) == expected


def test_a_kernel_without_the_figure_has_no_pressure(tmp_path: Path) -> None:
    pressure = CpuPressure(tmp_path)
    assert pressure.percent() == 0
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/cpu").write_text(PSI)
    assert pressure.percent() == 12.34
    (tmp_path / "pressure/cpu").unlink()
    assert pressure.percent() == 0


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_pressure_that_cannot_be_read_now_is_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/cpu").write_text(PSI)
    pressure = CpuPressure(tmp_path)
    assert pressure.percent() == 12.34

    def fails(path: Path) -> str:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "read_text", fails)
    assert pressure.percent() == 12.34
