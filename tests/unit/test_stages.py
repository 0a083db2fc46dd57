"""The vocabulary holds together, and a name outside of it is refused with the known ones."""

from __future__ import annotations

import pytest

from latencyprobe.domain.stages import (
    COUNTERS,
    STAGES,
    Module,
    UnknownNameError,
    check_filter,
    is_counter_of,
    parse_modules,
    parts_of,
    stage,
    stages_of,
)

MODULE_SETS = (
    frozenset({Module.RX}),
    frozenset({Module.SCHED}),
    frozenset({Module.RX, Module.SCHED}),
)


def test_every_part_belongs_to_a_total_of_its_own_module() -> None:
    for part in STAGES:
        if part.total is not None:
            whole = stage(part.total)
            assert whole.total is None
            assert whole.module is part.module


def test_names_and_macros_are_unique() -> None:
    for column in (
        [row.name for row in STAGES],
        [row.macro for row in STAGES],
        [row.name for row in COUNTERS],
        [row.macro for row in COUNTERS],
    ):
        assert len(set(column)) == len(column)
    assert stage("rx.socket").macro == "STAGE_RX_SOCKET"
    assert "COUNTER_HEAD_OF_LINE_SEGMENTS" in [counter.macro for counter in COUNTERS]


def test_the_parts_of_a_total_are_in_the_packets_order() -> None:
    assert [part.name for part in parts_of("tx.total")] == [
        "tx.socket",
        "tx.stack",
        "tx.host",
        "tx.qdisc",
        "tx.driver",
    ]


def test_modules_come_out_once_and_in_the_tables_order() -> None:
    assert parse_modules(["tcp", "rx", "tcp"]) == (Module.RX, Module.TCP)
    assert [row.module for row in stages_of(parse_modules(["tx"]))] == [Module.TX] * 6


def test_an_unknown_module_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown module 'nic'; choose one of rx, tx, tcp, irq, sched"
    ):
        parse_modules(["rx", "nic"])
    with pytest.raises(ValueError, match="no module given; choose from rx, tx, tcp, irq, sched"):
        parse_modules([])


def test_an_unknown_stage_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown stage 'rx\.nic'; choose one of rx\.irq"):
        stage("rx.nic")


@pytest.mark.parametrize(
    ("modules", "protocols"),
    [(["tcp"], []), (["tcp"], ["TCP"]), (["tcp"], ["TCP", "UDP"]), (["rx", "tcp"], ["UDP"])],
)
def test_a_filter_that_leaves_something_to_measure_is_fine(
    modules: list[str], protocols: list[str]
) -> None:
    check_filter(parse_modules(modules), protocols)


def test_connections_of_a_protocol_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match="the filter allows only UDP; add module rx or tx"):
        check_filter([Module.TCP], ["UDP"])


def test_a_stage_within_a_part_is_no_part_of_its_total() -> None:
    within = stage("rx.wakeup")
    assert within not in parts_of("rx.total")
    assert within.whole == "rx.total"
    assert stage("rx.socket").whole == "rx.total"
    assert stage("rx.total").whole is None


def test_a_stage_that_takes_two_modules_is_measured_by_both_together() -> None:
    names = {each: [row.name for row in stages_of(each)] for each in MODULE_SETS}
    assert [("rx.wakeup" in names[each]) for each in MODULE_SETS] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "modules", "is_there"),
    [
        ("cpuThrottledNs", {Module.TX}, True),
        ("cpuThrottledNs", set(), True),
        ("rtos", {Module.TCP}, True),
        ("rtos", {Module.RX}, False),
        ("drops.NO_SOCKET", {Module.TCP}, True),
        ("waitedForCgroup.4711", {Module.SCHED}, True),
        ("waitedForCgroup.4711", {Module.RX}, False),
        ("waitedForCgroup.", {Module.SCHED}, False),
        ("waitedForCgroup.47x", {Module.SCHED}, False),
        ("waitedForCgroup.\u0664", {Module.SCHED}, False),
        ("unheardOf", set(Module), False),
    ],
)
def test_a_counter_is_that_of_its_module_or_of_all(
    name: str, modules: set[Module], is_there: bool
) -> None:
    assert is_counter_of(name, modules) is is_there
