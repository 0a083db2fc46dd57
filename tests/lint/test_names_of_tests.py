"""A test is named in plain English for the behaviour that it holds us to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.plain_english import replaced_words

ROOT = Path(__file__).parents[2]
# "what is missing" is no behaviour; "a missing package is named" is one.
HEADLESS = re.compile(r"test_(?:how|what|whatever|whether|which|who|whoever|whom|whose)_")
HEADLESS_INSIDE = re.compile(
    r"_(?:of|to|for|with|by|in|from|than|and|or|but|on|at|as|is|are|after|before|into|about)"
    r"_(?:what|whatever|who|whoever|whom|whomever)(?:_|$)"
)


def names_in(source: str) -> Iterator[str]:
    """The names of the tests in a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if (
                name[:5] == "test_"
            ):
                yield name


def breaches(name: str) -> Iterator[str]:
    """One line for each rule that a name breaks."""
    if HEADLESS.match(name):
        yield "it begins with a clause that has no noun"
    if found := HEADLESS_INSIDE.search(name):
        yield f"a clause without its noun: {found[0]!r}"
    yield from replaced_words(name.replace("_", " "))


@pytest.mark.parametrize(
    "name",
    [
        "test_what_is_lost",
        "test_who_waits_is_woken",
        "test_a_failure_is_told",
        "test_a_look",
        "test_an_end_waits_for_what_is_loaded",
        "test_a_page_for_who_asks",
    ],
)
def test_a_breach_in_the_name_of_a_test_is_found(name: str) -> None:
    assert list(breaches(name))


@pytest.mark.parametrize(
    "name",
    [
        "test_a_missing_package_is_named",
        "test_agents_are_looked_up",
        "test_a_client_to_whose_port_no_socket_belongs",
        "test_the_time_in_which_an_agent_starts",
    ],
)
def test_plain_english_passes_as_the_name_of_a_test(name: str) -> None:
    assert not list(breaches(name))


def test_every_test_has_a_name_in_plain_english() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}": complaints
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in names_in(path.read_text())
        if (complaints := list(breaches(name)))
    }

    assert found == {}
