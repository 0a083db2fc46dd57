"""What was measured is reported once, to whoever asked for it, with the time it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.measurement import NOTHING, Measurement, NodeMeasurement, NodeStage
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.stages import Module
from latencyprobe.domain.summary import NO_PODS
from latencyprobe_agent.collector import (
    Collector,
    Moment,
    OverheadMeter,
    ProbeFigures,
    only,
    only_node,
)
from latencyprobe_agent.desired import (
    Desired,
    DesiredProbe,
    DesiredTarget,
    DesiredWindow,
    PidSelector,
)
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.plan import TargetKey
from tests.unit.agent.scripted import samples

EVERYTHING = SocketFilter()


def _at(seconds: float) -> Moment:
    return Moment(seconds, round(seconds * 1e9))


def _probe(
    name: str = "a",
    *,
    interval_s: float = 1.0,
    modules: frozenset[Module] = frozenset(Module),
    socket_filter: SocketFilter = EVERYTHING,
    pid: int = 1,
    node_figures: bool = True,
) -> DesiredProbe:
    targets = (DesiredTarget("t", PidSelector(pid)),)
    return DesiredProbe(
        name, name, modules, socket_filter, interval_s, 0.0, targets, node_figures=node_figures
    )


def _collector(*probes: DesiredProbe) -> Collector:
    collector = Collector()
    collector.follow(Desired(1, probes), _at(0))
    collector.own({0: [TargetKey(probe.id, "t") for probe in probes]})
    return collector


def _figures(collector: Collector, at: float) -> dict[str, Measurement]:
    return {taken.probe.id: taken.of("t") for taken in collector.take(_at(at))}


def test_probes_that_share_a_slot_both_get_all_of_it() -> None:
    collector = _collector(_probe("a"), _probe("b"))
    collector.add({0: samples(100)})
    assert _figures(collector, 1) == {"a": samples(100), "b": samples(100)}


def test_probes_that_share_a_slot_and_an_interval_share_the_memory_of_their_figures() -> None:
    probes = [_probe(name) for name in "ab"] + [_probe("slow", interval_s=3)]
    collector = _collector(*probes)
    collector.settle({TargetKey(name, "t"): frozenset({9}) for name in ("a", "b", "slow")})
    for second in (1, 2):
        collector.add({0: samples(second)})
        collector.add_netns({9: {"TcpExtListenDrops": second}})
        collector.add_node(NodeMeasurement(counters={"softnetTimeSqueezed": second}))
        a, b = collector.take(_at(second))
        assert a.measurements["t"] is b.measurements["t"]
        assert a.node is b.node
        expected = samples(second) + Measurement(netns_counters={"TcpExtListenDrops": second})
        assert a.of("t") == expected
    collector.add({0: samples(3)})
    a, b, slow = collector.take(_at(3))
    assert a.of("t") == b.of("t") == samples(3)
    whole = Measurement(netns_counters={"TcpExtListenDrops": 3})
    assert slow.of("t") == samples(1, 2, 3) + whole


def test_pending_figures_are_those_of_the_last_reading() -> None:
    collector = _collector(_probe("fast"), _probe("slow", interval_s=3))
    first = {"unreadSegments": Pending(3), "unsentWrites": Pending(1)}
    collector.add({0: Measurement(pending=first)})
    assert _figures(collector, 1)["fast"].pending == first
    collector.add({0: Measurement(pending={"unsentWrites": Pending(2)})})
    (undelivered,) = collector.take(_at(2))
    assert undelivered.of("t").pending == {"unsentWrites": Pending(2)}
    collector.add({0: Measurement(pending={})})
    collector.put_back([undelivered])
    assert {name: each.pending for name, each in _figures(collector, 3).items()} == {
        "fast": {},
        "slow": {},
    }


def test_a_probe_gets_pending_figures_of_its_modules() -> None:
    collector = _collector(_probe("a", modules=frozenset({Module.TX})))
    collector.add({0: Measurement(pending={"unreadSegments": Pending(3)})})
    assert _figures(collector, 1)["a"].pending == {}


def test_a_probe_is_reported_in_its_own_interval_and_from_where_it_ended() -> None:
    collector = _collector(_probe("fast"), _probe("slow", interval_s=3))
    for second in (1, 2, 3):
        collector.add({0: samples(100 * second)})
        taken = {t.probe.id: t for t in collector.take(_at(second))}
        assert (taken["fast"].begin, taken["fast"].end) == (_at(second - 1), _at(second))
        assert taken["fast"].of("t") == samples(100 * second)
        if second == 3:
            assert taken["slow"].begin == _at(0)
            assert taken["slow"].of("t") == samples(100, 200, 300)


def _squeezed(times: int) -> NodeMeasurement:
    return NodeMeasurement(counters={"softnetTimeSqueezed": times})


def test_each_probe_has_the_nodes_figures_of_its_own_interval() -> None:
    collector = _collector(_probe("fast"), _probe("slow", interval_s=3))
    taken: dict[str, ProbeFigures] = {}
    for second in (1, 2, 3):
        collector.add_node(_squeezed(second))
        taken = {t.probe.id: t for t in collector.take(_at(second))}
        assert taken["fast"].of_node() == _squeezed(second)
    assert taken["slow"].of_node() == _squeezed(1 + 2 + 3)


def test_the_nodes_figures_that_could_not_be_delivered_come_again() -> None:
    collector = _collector(_probe())
    collector.add_node(_squeezed(1))
    taken = collector.take(_at(1))
    collector.add_node(_squeezed(2))
    collector.put_back(taken)
    (again,) = collector.take(_at(2))
    assert again.of_node() == _squeezed(3)


@pytest.mark.parametrize(
    "changed",
    [
        _probe(socket_filter=SocketFilter(ports=frozenset({443}))),
        _probe(modules=frozenset({Module.RX})),
    ],
)
def test_another_measurement_begins_with_nothing_when_it_changes(changed: DesiredProbe) -> None:
    collector = _collector(_probe())
    early = collector.take(_at(1))
    collector.add({0: samples(100)})
    collector.add_node(_squeezed(1))
    collector.follow(Desired(2, (changed,)), _at(1.5))
    collector.put_back(early)
    assert collector.take(_at(2)) == []
    collector.add_node(_squeezed(2))
    (taken,) = collector.take(_at(2.5))
    assert (taken.begin, taken.of("t"), taken.of_node()) == (_at(1.5), NOTHING, _squeezed(2))


def test_a_probe_that_loses_its_node_figures_keeps_none_of_before() -> None:
    collector = _collector(_probe())
    collector.own({0: (TargetKey("a", "t"),)})
    collector.add_node(_squeezed(1))
    collector.add({0: Measurement(netns_counters={"TcpExtListenDrops": 1})})
    early = collector.take(_at(1))
    collector.add_node(_squeezed(2))
    collector.follow(Desired(2, (_probe(node_figures=False),)), _at(1.5))
    collector.add_node(_squeezed(3))
    collector.put_back(early)
    (taken,) = collector.take(_at(2.5))
    assert taken.of_node() == NodeMeasurement()
    assert taken.of("t") == Measurement()


def test_only_the_nodes_stages_of_a_module_and_all_its_counters_are_kept() -> None:
    stage = samples(1).stage("rx.total")
    of_rx = {NodeStage("rx.total", "eth0"): stage}
    strange = {NodeStage("no.such", "eth0"): stage, NodeStage("tcp.rtt"): stage}
    measured = NodeMeasurement(of_rx | strange, {"softnetDropped": 1})
    assert only_node(measured, frozenset({Module.RX})) == NodeMeasurement(
        of_rx, {"softnetDropped": 1}
    )


def test_modules_that_a_probe_did_not_ask_for_are_not_reported_to_it() -> None:
    collector = _collector(_probe("a", modules=frozenset({Module.RX})), _probe("b"))
    netns = Measurement(netns_counters={"TcpExtListenDrops": 1})
    both = samples(100) + samples(200, stage="tcp.rtt") + Measurement({}, {"retransmits": 2})
    collector.add({0: both + netns})
    assert _figures(collector, 1) == {"a": samples(100) + netns, "b": both + netns}


def test_figures_of_a_slot_without_an_owner_are_dropped() -> None:
    collector = _collector(_probe())
    collector.add({5: samples(100)})
    assert _figures(collector, 1) == {"a": Measurement()}


def test_a_new_state_keeps_what_still_means_the_same() -> None:
    collector = _collector(_probe("a"), _probe("b"), _probe("c"), _probe("d"))
    collector.add({0: samples(100)})
    https = SocketFilter(ports=frozenset({443}))
    changed = (_probe("a", interval_s=2), _probe("b", socket_filter=https), _probe("c", pid=2))
    collector.follow(Desired(2, changed), _at(0.5))
    assert _figures(collector, 2) == {"a": samples(100), "b": Measurement(), "c": Measurement()}


def test_undelivered_figures_come_with_the_next_report() -> None:
    collector = _collector(_probe())
    collector.add({0: samples(100)})
    taken = collector.take(_at(1))
    collector.add({0: samples(200)})
    collector.put_back(taken)
    (again,) = collector.take(_at(1.5))
    assert again.begin == _at(0)
    assert again.of("t") == samples(100, 200)


def test_undelivered_figures_of_a_probe_that_is_gone_are_dropped() -> None:
    collector = _collector(_probe())
    taken = collector.take(_at(1))
    collector.follow(Desired(2), _at(1))
    collector.put_back(taken)
    assert collector.next_due is None


@given(
    st.lists(
        st.one_of(
            st.integers(1, 1000).map(lambda ns: ("measure", ns)),
            st.sampled_from([("take", 0), ("fail", 0)]),
        ),
        max_size=40,
    )
)
def test_nothing_is_lost_or_doubled_by_any_failure(steps: list[tuple[str, int]]) -> None:
    collector = _collector(_probe())
    measured: list[int] = []
    delivered = Measurement()
    now = 0.0
    for step, duration_ns in [*steps, ("take", 0)]:
        now += 1
        if step == "measure":
            measured.append(duration_ns)
            collector.add({0: samples(duration_ns)})
            continue
        taken = collector.take(_at(now))
        if step == "fail":
            collector.put_back(taken)
        else:
            delivered += taken[0].of("t")
    assert delivered == (samples(*measured) if measured else Measurement())


def test_only_keeps_what_the_vocabulary_says_belongs_to_a_module() -> None:
    strange = samples(1, stage="no.such")
    assert only(strange, frozenset(Module)) == Measurement()


def test_overhead_is_the_mean_over_the_time_since_the_last_report() -> None:
    meter = OverheadMeter()
    meter.note(1.0, 3)
    meter.note(5.0, 1)
    meter.note(None, 10)
    assert meter.take() == 2.0
    assert meter.take() is None


def _windowed(*pids: int, **settings: Any) -> DesiredProbe:
    targets = tuple(DesiredTarget(f"t{pid}", PidSelector(pid)) for pid in pids)
    window = DesiredWindow(60, 20, NO_PODS)
    return replace(_probe(**settings), targets=targets, window=window)


def test_a_window_gets_its_figures_without_a_client_and_a_client_does_not_get_them() -> None:
    collector = Collector()
    collector.follow(Desired(1, (_windowed(1), _probe("plain"))), _at(0))
    collector.own({0: [TargetKey("a", "t1"), TargetKey("plain", "t")]})
    collector.add({0: samples(100)})
    assert [taken.probe.id for taken in collector.take(_at(1))] == ["plain"]
    (taken,) = collector.take_for_windows(_at(1))
    assert taken.of("t1") == samples(100)
    assert not collector.take_for_windows(_at(1))
    assert not collector.is_due(_at(1.5))
    (rest,) = collector.take_for_windows(_at(1.5), early=True)
    assert (rest.begin, rest.end) == (_at(1), _at(1.5))


def test_the_window_gets_the_figures_of_targets_that_have_left() -> None:
    collector = Collector()
    before, after = _windowed(1, 2), _windowed(2)
    collector.follow(Desired(1, (before,)), _at(0))
    collector.own({0: [TargetKey("a", "t1")], 1: [TargetKey("a", "t2")]})
    for _ in range(2):
        collector.add({0: samples(100), 1: samples(200)})
        departed = collector.follow(Desired(2, (after,)), _at(0.5))
        assert departed == {"a": {before.targets[0]: samples(100)}}
        assert collector.follow(Desired(2, (before,)), _at(0.5)) == {"a": {}}
    (taken,) = collector.take_for_windows(_at(1))
    assert taken.measurements == {"t2": samples(200, 200)}


@pytest.mark.parametrize(
    "change",
    [{"socket_filter": SocketFilter(frozenset({443}))}, {"modules": frozenset({Module.TX})}],
    ids=["filter", "modules"],
)
def test_of_another_measurement_no_figures_stay_whether_their_target_left_or_not(
    change: Mapping[str, Any],
) -> None:
    collector = Collector()
    collector.follow(Desired(1, (_windowed(1, 2),)), _at(0))
    collector.own({0: [TargetKey("a", "t1")], 1: [TargetKey("a", "t2")]})
    collector.add({0: samples(100), 1: samples(100)})
    changed = _windowed(2, 3, **change)
    assert collector.follow(Desired(2, (changed,)), _at(0.5)) == {"a": {}}
    (taken,) = collector.take_for_windows(_at(1.5))
    assert not taken.measurements
