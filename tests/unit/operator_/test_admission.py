"""Each namespace has its own limit, and its oldest probes are served."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.admission import Admissions, Applicant

applicants = st.lists(
    st.builds(Applicant, st.sampled_from("ab"), st.sampled_from("123"), st.uuids().map(str)),
    max_size=12,
    unique_by=lambda applicant: applicant.uid,
)


class Served:
    """The probes that are served, as far as the changes name them."""

    def __init__(self, most: int | None) -> None:
        self.admissions = Admissions(most)
        self.present: dict[str, Applicant] = {}
        self.refused: set[str] = set()

    def join(self, applicant: Applicant) -> None:
        self.present[applicant.uid] = applicant
        if refused := self.admissions.join(applicant):
            self.refused.add(refused)

    def leave(self, uid: str) -> None:
        self.present.pop(uid, None)
        self.refused.discard(uid)
        if served := self.admissions.leave(uid):
            self.refused.remove(served)

    def expected(self, most: int) -> set[str]:
        """The UIDs above the limit, from all applicants at once."""
        by_namespace = [
            sorted(each for each in self.present.values() if each.namespace == namespace)
            for namespace in "ab"
        ]
        return {each.uid for own in by_namespace for each in own[most:]}


@given(applicants, st.integers(1, 5), st.lists(st.integers(0, 11), max_size=24))
def test_the_oldest_probes_of_each_namespace_are_served(
    given_applicants: list[Applicant], most: int, changes: list[int]
) -> None:
    served = Served(most)
    for applicant in given_applicants:
        served.join(applicant)
        assert served.refused == served.expected(most)
    for number in changes:
        for applicant in given_applicants[number : number + 1]:
            if applicant.uid in served.present:
                served.leave(applicant.uid)
            else:
                served.join(applicant)
            assert served.refused == served.expected(most)


@given(applicants, st.integers(1, 5))
def test_a_probe_that_comes_again_has_its_place(
    given_applicants: list[Applicant], most: int
) -> None:
    served = Served(most)
    for applicant in given_applicants:
        served.join(applicant)
    for applicant in given_applicants:
        refused = served.admissions.join(applicant)
        assert refused == (applicant.uid if applicant.uid in served.refused else None)
    for applicant in given_applicants:
        served.leave(applicant.uid)
    assert not served.admissions._by_namespace


@given(applicants)
def test_without_a_limit_all_are_served(given_applicants: list[Applicant]) -> None:
    served = Served(None)
    for applicant in given_applicants:
        served.join(applicant)
    assert not served.refused
