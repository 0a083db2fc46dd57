"""The table of what a new leader knows, in docs/architecture.md, has the code's own constants."""

from __future__ import annotations

import re
from pathlib import Path

from latencyprobe_operator import controller, election
from latencyprobe_operator.agents import session
from latencyprobe_operator.kube import informer
from latencyprobe_operator.leadership import LeaseTiming
from latencyprobe_operator.probes import gathering, schedule

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"
TIMING = LeaseTiming()
CONSTANTS: dict[str, float] = {
    "LeaseTiming.duration_s": TIMING.duration_s,
    "LeaseTiming.retry_s": TIMING.retry_s,
    "_RELEASE_S": election._RELEASE_S,
    "_WARM_UP_S": controller._WARM_UP_S,
    "_LASTING_REFUSAL_S": informer._LASTING_REFUSAL_S,
    "CONNECT_S": session.CONNECT_S,
    "APPLY_S": session.APPLY_S,
    "_GRACE_S": schedule._GRACE_S,
    "_LONGEST_GRACE_S": schedule._LONGEST_GRACE_S,
    "_LONGEST_FETCH_S": gathering._LONGEST_FETCH_S,
}


def table() -> list[str]:
    """The rows of the table, as they are written."""
    section = PAGE.read_text().partition("## Which operator leads")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return rows[1:]


def test_each_time_is_that_of_the_constant_beside_it() -> None:
    named = {row: re.findall(r"`((?:LeaseTiming\.)?\w+_[sS])`", row) for row in table()}

    assert {name for names in named.values() for name in names} == set(CONSTANTS)
    for row, names in named.items():
        for name in names:
            assert f"{CONSTANTS[name]:g} s" in row, name


def test_the_longest_failover_is_the_duration_of_the_lease_and_a_reading() -> None:
    (killed, *_) = table()
    assert f"| {TIMING.duration_s + TIMING.retry_s:g} s after the last renewal |" in killed
    # DESIGN: failover under 20 s
    assert TIMING.duration_s + TIMING.retry_s < 20


def test_the_files_of_the_constants_have_them() -> None:
    operator = PAGE.parents[1] / "operator" / "latencyprobe_operator"
    for row in table():
        for constants, path in re.findall(r"((?:`[\w.]+_[sS]`[^`(]*)+)\(`([\w/]+\.py)`\)", row):
            text = (operator / path).read_text()
            for name in re.findall(r"`(?:LeaseTiming\.)?(\w+_[sS])`", constants):
                assert re.search(rf"^ *{name}\b.* = ", text, re.MULTILINE), (name, path)
