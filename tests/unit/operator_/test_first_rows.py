"""Rows of pods are news by the first one: by another verdict, or by far more time."""

from __future__ import annotations

from typing import Any

import pytest

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_operator.api.spec import ProbeKey
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probes.document import worst_of
from latencyprobe_operator.probes.first_rows import rows_of, rows_of_facts
from latencyprobe_operator.probes.status import build
from latencyprobe_operator.probes.writer import StatusWriter
from tests.unit.operator_.status_facts import NOW, SLOW_READER, facts, listed
from tools.fakes.agent import measurement

KEY = ProbeKey(uid="uid-checkout", namespace="shop", name="checkout")
MS = 10**6
QUIET = measurement(*[MS] * 200)


def rows(**pods: Measurement) -> dict[str, Any]:
    """The status of these pods, in their order."""
    return build(facts(pods=pods_of(**pods)), now=NOW)


def pods_of(**pods: Measurement) -> list[Any]:
    """The facts of these pods, in their order."""
    return [listed(name, "node-a", ("c",), measured) for name, measured in pods.items()]


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        ({"a": QUIET}, {"a": QUIET}, False),
        ({"a": QUIET, "b": QUIET}, {"b": QUIET, "a": QUIET}, False),
        ({"a": QUIET}, {"b": measurement(*[int(1.7 * MS)] * 200)}, False),
        ({"a": QUIET}, {"b": measurement(*[3 * MS] * 200)}, True),
        ({"a": QUIET}, {"a": measurement(*[3 * MS] * 200)}, True),
        ({"a": measurement(*[3 * MS] * 200)}, {"a": QUIET}, False),
        ({"a": QUIET}, {"a": SLOW_READER}, True),
        ({"a": SLOW_READER}, {"a": QUIET}, True),
        # Another pod has the same verdict.
        ({"a": SLOW_READER, "b": QUIET}, {"b": SLOW_READER, "a": QUIET}, True),
        ({"a": SLOW_READER, "b": QUIET}, {"b": SLOW_READER, "c": QUIET}, True),
        ({"a": SLOW_READER}, {"b": SLOW_READER, "a": SLOW_READER}, False),
        ({"a": SLOW_READER}, {"b": SLOW_READER, "c": SLOW_READER}, False),
        ({}, {"a": QUIET}, True),
        ({"a": QUIET}, {}, True),
        ({}, {}, False),
        ({"a": NOTHING}, {"b": NOTHING}, False),
    ],
)
def test_rows_are_news_by_their_first_one(
    before: dict[str, Measurement], after: dict[str, Measurement], *, news: bool
) -> None:
    written = worst_of(rows(**before))

    assert rows_of(rows(**after)).are_news(written) is news
    assert rows_of_facts(pods_of(**after)).are_news(written) is news


def test_facts_have_the_first_rows_of_the_status_that_is_built_from_them() -> None:
    pods = {"a": SLOW_READER, "b": QUIET, "c": NOTHING}

    assert rows_of_facts(pods_of(**pods)) == rows_of(rows(**pods))


def test_an_ended_pod_and_the_next_one_of_its_name_are_no_news_again() -> None:
    of_one_name = [listed("db-0", "node-a", ("c",), measured) for measured in (SLOW_READER, QUIET)]
    document = build(facts(pods=of_one_name), now=NOW)

    assert rows_of_facts(of_one_name) == rows_of(document)
    assert not rows_of(document).are_news(worst_of(document))
    assert not rows_of_facts(of_one_name).are_news(worst_of(document))


CORRUPT = [
    {"pods": [{}]},
    {"pods": [{"node": "n", "name": "a", "verdict": {"bottleneck": "None"}}]},
    {
        "pods": [
            {
                "node": "n",
                "name": "a",
                "verdict": {"bottleneck": "None"},
                "stages": [{"name": "rx.total", "p99Ns": "long"}],
            }
        ]
    },
    {"pods": "none"},
]


@pytest.mark.parametrize("corrupt", CORRUPT)
def test_a_corrupt_row_of_the_written_status_is_no_worst_pod(corrupt: dict[str, Any]) -> None:
    assert worst_of(corrupt) is None


def sound_row(name: str) -> dict[str, Any]:
    """The row of a pod with a verdict."""
    return {"node": "n", "name": name, "verdict": {"bottleneck": "None"}, "stages": []}


@pytest.mark.parametrize(
    "corrupt", [*CORRUPT, {"pods": [{"name": "a"}]}, {"pods": [sound_row("a"), {"name": "b"}]}]
)
async def test_a_corrupt_row_of_the_written_status_holds_up_no_other_part(
    corrupt: dict[str, Any],
) -> None:
    async def patch(*_: object) -> dict[str, Any]:
        raise AssertionError("only decided")

    written = {"phase": "Completed", "omittedPods": 0, **corrupt}
    body = {"metadata": {"uid": KEY.uid}, "status": written}
    writer = StatusWriter(KEY, body, patch_status=patch, metrics=OperatorMetrics())
    document = {**written, "omittedPods": 1}

    assert writer.worth_writing(document) == document
