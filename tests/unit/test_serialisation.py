"""Documents from dataclasses: names, absent fields, and the rules of single fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import pytest

from latencyprobe.domain.evidence import of_count
from latencyprobe.domain.serialisation import document_of, written


class Colour(StrEnum):
    RED = "Red"


@dataclass(frozen=True, slots=True)
class Inner:
    max_cpu_percent: float | None = None
    p99_ns: int = 1


@dataclass(frozen=True, slots=True)
class Ruled:
    inner: Inner = field(default=Inner(2.5), metadata=written(inlined=True))
    message: str = field(default="", metadata=written(absent_if_empty=True))
    pid: int | None = field(default=None, metadata=written(null_if_none=True))
    seconds: float = field(default=1.23456, metadata=written(digits=3))


@dataclass(frozen=True, slots=True)
class Values:
    state: Colour
    names: tuple[str, ...]
    inner: Inner
    many: tuple[Inner, ...]
    counters: Mapping[str, int | None]


@pytest.mark.parametrize(
    ("value", "document"),
    [
        (Inner(), {"p99Ns": 1}),
        (Inner(0), {"maxCpuPercent": 0, "p99Ns": 1}),
        (Ruled(), {"maxCpuPercent": 2.5, "p99Ns": 1, "pid": None, "seconds": 1.235}),
        (Ruled(Inner(), "m", 0, 2), {"p99Ns": 1, "message": "m", "pid": 0, "seconds": 2}),
    ],
)
def test_each_field_is_written_by_its_rule(value: Inner | Ruled, document: object) -> None:
    assert document_of(value) == document


def test_a_text_of_a_class_of_its_own_becomes_a_plain_one() -> None:
    line = of_count(3, "3 resets")
    assert type(document_of(Ruled(message=line))["message"]) is str


def test_values_become_what_json_knows() -> None:
    value = Values(Colour.RED, ("a",), Inner(), (Inner(1), Inner()), {"unread_bytes": None})

    document = document_of(value)

    assert document == {
        "state": "Red",
        "names": ["a"],
        "inner": {"p99Ns": 1},
        "many": [{"maxCpuPercent": 1, "p99Ns": 1}, {"p99Ns": 1}],
        "counters": {"unread_bytes": None},
    }
    assert type(document["state"]) is str
    assert json.loads(json.dumps(document)) == document


def test_keys_keep_the_fields_order() -> None:
    assert list(document_of(Ruled(message="m"))) == [
        "maxCpuPercent",
        "p99Ns",
        "message",
        "pid",
        "seconds",
    ]
