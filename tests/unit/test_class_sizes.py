"""A class of the product or its tools is small, or its docstring says why it is large."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("latencyprobe", "node_agent", "operator", "bench", "devcluster", "tools")
MOST_LINES, MOST_ATTRIBUTES = 200, 12
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


def is_large(node: ast.ClassDef) -> bool:
    """Return True if a class exceeds a limit."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    return lines > MOST_LINES or len(attributes(node)) > MOST_ATTRIBUTES


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


@pytest.mark.parametrize(
    ("body", "large"),
    [
        ("x: int", False),
        ("\n ".join(f"x{number}: int" for number in range(13)), True),
        ("def f(self):\n  " + "; ".join(f"self.x{number} = 1" for number in range(13)), True),
        ("x = 1\n" + " \n" * 200 + " y = 1", True),
    ],
)
def test_large_classes_are_found(body: str, *, large: bool) -> None:
    (node,) = ast.parse(f"class C:\n {body}").body
    assert isinstance(node, ast.ClassDef)
    assert is_large(node) is large
