"""No name of the product is there for tests alone: what nothing else uses is removed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("latencyprobe", "node_agent", "operator")
USERS = (*PRODUCT, "bench", "devcluster", "tools")
# Methods that a base class of a library calls.
CALLED_BY_BASES = frozenset(
    {"connection_made", "convert", "datagram_received", "fail", "format_commands", "get_command"}
)
# The reasons of each condition: the documents and the CRD are held to them.
VOCABULARY = frozenset({"operator/latencyprobe_operator/api/conditions.py: REASONS"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Uses:
    """The names that modules use: what they import, of which module, and all the others."""

    imported: set[tuple[str, str]] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)

    def add(self, tree: ast.Module) -> None:
        """Add what a module uses."""
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module=str(module)):
                    self.imported.update((module, alias.name) for alias in node.names)
                case ast.Attribute(attr=name):
                    self.attributes.add(name)
                case ast.Constant(value=str(text)):
                    self.strings.update(text.replace(":", ".").split("."))


def unused_in(module: str, tree: ast.Module, uses: Uses) -> Iterator[str]:
    """Yield the functions, classes, constants and methods that no module uses."""
    loaded = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for name in _top_names(tree):
        used = (module, name) in uses.imported or name in loaded | uses.attributes | uses.strings
        if not used and not name.startswith("__"):
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("__"):
                    used = method.name in uses.attributes | CALLED_BY_BASES
                    if not used:
                        yield f"{node.name}.{method.name}"


def _top_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A decorator may register it: a command of click, a handler of kopf.
            if not any(isinstance(each, ast.Call) for each in node.decorator_list) or isinstance(
                node, ast.ClassDef
            ):
                yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _modules(*folders: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield the path, the dotted name and the syntax tree of each module."""
    for folder in folders:
        top = ROOT if (ROOT / folder / "__init__.py").exists() else ROOT / folder
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name:
                parts = path.relative_to(top).with_suffix("").parts
                name = ".".join(part for part in parts if part != "__init__")
                yield str(path.relative_to(ROOT)), name, ast.parse(path.read_text())


def test_no_name_of_the_product_is_used_by_tests_alone() -> None:
    uses = Uses()
    for _, _, tree in _modules(*USERS):
        uses.add(tree)

    unused = [
        f"{path}: {name}"
        for path, module, tree in _modules(*PRODUCT)
        for name in unused_in(module, tree, uses)
    ]

    assert sorted(set(unused) - VOCABULARY) == []


@pytest.mark.parametrize(
    ("source", "user", "found"),
    [
        ("def f(): pass", "", ["f"]),
        ("def f(): pass", "from m import f", []),
        ("def f(): pass", "from other import f", ["f"]),
        ("def f(): pass", "COMMANDS = 'm:f'", []),
        ("LIMIT = 1", "", ["LIMIT"]),
        ("LIMIT = 1\nprint(LIMIT)", "", []),
        ("class C:\n def f(self): pass", "from m import C", ["C.f"]),
        ("class C:\n def f(self): pass", "from m import C\nC().f()", []),
        ("@command()\ndef f(): pass", "", []),
    ],
)
def test_an_unused_name_is_found(source: str, user: str, found: list[str]) -> None:
    uses = Uses()
    for each in (source, user):
        uses.add(ast.parse(each))

    assert list(unused_in("m", ast.parse(source), uses)) == found
