"""Lanes count as dicts do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.histogram import POSITIONS
from latencyprobe.domain.lanes import LARGEST_COUNT, Lanes, LaneSum

positions = st.integers(0, POSITIONS - 1)
# Around the bounds of narrow rows, too.
counts = st.one_of(
    st.integers(1, 300), st.sampled_from([2**8 - 1, 2**8, 2**16, 2**32 - 1, 2**32, LARGEST_COUNT])
)
rows = st.dictionaries(positions, counts, max_size=12)


@given(rows)
def test_lanes_hold_the_counts_that_they_are_made_of(row: Mapping[int, int]) -> None:
    lanes = Lanes.of(row)
    assert lanes == row
    assert (lanes.total, len(lanes), bool(lanes)) == (sum(row.values()), len(row), bool(row))
    assert dict(enumerate(lanes.row, lanes.first)) == {
        position: row.get(position, 0)
        for position in range(min(row, default=0), max(row, default=-1) + 1)
    }


@given(rows)
def test_a_narrow_row_has_the_same_counts(row: Mapping[int, int]) -> None:
    lanes = Lanes.of(row)
    code, narrow = lanes.narrow()
    again = Lanes.of_row(lanes.first, code, narrow)
    assert (again, again.total) == (row, sum(row.values()))
    width = {"B": 1, "H": 2, "I": 4, "Q": 8}[code]
    assert len(narrow) == width * len(lanes.row)
    assert code == "B" or max(row.values()).bit_length() > 4 * width


@given(st.lists(rows, max_size=6), st.data())
def test_a_running_sum_is_that_of_the_rows_that_are_left(
    added: list[Mapping[int, int]], data: st.DataObject
) -> None:
    running, left = LaneSum(), list[Mapping[int, int]]()
    for row in added:
        running.add(Lanes.of(row))
        left.append(row)
        if data.draw(st.booleans()):
            running.subtract(Lanes.of(left.pop(data.draw(st.integers(0, len(left) - 1)))))
        whole: Counter[int] = sum(map(Counter, left), Counter())
        value = running.value(whole.total())
        assert value == {at: min(count, LARGEST_COUNT) for at, count in whole.items()}
        assert value.total == sum(value.values())


@given(rows, rows)
def test_two_rows_add_up_position_by_position(
    one: Mapping[int, int], other: Mapping[int, int]
) -> None:
    together = Lanes.of(one) + Lanes.of(other)
    whole = Counter(one) + Counter(other)
    assert together == {at: min(count, LARGEST_COUNT) for at, count in whole.items()}
    assert together.total == sum(together.values())


def test_five_hundred_rows_of_the_largest_counts_stay_in_their_lanes() -> None:
    full = Lanes.of(dict.fromkeys(range(POSITIONS), LARGEST_COUNT))
    running = LaneSum()
    for _ in range(500):
        running.add(full)
    assert running.value(0) == full
    for _ in range(499):
        running.subtract(full)
    assert running.value(full.total) == full
