"""Slots are shared, stable, and reused only once they are drained."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import (
    CgroupSelector,
    Desired,
    DesiredProbe,
    DesiredTarget,
    NetnsSelector,
    PidSelector,
    PodSelector,
    Selector,
)
from latencyprobe_agent.kernel.abi import MAX_OWNERS, NETNS_FIRST
from latencyprobe_agent.kernel.contract import (
    MAX_ALIKE_NAMESPACES,
    MAX_SHARING,
    SlotSpec,
    SocketFilter,
)
from latencyprobe_agent.kernel.runtime.configuration import (
    CONFIG_BYTES,
    ConfigMemory,
    NamespaceConfiguration,
)
from latencyprobe_agent.plan import (
    MOST_HOMES,
    SlotKey,
    SlotTable,
    TargetKey,
    assignment,
    homes,
    is_udp_wanted,
    overcommitted,
    owners,
    tenants_of,
    wanted_modules,
    wanted_slots,
)
from latencyprobe_agent.targets.facts import TargetFacts, failed, pending

HTTPS = SocketFilter(ports=frozenset({443}))
EVERYTHING = SocketFilter()


def _probe(
    name: str,
    *selectors: Selector,
    socket_filter: SocketFilter = EVERYTHING,
    modules: frozenset[Module] = frozenset({Module.RX}),
    namespace: str = "",
    node_figures: bool = False,
) -> DesiredProbe:
    targets = tuple(DesiredTarget(f"t{n}", selector) for n, selector in enumerate(selectors))
    return DesiredProbe(
        name, name, modules, socket_filter, 1.0, 0.0, targets, namespace, node_figures
    )


def _attached(selector: Selector) -> TargetFacts:
    match selector:
        case PidSelector(pid):
            return TargetFacts(TargetState.ATTACHED, tgids=frozenset({pid}), netns=frozenset({9}))
        case NetnsSelector():
            inodes = frozenset({9})
            return TargetFacts(TargetState.ATTACHED, netns=inodes, netns_wide=inodes)
        case _:
            return TargetFacts(
                TargetState.ATTACHED, cgroup_ids=frozenset({5, 6}), netns=frozenset({9})
            )


def test_probes_on_one_target_with_one_filter_share_a_slot() -> None:
    pid = PidSelector(1)
    desired = Desired(1, (_probe("a", pid), _probe("b", pid)))
    (key,) = wanted_slots(desired, {pid: _attached(pid)})
    assert owners(desired, {key: 3}) == {3: (TargetKey("a", "t0"), TargetKey("b", "t0"))}


def test_another_filter_is_another_slot() -> None:
    pid = PidSelector(1)
    desired = Desired(1, (_probe("a", pid), _probe("b", pid, socket_filter=HTTPS)))
    wanted = wanted_slots(desired, {pid: _attached(pid)})
    assert wanted == (SlotKey(pid, EVERYTHING), SlotKey(pid, HTTPS))


def test_only_what_was_found_gets_a_slot() -> None:
    pids = [PidSelector(n) for n in range(4)]
    facts: dict[Selector, TargetFacts] = {
        pids[0]: _attached(pids[0]),
        pids[1]: pending("not there yet"),
        pids[2]: failed("never"),
        pids[3]: TargetFacts(TargetState.GONE),
    }
    desired = Desired(1, (_probe("a", *pids),))
    assert wanted_slots(desired, facts) == (SlotKey(pids[0], EVERYTHING),)


def test_modules_are_wanted_for_targets_that_are_there_or_may_come() -> None:
    here, coming, gone = PidSelector(1), PidSelector(2), PidSelector(3)
    facts: dict[Selector, TargetFacts] = {
        here: _attached(here),
        coming: pending(""),
        gone: TargetFacts(TargetState.GONE),
    }
    desired = Desired(
        1,
        (
            _probe("a", here, modules=frozenset({Module.RX})),
            _probe("b", coming, modules=frozenset({Module.TX})),
            _probe("c", gone, modules=frozenset({Module.TCP})),
            _probe("d", modules=frozenset({Module.TCP})),
        ),
    )
    assert wanted_modules(desired, facts) == {Module.RX, Module.TX}


@pytest.mark.parametrize(
    ("protocols", "module", "is_there", "is_wanted"),
    [
        ((), Module.RX, True, True),
        (("UDP",), Module.RX, True, True),
        (("TCP", "UDP"), Module.RX, True, True),
        (("TCP",), Module.RX, True, False),
        ((), Module.TX, True, False),
        ((), Module.RX, False, False),
    ],
)
def test_udp_is_wanted_if_a_filter_lets_it_pass_to_a_module_that_has_programs_for_it(
    protocols: tuple[str, ...], module: Module, is_there: bool, is_wanted: bool
) -> None:
    pid, other = PidSelector(1), PidSelector(2)
    facts: dict[Selector, TargetFacts] = {
        pid: _attached(pid) if is_there else TargetFacts(TargetState.GONE),
        other: _attached(other),
    }
    only_tcp = SocketFilter(protocols=frozenset({"TCP"}))
    asked = SocketFilter(protocols=frozenset(protocols))
    probes = (
        _probe("a", other, socket_filter=only_tcp, modules=frozenset(Module)),
        _probe("b", pid, socket_filter=asked, modules=frozenset({module})),
    )
    assert is_udp_wanted(Desired(1, probes), facts) is is_wanted


def test_only_probes_with_node_figures_have_those_of_interrupts_and_of_the_nodes_namespace() -> (
    None
):
    pid, both = PidSelector(1), frozenset({Module.RX, Module.IRQ})
    hidden = Desired(1, (_probe("a", pid, modules=both),))
    shown = Desired(1, (_probe("a", pid, modules=both, node_figures=True),))
    facts: dict[Selector, TargetFacts] = {
        pid: TargetFacts(TargetState.ATTACHED, netns=frozenset({8, 9}), tgids=frozenset({1}))
    }
    numbers = {SlotKey(pid, EVERYTHING): 0}
    key = TargetKey("a", "t0")

    assert wanted_modules(hidden, facts) == {Module.RX}
    assert wanted_modules(shown, facts) == both
    assert homes(hidden, facts, numbers, 9) == {key: frozenset({8, pid})}
    assert homes(shown, facts, numbers, 9) == {key: frozenset({8, 9, pid})}


def test_a_target_with_many_namespaces_reports_the_counters_of_a_few() -> None:
    cgroup = CgroupSelector("/c")
    desired = Desired(1, (_probe("a", cgroup),))
    numbers = {SlotKey(cgroup, EVERYTHING): 0}
    key = TargetKey("a", "t0")
    for there in (range(10, 10 + MOST_HOMES), range(10, 900)):
        facts: dict[Selector, TargetFacts] = {cgroup: _in_namespaces(*there)}
        assert homes(desired, facts, numbers, 9)[key] == frozenset(range(10, 10 + MOST_HOMES))


def test_a_target_that_is_a_whole_network_namespace_has_no_cgroups() -> None:
    cgroup, netns = CgroupSelector("/c"), NetnsSelector("/n")
    desired = Desired(1, (_probe("a", cgroup, netns),))
    facts: dict[Selector, TargetFacts] = {
        cgroup: TargetFacts(TargetState.ATTACHED, cgroup_directories=frozenset({"/c"})),
        netns: TargetFacts(
            TargetState.ATTACHED, netns=frozenset({8}), netns_wide=frozenset({8}), pids=(5,)
        ),
    }
    numbers = {SlotKey(cgroup, EVERYTHING): 0, SlotKey(netns, EVERYTHING): 1}
    assert homes(desired, facts, numbers, 9) == {
        TargetKey("a", "t0"): frozenset({cgroup}),
        TargetKey("a", "t1"): frozenset({8}),
    }


def test_each_kind_of_target_is_recognised_by_facts_of_the_kernel() -> None:
    pid, cgroup, netns = PidSelector(7), CgroupSelector("/c"), NetnsSelector("/n")
    facts: dict[Selector, TargetFacts] = {
        selector: _attached(selector) for selector in (pid, cgroup, netns)
    }
    numbers = {SlotKey(s, HTTPS): n for n, s in enumerate(facts)}
    inodes = frozenset({9})
    assert assignment(numbers, facts) == {
        0: SlotSpec(tgids=frozenset({7}), netns=inodes, socket_filter=HTTPS),
        1: SlotSpec(cgroup_ids=frozenset({5, 6}), netns=inodes, socket_filter=HTTPS),
        2: SlotSpec(netns_wide=inodes, netns=inodes, socket_filter=HTTPS),
    }


def test_slots_have_the_tenant_whose_probe_asks_for_them() -> None:
    shared, own = PidSelector(1), PidSelector(2)
    probes = (
        _probe("p", shared, namespace="shop"),
        _probe("q", shared, own, namespace="bank"),
        _probe("r", own, socket_filter=HTTPS, namespace="shop"),
    )
    tenants = tenants_of(Desired(1, probes))
    assert tenants == {
        SlotKey(shared, EVERYTHING): "bank",
        SlotKey(own, EVERYTHING): "bank",
        SlotKey(own, HTTPS): "shop",
    }
    numbers = {SlotKey(own, HTTPS): 5}
    slots = assignment(numbers, {own: _attached(own)}, tenants)
    assert slots[5].tenant == "shop"


def test_a_target_that_too_many_filters_share_fails_alone() -> None:
    shared, other = PidSelector(1), PidSelector(2)
    filters = [SocketFilter(ports=frozenset({port})) for port in range(1, MAX_SHARING + 2)]
    probes = [_probe(f"p{n}", shared, socket_filter=f) for n, f in enumerate(filters)]
    desired = Desired(1, (*probes, _probe("q", other)))
    facts: dict[Selector, TargetFacts] = {s: _attached(s) for s in (shared, other)}
    refused = overcommitted(desired, facts)
    last = SlotKey(shared, filters[-1])
    assert set(refused) == {last}
    assert "4 probes with different filters" in refused[last]
    assert last not in overcommitted(desired, facts, held={last})


def test_a_target_that_the_tables_have_no_room_for_fails_alone() -> None:
    large, small = CgroupSelector("/large"), CgroupSelector("/small")
    facts: dict[Selector, TargetFacts] = {
        large: TargetFacts(TargetState.ATTACHED, cgroup_ids=frozenset(range(4090))),
        small: TargetFacts(TargetState.ATTACHED, cgroup_ids=frozenset(range(4085, 4097))),
    }
    refused = overcommitted(Desired(1, (_probe("a", large, small),)), facts)
    assert list(refused) == [SlotKey(small, EVERYTHING)]
    assert "more than 4096 cgroups" in refused[SlotKey(small, EVERYTHING)]


def _crowd(namespace: str, pids: range) -> DesiredProbe:
    """A probe on many processes, each with a slot of its own."""
    return _probe(f"{namespace}-probe", *map(PidSelector, pids), namespace=namespace)


def _measured(
    probes: Sequence[DesiredProbe], held: Container[SlotKey] = (), *, slots: int = 10
) -> Mapping[str, set[SlotKey]]:
    """What gets a slot, by namespace."""
    selectors = {target.selector for probe in probes for target in probe.targets}
    desired = Desired(1, tuple(probes))
    refused = overcommitted(desired, {s: _attached(s) for s in selectors}, held, slots)
    return {
        probe.namespace: {
            key
            for target in probe.targets
            if (key := SlotKey(target.selector, probe.socket_filter)) not in refused
        }
        for probe in probes
    }


def test_a_namespace_that_comes_later_gets_its_share_of_the_slots() -> None:
    first, second = _crowd("first", range(1, 31)), _crowd("second", range(101, 131))
    alone = _measured([first])["first"]
    assert len(alone) == 10
    both = _measured([first, second], held=alone)
    assert {name: len(keys) for name, keys in both.items()} == {"first": 5, "second": 5}
    assert both["first"] <= alone


def test_slots_of_a_namespace_that_goes_are_given_back() -> None:
    first, second = _crowd("first", range(1, 31)), _crowd("second", range(101, 131))
    both = _measured([first, second])
    again = _measured([first], held=both["first"] | both["second"])["first"]
    assert len(again) == 10
    assert both["first"] < again


def test_a_namespace_below_its_share_leaves_the_rest_to_others() -> None:
    small, large = _crowd("small", range(1, 3)), _crowd("large", range(101, 131))
    measured = _measured([large, small])
    assert {name: len(keys) for name, keys in measured.items()} == {"large": 8, "small": 2}


def test_a_pod_with_thousands_of_cgroups_leaves_other_namespaces_their_share() -> None:
    greedy, modest = CgroupSelector("/greedy"), CgroupSelector("/modest")
    facts: dict[Selector, TargetFacts] = {
        greedy: TargetFacts(TargetState.ATTACHED, cgroup_ids=frozenset(range(4096))),
        modest: TargetFacts(TargetState.ATTACHED, cgroup_ids=frozenset({5000, 5001})),
    }
    probes = (_probe("a", greedy, namespace="a"), _probe("b", modest, namespace="b"))
    refused = overcommitted(Desired(1, probes), facts, held={SlotKey(greedy, EVERYTHING)})
    assert list(refused) == [SlotKey(greedy, EVERYTHING)]
    assert "the share of namespace a is 2048" in refused[SlotKey(greedy, EVERYTHING)]


def _in_namespaces(*inodes: int) -> TargetFacts:
    return TargetFacts(TargetState.ATTACHED, cgroup_ids=frozenset(inodes), netns=frozenset(inodes))


def test_a_target_with_many_namespaces_of_like_numbers_fails_alone() -> None:
    greedy, modest, unlike = CgroupSelector("/g"), CgroupSelector("/m"), CgroupSelector("/u")
    alike = range(7, 8 * NETNS_FIRST, NETNS_FIRST)
    facts: dict[Selector, TargetFacts] = {
        greedy: _in_namespaces(*alike[1:]),
        modest: _in_namespaces(alike[0]),
        unlike: _in_namespaces(8),
    }
    probes = (
        _probe("a", greedy, namespace="a"),
        _probe("b", modest, unlike, namespace="b"),
    )
    refused = overcommitted(Desired(1, probes), facts, held={SlotKey(greedy, EVERYTHING)})
    assert list(refused) == [SlotKey(greedy, EVERYTHING)]
    assert "namespaces whose numbers are alike" in refused[SlotKey(greedy, EVERYTHING)]


def test_the_namespaces_that_the_plan_admits_fit_into_the_engines_table() -> None:
    host, *inodes = range(5, 20 * NETNS_FIRST, NETNS_FIRST)
    facts: dict[Selector, TargetFacts] = {
        CgroupSelector(f"/{inode}"): _in_namespaces(inode, inode + 1) for inode in inodes
    }
    refused = overcommitted(Desired(1, (_probe("a", *facts),)), facts)
    admitted = [
        each.netns for target, each in facts.items() if SlotKey(target, EVERYTHING) not in refused
    ]
    assert len(admitted) == MAX_ALIKE_NAMESPACES
    memory = os.memfd_create("configuration")
    try:
        os.truncate(memory, CONFIG_BYTES)
        configuration = ConfigMemory(memory)
        watched = {host}.union(*admitted)
        configuration.write_namespaces(dict.fromkeys(watched, NamespaceConfiguration(0, 0)))
        configuration.close()
    finally:
        os.close(memory)


def test_the_plan_knows_the_engines_limits() -> None:
    assert MAX_SHARING == MAX_OWNERS


def _key(pid: int) -> SlotKey:
    return SlotKey(PidSelector(pid), EVERYTHING)


def test_a_target_without_a_slot_is_refused_and_gets_the_next_drained_one() -> None:
    table = SlotTable(size=2)
    assert table.allot([_key(1), _key(2), _key(3)]) == {_key(3)}
    table.release_all_but([_key(2), _key(3)])
    assert table.allot([_key(2), _key(3)]) == {_key(3)}
    table.drained()
    assert table.allot([_key(2), _key(3)]) == frozenset()
    assert table.numbers == {_key(2): 1, _key(3): 0}


@given(st.lists(st.tuples(st.lists(st.integers(1, 12), unique=True), st.booleans())))
def test_numbers_are_unique_stable_and_never_reused_before_a_reading(
    steps: list[tuple[list[int], bool]],
) -> None:
    table = SlotTable(size=6)
    for pids, is_read in steps:
        before = table.numbers
        wanted = [_key(pid) for pid in pids]
        table.release_all_but(wanted)
        draining = table.draining
        if is_read:
            table.drained()
        refused = table.allot(wanted)
        after = table.numbers
        assert len(set(after.values())) == len(after)
        assert all(after[key] == before[key] for key in before.keys() & after.keys())
        assert set(after) | refused == set(wanted)
        assert not set(after) & refused
        assert is_read or not draining & set(after.values())
        assert not refused or len(after) + len(table.draining) == 6


@pytest.mark.parametrize(
    ("selector", "state", "expected"),
    [
        (CgroupSelector("/cg/x"), TargetState.PENDING, True),
        (CgroupSelector("/cg/x"), TargetState.ATTACHED, False),
        (PodSelector("0" * 32), TargetState.PENDING, False),
    ],
)
def test_only_an_empty_cgroup_of_a_person_is_awaited_in_every_namespace(
    selector: Selector, state: TargetState, expected: bool
) -> None:
    facts = TargetFacts(state, cgroup_ids=frozenset({7}))
    key = SlotKey(selector, EVERYTHING)
    assert wanted_slots(Desired(probes=(_probe("p", selector),)), {selector: facts}) == (key,)
    assert assignment({key: 0}, {selector: facts})[0].any_netns is expected
