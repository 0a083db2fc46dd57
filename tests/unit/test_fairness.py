"""Room is shared fairly between namespaces, whatever the number and the order of the claims."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latencyprobe.domain import fairness
from latencyprobe.domain.fairness import (
    MAX_PROBES,
    MAX_TARGETS,
    MAX_WINDOWS_PER_SECOND,
    Claim,
    TargetName,
    WindowOfPod,
    refused_claims,
    surplus_targets,
)

SIZES: dict[Hashable, int] = {"slots": 12, "cgroups": 30}

Claims = list[Claim[int]]


def claim(
    number: int,
    namespace: str = "a",
    probe: str = "p",
    *,
    cgroups: Iterable[int] = (),
    held: bool = False,
) -> Claim[int]:
    """A claim of one slot of its own, and of cgroups."""
    needs: dict[Hashable, frozenset[Hashable]] = {"slots": frozenset({number})}
    if entries := frozenset[Hashable](cgroups):
        needs["cgroups"] = entries
    return Claim(number, namespace, f"{namespace}/{probe}", f"{number:04}", needs, held)


@st.composite
def slot_claims(draw: st.DrawFn) -> Claims:
    """Claims of slots alone, by several namespaces, some of them held."""
    demands = draw(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 30)))
    result: Claims = []
    for namespace, demand in demands.items():
        for _ in range(demand):
            probe, held = draw(st.sampled_from("pqr")), draw(st.booleans())
            result.append(claim(len(result), namespace, probe, held=held))
    return result


@st.composite
def mixed_claims(draw: st.DrawFn) -> Claims:
    """Claims of slots and of cgroups that may overlap."""
    entries = st.frozensets(st.integers(0, 50), max_size=20)
    kinds = draw(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.sampled_from("pq"), entries, st.booleans()),
            max_size=25,
        )
    )
    return [
        claim(number, namespace, probe, cgroups=cgroups, held=held)
        for number, (namespace, probe, cgroups, held) in enumerate(kinds)
    ]


def admitted_of(claims: Sequence[Claim[int]]) -> Claims:
    """The claims that are admitted."""
    refused = refused_claims(claims, SIZES)
    return [each for each in claims if each.key not in refused]


def by_namespace(claims: Iterable[Claim[int]]) -> Counter[str]:
    """The number of claims of each namespace."""
    return Counter(each.namespace for each in claims)


def taken(claims: Iterable[Claim[int]], table: str) -> set[Hashable]:
    """The entries of a table that these claims need."""
    return {entry for each in claims for entry in each.needs.get(table, ())}


@given(mixed_claims())
def test_no_table_overflows_and_nothing_that_fits_is_refused(claims: Claims) -> None:
    admitted = admitted_of(claims)
    for table, size in SIZES.items():
        assert len(taken(admitted, str(table))) <= size
    for each in claims:
        if each not in admitted:
            assert any(
                len(taken([*admitted, each], str(table))) > size for table, size in SIZES.items()
            )


@given(mixed_claims(), st.randoms(use_true_random=False))
def test_the_order_of_the_claims_has_no_influence(claims: Claims, chance: random.Random) -> None:
    shuffled = list(claims)
    chance.shuffle(shuffled)
    assert refused_claims(claims, SIZES) == refused_claims(shuffled, SIZES)


@given(slot_claims())
def test_every_namespace_gets_its_demand_or_an_equal_part(claims: Claims) -> None:
    demand, admitted = by_namespace(claims), by_namespace(admitted_of(claims))
    for namespace, wanted in demand.items():
        assert admitted[namespace] >= min(wanted, 12 // len(demand))


@given(slot_claims())
def test_no_namespace_has_more_while_another_lacks(claims: Claims) -> None:
    demand, admitted = by_namespace(claims), by_namespace(admitted_of(claims))
    for namespace, wanted in demand.items():
        if admitted[namespace] < wanted:
            assert max(admitted.values()) <= admitted[namespace] + 1


@given(slot_claims(), st.integers(1, 40))
def test_more_demand_of_one_takes_nothing_of_the_others_shares(claims: Claims, more: int) -> None:
    flood = [claim(1000 + number, "z", held=True) for number in range(more)]
    before = by_namespace(admitted_of(claims))
    after = by_namespace(admitted_of([*claims, *flood]))
    share = 12 // (len(by_namespace(claims)) + 1)
    for namespace, count in before.items():
        assert after[namespace] >= min(count, share)


def holding(claims: Claims, held: Container[int]) -> Claims:
    """These claims, of which these are held."""
    return [replace(each, is_held=each.key in held) for each in claims]


@given(slot_claims() | mixed_claims().map(lambda claims: holding(claims, ())))
def test_admitted_claims_stay_so_while_nothing_changes(claims: Claims) -> None:
    admitted = {each.key for each in admitted_of(claims)}
    again = holding(claims, admitted)
    assert {each.key for each in admitted_of(again)} == admitted


def test_a_choice_that_its_own_result_would_change_is_not_made() -> None:
    claims = [
        claim(0, "a"),
        claim(1, "b"),
        claim(2, "b", "q"),
        claim(3, "a", cgroups=[13]),
        claim(4, "a", cgroups=[20, 25]),
        claim(5, "b", cgroups=[11, 12]),
        claim(6, "a", cgroups=[6, 22, 31]),
        claim(7, "b", cgroups=[6, 8, 24, 44]),
        claim(8, "a", cgroups=[4, 7, 15, 16, 19, 33, 46]),
        claim(9, "b", "q", cgroups=[0, 1, 2, 3, 4, 10, 18, 26, 29, 39, 40]),
        claim(10, "c", cgroups=[0, 1, 2, 5, 9, 17, 19, 21, 27, 28, 29, 30, 37, 40]),
        claim(11, "b", "q"),
    ]
    admitted = {each.key for each in admitted_of(claims)}
    again = {each.key for each in admitted_of(holding(claims, admitted))}
    assert again == admitted


@given(mixed_claims())
def test_the_choice_settles_from_any_state(claims: Claims) -> None:
    for _ in range(8):
        claims = holding(claims, {each.key for each in admitted_of(claims)})
    assert {each.key for each in admitted_of(claims)} == {c.key for c in claims if c.is_held}


def test_within_a_namespace_what_is_held_comes_first() -> None:
    claims = [claim(number, held=number >= 20) for number in range(32)]
    assert {each.key for each in admitted_of(claims)} == set(range(20, 32))


def test_within_a_namespace_probes_take_turns() -> None:
    claims = [claim(number, probe="p" if number < 30 else "q") for number in range(36)]
    admitted = Counter(each.probe_id for each in admitted_of(claims))
    assert admitted == {"a/p": 6, "a/q": 6}


def test_a_key_that_two_probes_claim_is_taken_once() -> None:
    both = [claim(number, probe=probe) for number in range(12) for probe in "pq"]
    assert refused_claims(both, SIZES) == {}


def test_a_claim_larger_than_its_part_gets_what_the_others_leave() -> None:
    large = claim(1, "a", cgroups=range(20))
    small = claim(2, "b", cgroups=range(100, 105))
    assert refused_claims([large, small], SIZES) == {}
    crowding = claim(2, "b", cgroups=range(100, 115))
    refused = refused_claims([large, crowding], SIZES)
    assert {key: short.table for key, short in refused.items()} == {1: "cgroups"}


def names(namespace: str, probes: int, targets: int) -> list[tuple[str, TargetName]]:
    """Targets of a namespace."""
    return [
        (namespace, (f"{namespace}-{probe}", str(target)))
        for probe in range(probes)
        for target in range(targets)
    ]


def test_an_agent_takes_so_many_probes_and_targets_and_says_which_it_does_not() -> None:
    assert not surplus_targets(names("shop", MAX_PROBES, 4))
    assert not surplus_targets(names("shop", 4, MAX_TARGETS // 4))
    surplus = surplus_targets([*names("shop", MAX_PROBES + 50, 1), *names("bank", 3, 1)])
    assert len(surplus) == 53
    assert {probe_id.partition("-")[0] for probe_id, _ in surplus} == {"shop"}
    (message,) = set(surplus.values())
    assert message == (
        f"the agent of this node measures at most {MAX_PROBES} probes; the share of namespace "
        f"shop is {MAX_PROBES - 3}: use fewer probes on this node, or select fewer pods"
    )


def test_a_namespace_with_many_probes_keeps_its_part_of_the_targets() -> None:
    probes, targets = names("shop", MAX_PROBES + 80, 3), names("bank", 1, 2 * MAX_TARGETS)
    surplus = surplus_targets([*probes, *targets])
    lost = Counter(text for (probe_id, _), text in surplus.items() if probe_id.startswith("shop"))
    assert lost == {
        f"the agent of this node measures at most {MAX_PROBES} probes; the share of namespace "
        f"shop is {MAX_PROBES - 1}: use fewer probes on this node, or select fewer pods": 3 * 81,
        f"the agent of this node measures at most {MAX_TARGETS} targets; the share of namespace "
        f"shop is {MAX_TARGETS // 2}: use fewer probes on this node, or select fewer pods": (
            3 * (MAX_PROBES - 1) - MAX_TARGETS // 2
        ),
    }


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.tuples(st.sampled_from([1, 3, 40, 160, 400]), st.integers(1, 2500)),
        min_size=1,
    )
)
@settings(max_examples=30, deadline=None)
def test_probes_and_targets_are_refused_only_to_namespaces_that_have_their_part(
    wanted: Mapping[str, tuple[int, int]],
) -> None:
    targets = [
        each
        for name, (probes, in_all) in wanted.items()
        for each in names(name, probes, max(1, in_all // probes))
    ]
    surplus = surplus_targets(targets)
    admitted = [name for _, name in targets if name not in surplus]
    assert len(admitted) <= MAX_TARGETS
    assert len({probe_id for probe_id, _ in admitted}) <= MAX_PROBES
    for (probe_id, _), text in surplus.items():
        own = [name for name in admitted if name[0].startswith(probe_id[0])]
        if f"{MAX_PROBES} probes" in text:
            assert len({name for name, _ in own}) >= MAX_PROBES // len(wanted)
        else:
            assert len(own) >= MAX_TARGETS // len(wanted)


# Windows

Targets = list[tuple[str, TargetName]]


def windows_of(
    targets: Iterable[tuple[str, TargetName]], intervals_s: Mapping[str, float]
) -> dict[TargetName, WindowOfPod]:
    """The windows of these targets: each is a container of the pod before the slash.

    `intervals_s`: by the beginnings of the probes' ids.
    """
    return {
        name: WindowOfPod(name[0], name[1].partition("/")[0], interval_s)
        for _, name in targets
        for prefix, interval_s in intervals_s.items()
        if name[0].startswith(prefix)
    }


def admitted_with(
    targets: Targets, intervals_s: Mapping[str, float], held: Container[TargetName] = ()
) -> set[TargetName]:
    """The targets that an agent takes if their probes have these intervals."""
    surplus = surplus_targets(targets, held, windows_of(targets, intervals_s))
    return {name for _, name in targets if name not in surplus}


def per_second(admitted: Iterable[TargetName], intervals_s: Mapping[str, float]) -> float:
    """The number of windows that an agent computes per second, for intervals below 10 s."""
    windows = windows_of((("", name) for name in admitted), intervals_s)
    return sum(1 / each.interval_s for each in {*windows.values()} if each.interval_s < 10)


def test_the_windows_of_an_honest_node_are_all_computed() -> None:
    each_second, others = names("shop", 1, 110), names("bank", 11, 110)
    assert not surplus_targets(
        [*each_second, *others],
        windows=windows_of([*each_second, *others], {"shop": 1, "bank": 10}),
    )
    for interval_s, probes, pods in ((1, 1, 330), (1, 3, 110), (4, 12, 110), (600, 12, 110)):
        targets = names("shop", probes, pods)
        assert not surplus_targets(targets, windows=windows_of(targets, {"": interval_s}))


def test_all_containers_of_a_pod_share_its_window() -> None:
    targets = [
        ("shop", ("shop-0", f"{pod}/{container}")) for pod in range(110) for container in range(8)
    ]
    assert not surplus_targets(targets, windows=windows_of(targets, {"shop": 1}))


def test_an_interval_takes_its_exact_part_of_a_second() -> None:
    targets = names("shop", 4, 110)
    for interval_s in (1.1, 0.7, 0.1):
        admitted = admitted_with(targets, {"shop": interval_s})
        assert len(admitted) == int(MAX_WINDOWS_PER_SECOND * interval_s + 1e-9)


def test_targets_without_a_window_take_none() -> None:
    local = names("", 4, MAX_TARGETS // 4)
    assert not surplus_targets(local)
    crowd = names("flood", 8, 110)
    surplus = surplus_targets([*local[:400], *crowd], windows=windows_of(crowd, {"flood": 1}))
    assert {probe_id.partition("-")[0] for probe_id, _ in surplus} == {"flood"}
    assert len(surplus) == len(crowd) - MAX_WINDOWS_PER_SECOND


def test_windows_are_refused_to_the_namespace_with_most_of_them_alone() -> None:
    greedy, shop, bank = names("flood", 9, 110), names("shop", 1, 33), names("bank", 1, 110)
    intervals_s = {"flood": 1.0, "shop": 7.0, "bank": 1.0}
    targets = [*greedy, *shop, *bank]
    surplus = surplus_targets(targets, windows=windows_of(targets, intervals_s))
    assert {probe_id.partition("-")[0] for probe_id, _ in surplus} == {"flood"}
    (message,) = set(surplus.values())
    assert message == (
        f"an agent computes at most {MAX_WINDOWS_PER_SECOND} windows of pods per second for "
        "intervals below 10 s; the share of namespace flood is 215: use a longer interval, or "
        "select fewer pods"
    )


def test_a_namespace_may_have_its_equal_part_where_no_single_window_fits_into_it() -> None:
    others = [each for number in range(66) for each in names(f"other{number:02}", 1, 40)]
    targets = [*others, *names("shop", 1, 1)]
    surplus = surplus_targets(targets, windows=windows_of(targets, {"other": 8, "shop": 0.1}))
    assert "the share of namespace shop is 4.9:" in surplus["shop-0", "0"]


def test_many_short_intervals_take_nothing_of_long_ones() -> None:
    bank = [("bank", (f"bank-{probe}", str(pod))) for probe in range(6) for pod in range(55)]
    floods = [each for number in range(8) for each in names(f"f{number}", 20, 6)]
    for interval_s in (10, 60, 600):
        admitted = admitted_with([*bank, *floods], {"bank": interval_s, "f": 1})
        assert {name for _, name in bank} <= admitted
        assert len(admitted) == len(bank) + MAX_WINDOWS_PER_SECOND


def test_a_namespace_with_many_targets_keeps_its_part_of_the_windows() -> None:
    bank = names("bank", 6, 55)
    floods = [each for number in range(8) for each in names(f"f{number}", 20, 6)]
    intervals_s = {"bank": 9.5, "f": 1}
    assert {name for _, name in bank} <= admitted_with([*bank, *floods], intervals_s)


def test_one_more_pod_of_a_namespace_costs_another_below_its_part_nothing() -> None:
    bank = names("bank", 5, 55)
    floods = [each for number in range(8) for each in names(f"f{number}", 20, 6)]
    intervals_s = {"bank": 9.5, "f": 1}
    before = admitted_with([*bank, *floods], intervals_s)
    more = [*bank, *floods, ("f0", ("f0-0", "another")), *names("f8", 1, 50)]
    assert {name for _, name in bank} <= admitted_with(more, intervals_s, before)


def test_a_namespace_that_was_first_keeps_no_more_windows_than_its_share() -> None:
    first, second = names("a", 8, 88), names("b", 8, 88)
    intervals_s = {"a": 1.0, "b": 1.0}
    alone = admitted_with(first, intervals_s)
    assert len(alone) == MAX_WINDOWS_PER_SECOND
    both = admitted_with([*first, *second], intervals_s, alone)
    counts = Counter(probe_id.partition("-")[0] for probe_id, _ in both)
    assert counts == {"a": MAX_WINDOWS_PER_SECOND // 2, "b": MAX_WINDOWS_PER_SECOND // 2}
    assert {name for name in both if name[0].startswith("a")} < alone


def test_a_probe_whose_interval_shrinks_yields_to_the_others() -> None:
    greedy, other = names("flood", 10, 110), names("shop", 2, 110)
    before = admitted_with([*greedy, *other], {"flood": 10, "shop": 1})
    assert len(before) == len(greedy) + len(other)
    after = admitted_with([*greedy, *other], {"flood": 1, "shop": 1}, before)
    counts = Counter(probe_id.partition("-")[0] for probe_id, _ in after)
    assert counts == {"flood": MAX_WINDOWS_PER_SECOND // 2, "shop": MAX_WINDOWS_PER_SECOND // 2}
    again = admitted_with([*greedy, *other], {"flood": 10, "shop": 1}, after)
    assert again == before


INTERVALS_S = (0.1, 1, 1.1, 3, 9.9, 10, 600)


@st.composite
def probes_of_namespaces(draw: st.DrawFn) -> tuple[Targets, dict[str, float]]:
    """Targets of some namespaces, and the intervals of their probes."""
    probe = st.tuples(st.integers(1, 110), st.sampled_from(INTERVALS_S))
    found = draw(
        st.dictionaries(st.sampled_from("abcdef"), st.lists(probe, min_size=1, max_size=4))
    )
    targets = [
        (namespace, (f"{namespace}-{number}", str(pod)))
        for namespace, own in found.items()
        for number, (pods, _) in enumerate(own)
        for pod in range(pods)
    ]
    intervals_s = {
        f"{namespace}-{number}": interval_s
        for namespace, own in found.items()
        for number, (_, interval_s) in enumerate(own)
    }
    return targets, intervals_s


def parts_of_windows(targets: Targets, intervals_s: Mapping[str, float]) -> float:
    """The equal part of the windows per second, of each namespace that needs some."""
    windows = windows_of(targets, intervals_s)
    needing = {namespace for namespace, name in targets if windows[name].interval_s < 10}
    return MAX_WINDOWS_PER_SECOND / max(len(needing), 1)


def per_second_of(
    namespace: str, admitted: Iterable[TargetName], intervals_s: Mapping[str, float]
) -> float:
    """The number of windows that an agent computes for one namespace."""
    return per_second((name for name in admitted if name[0].startswith(namespace)), intervals_s)


MANY = settings(max_examples=60, deadline=None)


@given(probes_of_namespaces(), st.randoms(use_true_random=False))
@MANY
def test_the_windows_that_are_computed_stay_so(
    wanted: tuple[Targets, dict[str, float]], chance: random.Random
) -> None:
    targets, intervals_s = wanted
    admitted = admitted_with(targets, intervals_s)
    assert per_second(admitted, intervals_s) < MAX_WINDOWS_PER_SECOND + 1e-3
    chance.shuffle(targets)
    assert admitted_with(targets, intervals_s) == admitted  # as after a restart
    assert admitted_with(targets, intervals_s, admitted) == admitted


@given(probes_of_namespaces())
@MANY
def test_windows_are_refused_only_to_namespaces_that_have_their_part(
    wanted: tuple[Targets, dict[str, float]],
) -> None:
    targets, intervals_s = wanted
    surplus = surplus_targets(targets, windows=windows_of(targets, intervals_s))
    too_often = {name for name, text in surplus.items() if "windows" in text}
    admitted = {name for _, name in targets} - too_often
    part = parts_of_windows(targets, intervals_s)
    for name in too_often:
        used = per_second_of(name[0][0], admitted, intervals_s)
        assert intervals_s[name[0]] < 10
        assert used + 1 / intervals_s[name[0]] > part - 1e-3


@given(probes_of_namespaces(), st.data())
@MANY
def test_one_more_target_costs_others_windows_only_beyond_their_part(
    wanted: tuple[Targets, dict[str, float]], data: st.DataObject
) -> None:
    targets, intervals_s = wanted
    before = admitted_with(targets, intervals_s)
    whose = data.draw(st.sampled_from("abcdefg"))
    intervals_s[f"{whose}-new"] = data.draw(st.sampled_from(INTERVALS_S))
    more = [*targets, (whose, (f"{whose}-new", "0"))]
    surplus = surplus_targets(more, before, windows_of(more, intervals_s))
    lost = {name for name in before if "windows" in surplus.get(name, "")}
    part = parts_of_windows(more, intervals_s)
    for namespace in {name[0][0] for name in lost} - {whose}:
        assert per_second_of(namespace, before, intervals_s) > part - 1e-3


@st.composite
def targets_of_pods(draw: st.DrawFn) -> tuple[Targets, dict[str, float]]:
    """Containers of pods in some namespaces, and the intervals of their probes."""
    targets: Targets = []
    intervals_s = {}
    for namespace in draw(st.sets(st.sampled_from("abcde"), min_size=1)):
        for number in range(draw(st.integers(1, 5))):
            probe_id = f"{namespace}-{number}"
            intervals_s[probe_id] = draw(st.sampled_from(INTERVALS_S))
            pods = draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
            targets += [
                (namespace, (probe_id, f"{pod}/{container}"))
                for pod, containers in enumerate(pods)
                for container in range(containers)
            ]
    return targets, intervals_s


def assert_that_the_choice_settles(
    targets: Targets, intervals_s: Mapping[str, float], held: Container[TargetName]
) -> None:
    """Make a choice by all limits, each reduced, with its own result as held."""
    small: dict[str, Any] = {"MAX_PROBES": 6, "MAX_TARGETS": 24, "MAX_WINDOWS_PER_SECOND": 10}
    with mock.patch.multiple(fairness, **small):
        for _ in range(3):
            held = admitted_with(targets, intervals_s, held)
        assert admitted_with(targets, intervals_s, held) == held


def test_targets_that_another_limit_refuses_displace_no_windows() -> None:
    targets = [*names("a", 1, 1), *names("c", 2, 1), *names("d", 3, 1), *names("e", 1, 5)]
    targets += [("e", ("e-1", "0")), ("e", ("e-2", "0")), ("e", ("e-2", "1"))]
    intervals_s = dict.fromkeys("ace", 1.0) | {"d-0": 0.1, "d-1": 1, "d-2": 1}
    assert_that_the_choice_settles(targets, intervals_s, ())


@st.composite
def targets_that_are_held(
    draw: st.DrawFn,
) -> tuple[Targets, dict[str, float], Container[TargetName]]:
    """Targets, the intervals of their probes, and some of the targets."""
    targets, intervals_s = draw(targets_of_pods())
    return targets, intervals_s, draw(st.sets(st.sampled_from([name for _, name in targets])))


@given(targets_that_are_held())
@settings(deadline=None)
def test_the_choice_by_all_limits_settles_from_any_state(
    wanted: tuple[Targets, dict[str, float], Container[TargetName]],
) -> None:
    assert_that_the_choice_settles(*wanted)


@pytest.mark.thorough
@pytest.mark.timeout(900)
@given(targets_that_are_held())
@settings(deadline=None, max_examples=2000)
def test_the_choice_by_all_limits_settles_in_many_cases(
    wanted: tuple[Targets, dict[str, float], Container[TargetName]],
) -> None:
    assert_that_the_choice_settles(*wanted)
