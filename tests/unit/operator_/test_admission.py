"""Each namespace has its own limit, and its oldest probes are served."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.admission import AdminLimits, Applicant, surplus_probes

applicants = st.lists(
    st.builds(Applicant, st.sampled_from("ab"), st.sampled_from("123"), st.uuids().map(str)),
    max_size=12,
    unique_by=lambda applicant: applicant.uid,
)


@given(applicants, st.integers(1, 5))
def test_the_oldest_probes_of_each_namespace_are_served(
    given_applicants: list[Applicant], most: int
) -> None:
    surplus = surplus_probes(given_applicants, AdminLimits(0, most))
    for namespace in "ab":
        own = [each for each in given_applicants if each.namespace == namespace]
        served = [each for each in own if each.uid not in surplus]
        assert len(served) == min(len(own), most)
        refused = [each for each in own if each.uid in surplus]
        assert all(one.created <= other.created for one in served for other in refused)


@given(applicants, applicants, st.integers(1, 5))
def test_another_namespace_takes_no_place(
    ours: list[Applicant], others: list[Applicant], most: int
) -> None:
    own = [each for each in ours if each.namespace == "a"]
    foreign = [each for each in others if each.namespace == "b"]
    limits = AdminLimits(0, most)
    own_uids = {each.uid for each in own}
    foreign = [each for each in foreign if each.uid not in own_uids]
    assert surplus_probes([*own, *foreign], limits) & own_uids == surplus_probes(own, limits)


@given(applicants)
def test_without_a_limit_all_are_served(given_applicants: list[Applicant]) -> None:
    assert not surplus_probes(given_applicants, AdminLimits())
