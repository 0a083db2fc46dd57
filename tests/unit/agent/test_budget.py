"""The budget of a node: no namespace lowers the sampling of another, and the ceilings hold."""

from __future__ import annotations

import math

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_agent import cli
from latencyprobe_agent.budget import (
    DEFAULT_MAX_CPU_PERCENT,
    LOWEST_SAMPLING_RATIO,
    MAX_SHIFT,
    NO_CEILINGS,
    Budget,
    Ceilings,
    budget_in_force,
)
from latencyprobe_agent.desired import DesiredProbe
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.main import Settings


def probe(namespace: str, max_cpu_percent: float) -> DesiredProbe:
    """A probe with this budget."""
    return DesiredProbe(
        id="p",
        name="p",
        modules=frozenset(),
        socket_filter=SocketFilter(frozenset(), frozenset()),
        interval_s=1,
        max_cpu_percent=max_cpu_percent,
        targets=(),
        namespace=namespace,
    )


budgets = st.one_of(st.just(0.0), st.floats(0.001, 10_000))
probes = st.lists(st.builds(probe, st.sampled_from("abc"), budgets), max_size=8)
ceilings = st.builds(Ceilings, budgets, st.floats(LOWEST_SAMPLING_RATIO, 1))


def limit_of(budget: Budget) -> float:
    """The budget, where no limit is infinite."""
    return budget.cpu_percent or math.inf


@pytest.mark.parametrize(
    ("given_probes", "ceiling", "expected"),
    [
        ([], 0, 0),
        ([], 5, 5),
        ([("a", 1)], 0, 1),
        ([("a", 1), ("a", 0.5)], 0, 0.5),
        ([("a", 1), ("a", 0)], 0, 1),
        ([("a", 0)], 0, 0),
        ([("a", 0)], 5, 5),
        ([("victim", 1), ("greedy", 0.001)], 5, 1),
        ([("victim", 1), ("greedy", 0)], 5, 5),
        ([("victim", 1), ("greedy", 100)], 5, 5),
        ([("victim", 1), ("greedy", 100)], 0.5, 0.5),
    ],
)
def test_the_most_generous_namespace_decides_below_the_ceiling(
    given_probes: list[tuple[str, float]], ceiling: float, expected: float
) -> None:
    asked = [probe(*each) for each in given_probes]
    assert budget_in_force(asked, Ceilings(ceiling)).cpu_percent == expected


@given(probes, probes, ceilings)
def test_another_namespace_never_lowers_the_budget(
    ours: list[DesiredProbe], others: list[DesiredProbe], limits: Ceilings
) -> None:
    own = [each for each in ours if each.namespace == "a"]
    foreign = [each for each in others if each.namespace != "a"]
    if own:
        alone, together = budget_in_force(own, limits), budget_in_force([*own, *foreign], limits)
        assert limit_of(together) >= limit_of(alone)


@given(probes, ceilings)
def test_no_probe_exceeds_the_ceiling(asked: list[DesiredProbe], limits: Ceilings) -> None:
    budget = budget_in_force(asked, limits)
    assert limit_of(budget) <= (limits.max_cpu_percent or math.inf)
    assert 2.0**-budget.max_shift >= limits.min_sampling_ratio
    assert 0 <= budget.max_shift <= MAX_SHIFT


@pytest.mark.parametrize(
    ("ratio", "max_shift"),
    [(1, 0), (0.51, 0), (0.5, 1), (0.3, 1), (0.25, 2), (2.0**-6, 6), (2.0**-13, 13)],
)
def test_the_floor_of_sampling_is_a_power_of_two_above_it(ratio: float, max_shift: int) -> None:
    assert budget_in_force([], Ceilings(1, ratio)).max_shift == max_shift


@given(probes.flatmap(lambda asked: st.tuples(st.just(asked), st.permutations(asked))), ceilings)
def test_the_order_of_the_probes_has_no_influence(
    orders: tuple[list[DesiredProbe], list[DesiredProbe]], limits: Ceilings
) -> None:
    assert budget_in_force(orders[0], limits) == budget_in_force(orders[1], limits)


@given(probes, st.floats(0.001, 10_000))
def test_a_namespace_can_lower_its_own_budget(asked: list[DesiredProbe], low: float) -> None:
    own = [each for each in asked if each.namespace == "a"]
    assert limit_of(budget_in_force([*own, probe("a", low)])) <= low


@pytest.mark.parametrize(
    ("max_cpu_percent", "min_sampling_ratio"),
    [(-1, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, 1.5), (1, math.nan)],
)
def test_invalid_ceilings_are_refused(max_cpu_percent: float, min_sampling_ratio: float) -> None:
    with pytest.raises(ValueError, match="invalid"):
        Ceilings(max_cpu_percent, min_sampling_ratio)


FILES = ("--ca-file=ca", "--cert-file=crt", "--key-file=key")
OVER_TCP = ("--listen=:1", *FILES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (OVER_TCP, Ceilings(DEFAULT_MAX_CPU_PERCENT)),
        ((*OVER_TCP, "--max-cpu-percent=0.5"), Ceilings(0.5)),
        ((*OVER_TCP, "--min-sampling-ratio=0.25"), Ceilings(DEFAULT_MAX_CPU_PERCENT, 0.25)),
        (("--socket=/s",), NO_CEILINGS),
        (("--socket=/s", "--max-cpu-percent=2"), Ceilings(2)),
    ],
)
def test_the_ceilings_are_options_of_the_agent(
    arguments: tuple[str, ...], expected: Ceilings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Settings] = []
    monkeypatch.setattr(cli, "_start", lambda settings, **_: started.append(settings))
    result = CliRunner().invoke(cli.agent_command, list(arguments))
    assert result.exit_code == 0, result.output
    assert [settings.ceilings for settings in started] == [expected]


@pytest.mark.parametrize(
    "argument",
    [
        "--max-cpu-percent=0",
        "--max-cpu-percent=-1",
        "--max-cpu-percent=nan",
        "--min-sampling-ratio=0.0001",
        "--min-sampling-ratio=2",
        "--min-sampling-ratio=nan",
    ],
)
def test_options_with_invalid_ceilings_are_refused(
    argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_start", lambda *_, **__: pytest.fail("it has started"))
    assert CliRunner().invoke(cli.agent_command, [*OVER_TCP, argument]).exit_code == 2
