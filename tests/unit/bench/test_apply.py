"""The table of the times from Apply to attached."""

from __future__ import annotations

from bench.apply import AGAIN, BUSY, COLD, IDLE, WARM, _outcome


def test_each_start_is_compared_with_the_target_that_it_has() -> None:
    found = {
        (COLD, IDLE): [4000.0, 5000.0],
        (COLD, BUSY): [2900.0, 3200.0],
        (WARM, IDLE): [90.0, 100.0],
        (AGAIN, BUSY): [1.0, 2.0],
    }
    document = _outcome(found).document
    assert document["times"] == 2
    assert [row["ms"]["median"] for row in document["applies"]] == [4500, 3050, 95, 1.5]
    assert [row["target"] for row in document["applies"]] == [3000, 3000, 100, None]
    assert [row["met"] for row in document["applies"]] == [False, False, True, None]
