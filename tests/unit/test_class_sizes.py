"""A class of the product or its tools is small, or its docstring says why it is large.

A reason is good up to a second limit, which no class exceeds. No two classes share a name.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("latencyprobe", "node_agent", "operator")
TOOLING = ("bench", "devcluster", "tools")
FOLDERS = (*PRODUCT, *TOOLING)
MOST_LINES, MOST_ATTRIBUTES = 200, 12
MOST_LINES_WITH_REASON, MOST_ATTRIBUTES_WITH_REASON = 350, 20
REASON = re.compile(r"\bLarge(?:, because|:) \w+")


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the classes with their places."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name:
                for node in ast.parse(path.read_text()).body:
                    if isinstance(node, ast.ClassDef):
                        yield f"{path.relative_to(ROOT)}:{node.name}", node


def attributes(node: ast.ClassDef) -> set[str]:
    """Return the fields of a class, and what its methods set of `self`."""
    fields = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    stored = {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and ast.unparse(each.value) == "self"
    }
    return fields | stored


def exceeds(node: ast.ClassDef, lines: int, count: int) -> bool:
    """Return True if a class has more lines, or more attributes."""
    own_lines = (node.end_lineno or node.lineno) - node.lineno + 1
    return own_lines > lines or len(attributes(node)) > count


def is_large(node: ast.ClassDef) -> bool:
    """Return True if a class exceeds the limits for one without a reason."""
    return exceeds(node, MOST_LINES, MOST_ATTRIBUTES)


def is_too_large(node: ast.ClassDef) -> bool:
    """Return True if a class exceeds the limits for any class."""
    return exceeds(node, MOST_LINES_WITH_REASON, MOST_ATTRIBUTES_WITH_REASON)


def shared_names(places: Iterable[str]) -> list[str]:
    """Return the places of classes that have the name of another one."""
    known = sorted(places)
    count = Counter(place.rpartition(":")[2] for place in known)
    return [place for place in known if count[place.rpartition(":")[2]] > 1]


def _joined(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def test_a_large_class_says_why() -> None:
    found = dict(classes())

    assert len(found) > 100
    assert {place.partition("/")[0] for place in found} == set(FOLDERS)
    silent = [
        place
        for place, node in found.items()
        if is_large(node) and not REASON.search(_joined(ast.get_docstring(node)))
    ]
    assert not silent


def test_no_reason_is_good_for_a_class_of_any_size() -> None:
    assert [place for place, node in classes() if is_too_large(node)] == []


@pytest.mark.parametrize(
    "folders", [PRODUCT, *((each,) for each in TOOLING)], ids=["product", *TOOLING]
)
def test_no_two_classes_share_a_name(folders: tuple[str, ...]) -> None:
    places = [place for place, _ in classes() if place.partition("/")[0] in folders]

    assert len(places) > 10
    assert shared_names(places) == []


def test_classes_of_one_name_are_found() -> None:
    places = ["a/one.py:Row", "a/two.py:Row", "a/two.py:Rows"]

    assert shared_names(places) == places[:2]


def class_of(body: str) -> ast.ClassDef:
    """Return the class with this body."""
    (node,) = ast.parse(f"class C:\n {body}").body
    assert isinstance(node, ast.ClassDef)
    return node


def fields(number: int) -> str:
    """Return the body of a class with so many fields."""
    return "\n ".join(f"x{each}: int" for each in range(number))


def set_in_a_method(number: int) -> str:
    """Return the body of a class whose method sets so many attributes."""
    return "def f(self):\n  " + "; ".join(f"self.x{each} = 1" for each in range(number))


def of_lines(number: int) -> str:
    """Return the body of a class that has so many lines with its own."""
    return "x = 1\n" + " \n" * (number - 3) + " y = 1"


@pytest.mark.parametrize(
    ("body", "large", "too_large"),
    [
        ("x: int", False, False),
        (fields(12), False, False),
        (fields(13), True, False),
        (fields(20), True, False),
        (fields(21), True, True),
        (set_in_a_method(13), True, False),
        (set_in_a_method(20), True, False),
        (set_in_a_method(21), True, True),
        (of_lines(200), False, False),
        (of_lines(201), True, False),
        (of_lines(350), True, False),
        (of_lines(351), True, True),
        (f'"""Large, because it is."""\n {fields(21)}', True, True),
    ],
)
def test_large_classes_are_found(body: str, *, large: bool, too_large: bool) -> None:
    node = class_of(body)
    assert is_large(node) is large
    assert is_too_large(node) is too_large
