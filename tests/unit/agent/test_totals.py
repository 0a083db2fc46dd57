"""Sums for metrics: they never decrease, they end late, and their number has a bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.histogram import POSITIONS, Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement, total
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.stages import Module
from latencyprobe_agent.totals import KEPT_S, MAX_COUNTERS, Subject
from tests.unit.agent.scripted import samples
from tests.unit.agent.totals_of import Followed, probe_on

PROBE = Subject("shop", "checkout")
POD_A = Subject("shop", "checkout", "a")
POD_B = Subject("shop", "checkout", "b")

measurements = st.lists(
    st.builds(
        lambda buckets, lost, drops: Measurement(
            {"rx.total": StageMeasurement(Histogram(buckets, 7, 1, 2), lost)},
            {"retransmits": lost, "drops.TCP_CSUM": drops},
        ),
        st.dictionaries(st.integers(0, POSITIONS - 1), st.integers(1, 2**40), max_size=9),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=8,
)


@given(measurements)
def test_a_sum_is_that_of_all_readings(readings: list[Measurement]) -> None:
    followed = Followed()
    followed.follow(probe_on("a"))
    for each in readings:
        followed.read(each)

    found, expected = followed.current()[POD_A], total(readings)

    assert {name: dict(stage.buckets) for name, stage in found.stages.items()} == {
        name: dict(stage.histogram.buckets) for name, stage in expected.stages.items()
    }
    for name, stage in found.stages.items():
        known = expected.stages[name]
        assert (stage.lost, stage.unmatched) == (known.lost, known.unmatched)
    assert found.counters == expected.counters


def test_a_probe_has_one_sum_unless_it_asks_for_one_per_pod() -> None:
    followed = Followed()
    followed.follow(probe_on("a", "b", per_pod=False), probe_on("a", name="shop/each"))
    followed.read(samples(5), ["a", "b"])

    assert followed.samples(PROBE) == 2
    assert followed.samples(Subject("shop", "each", "a")) == 1
    assert Subject("shop", "each") in followed.current()
    assert POD_A not in followed.current()


def test_a_sum_has_the_modules_of_its_probe() -> None:
    followed = Followed()
    followed.follow(probe_on("a", modules=frozenset({Module.RX})))
    followed.read(samples(5) + samples(6, stage="tx.total"))

    assert list(followed.current()[POD_A].stages) == ["rx.total"]


def test_the_sum_of_a_probe_keeps_the_samples_of_pods_that_have_ended() -> None:
    followed = Followed()
    followed.follow(probe_on("a", "b", per_pod=False))
    followed.read(samples(5), ["a", "b"])
    followed.now = 10 * KEPT_S
    followed.follow(probe_on("b", per_pod=False))
    followed.read(samples(5), ["b"])

    assert followed.samples(PROBE) == 3


def test_the_sum_of_a_pod_that_has_ended_stays_for_some_scrapes() -> None:
    followed = Followed()
    followed.follow(probe_on("a", "b"))
    followed.read(samples(5), ["a", "b"])
    followed.follow(probe_on("b"))
    followed.now = KEPT_S / 2
    assert followed.samples(POD_A) == 1

    followed.now = KEPT_S
    assert POD_A not in followed.current()
    assert followed.samples(POD_B) == 1


def test_a_pod_that_comes_back_by_its_name_counts_on() -> None:
    followed = Followed()
    followed.follow(probe_on("a"))
    followed.read(samples(5))
    followed.follow(probe_on("b"))
    followed.follow(probe_on("a"))
    followed.read(samples(5))

    assert followed.samples(POD_A) == 2


def test_sums_outlive_a_lost_client() -> None:
    followed = Followed()
    followed.follow(probe_on("a"))
    followed.read(samples(5))
    followed.follow()
    assert followed.samples(POD_A) == 1
    followed.follow(probe_on("a"))
    followed.read(samples(5))

    assert followed.samples(POD_A) == 2


def test_pods_beyond_the_limit_count_in_the_sum_of_their_probe() -> None:
    followed = Followed(max_pods=3)
    pods = [f"pod-{number}" for number in range(10)]
    followed.follow(probe_on(*pods))
    followed.read(samples(5), pods)

    own = [subject for subject in followed.current() if subject.pod]
    assert len(own) == 3
    assert followed.samples(PROBE) == 7
    assert followed.totals.left_out == {PROBE: 7}


def test_a_limit_of_0_leaves_one_sum_a_probe() -> None:
    followed = Followed(max_pods=0)
    followed.follow(probe_on("a", "b"))
    followed.read(samples(5), ["a", "b"])

    assert list(followed.current()) == [PROBE]
    assert followed.samples(PROBE) == 2


def test_pods_keep_their_places() -> None:
    followed = Followed(max_pods=2)
    followed.follow(probe_on("m", "n"))
    followed.follow(probe_on("a", "b", "c", "m", "n"))
    assert {subject.pod for subject in followed.current()} == {"", "m", "n"}
    assert followed.totals.left_out == {PROBE: 3}


def test_namespaces_share_the_places() -> None:
    followed = Followed(max_pods=4)
    many = [f"pod-{number}" for number in range(50)]
    followed.follow(probe_on(*many, name="big/all"), probe_on("a", "b", name="small/all"))

    namespaces = sorted(subject.namespace for subject in followed.current() if subject.pod)
    assert namespaces == ["big", "big", "small", "small"]


def test_the_number_of_sums_is_bounded_though_pods_come_and_go() -> None:
    followed = Followed(max_pods=2)
    for number in range(3000):
        followed.follow(probe_on(f"pod-{number}"))

    assert len(followed.current()) <= 2 * (2 + 1024)
    assert Subject("shop", "checkout", "pod-2999") in followed.current()


def test_names_of_counters_do_not_grow_for_ever() -> None:
    followed = Followed()
    followed.follow(probe_on("a"))
    for number in range(1000):
        followed.read(Measurement(counters={f"drops.REASON_{number}": 1, "retransmits": 1}))

    counters = followed.current()[POD_A].counters
    assert len(counters) <= MAX_COUNTERS + 2
    assert counters["retransmits"] == 1000
    assert sum(n for name, n in counters.items() if name.startswith("drops.")) == 1000
    assert counters["drops.other"] > 0


@pytest.mark.parametrize("per_pod", [True, False])
def test_pending_waits_are_those_of_the_last_reading(*, per_pod: bool) -> None:
    followed = Followed()
    followed.follow(probe_on("a", "b", per_pod=per_pod))
    followed.read(Measurement(pending={"unreadSegments": Pending(3, oldest_ns=9)}), ["a", "b"])
    assert sum(kinds["unreadSegments"].count for kinds in followed.totals.pending().values()) == 6

    followed.read(Measurement(pending={"unreadSegments": Pending(1)}), ["a"])
    followed.follow(probe_on("a", per_pod=per_pod))

    subject = POD_A if per_pod else PROBE
    assert followed.totals.pending() == {subject: {"unreadSegments": Pending(1)}}
