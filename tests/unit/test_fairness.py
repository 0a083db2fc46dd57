"""Room is shared fairly between namespaces, whatever the number and the order of the claims."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.fairness import (
    MAX_PROBES,
    MAX_TARGETS,
    Claim,
    TargetName,
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
