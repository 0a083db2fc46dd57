"""Names of classes: one name, one meaning, in the command, the agent and the operator."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = (
    "latencyprobe",
    "node_agent/latencyprobe_agent",
    "operator/latencyprobe_operator",
)
GENERATED = ROOT / "latencyprobe" / "protocol" / "v1"


def modules() -> Iterator[Path]:
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.is_relative_to(GENERATED):
                yield path


def types_of(tree: ast.Module) -> Iterator[str]:
    """Top-level classes and type aliases."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                yield name
            # Not calls: a TypeVar has its module's meaning only.
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() | ast.BinOp()):
                if not name.isupper() and name.lstrip("_")[:1].isupper():
                    yield name
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias")):
                yield name
            case _:
                pass


def test_no_two_types_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in modules():
        for name in types_of(ast.parse(path.read_text(encoding="utf-8"))):
            homes.setdefault(name, []).append(str(path.relative_to(ROOT)))

    assert len(homes) > 100
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_aliases_count_and_constants_do_not() -> None:
    source = (
        "class A: ...\nAn = int | None\nThe = dict[str, int]\nOne: TypeAlias = int\nMASK = 1 | 2\n"
    )
    assert list(types_of(ast.parse(source))) == ["A", "An", "The", "One"]
