"""The matrix: what measures each stage on each kernel, or why nothing does.

It is a table in Markdown with the reasons below it, numbered, so that docs/kernels.md can hold it
and be read again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import BY_NAME, Module, counters_of
from tests.kernels.errors import KernelError
from tests.kernels.inside.results import KernelCoverage
from tests.kernels.vm import ROOT

DOCUMENT = ROOT / "docs" / "kernels.md"
PLACE = _BEGIN, _END = (
    "<!-- matrix: `python -m tests.kernels --write` -->\n",
    "<!-- end of matrix -->\n",
)
_SOURCES = {"btf": "BTF", "headers": "headers", "none": "neither"}
_NOTE = re.compile(r"\((\d+)\)$")

# Stage to hooks or reason.
Cells = Mapping[str, str]


class NoMatrixError(KernelError):
    """A text that has no place for the matrix."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} has no lines {_BEGIN.strip()!r} and {_END.strip()!r}")


def matrix(columns: Sequence[KernelCoverage]) -> str:
    """The table of these columns, and the notes below it."""
    notes: list[str] = []
    lines = [_row("stage", [head(column) for column in columns])]
    lines.append(_row("---", ["---"] * len(columns)))
    for name in (*BY_NAME, *_lacking(columns)):
        cells = [_cell(column, name, notes) for column in columns]
        lines.append(_row(f"`{name}`", cells))
    return "\n".join([*lines, "", *(f"{n}. {note}" for n, note in enumerate(notes, 1)), ""])


def head(column: KernelCoverage) -> str:
    """What stands above a column."""
    return f"{_series(column)}, {_SOURCES[column.types]}"


def cells_of(table: str) -> Mapping[str, Cells]:
    """A matrix, read again: head of a column to its cells, with the notes themselves in them."""
    lines = table.splitlines()
    notes = dict(line.split(". ", 1) for line in lines if re.match(r"\d+\. ", line))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    heads = rows[0][1:] if rows else []
    return {
        column: {row[0]: _with_note(row[place], notes) for row in rows[2:]}
        for place, column in enumerate(heads, 1)
    }


def documented(path: Path = DOCUMENT) -> str:
    """The matrix that a document holds. Raises NoMatrixError."""
    return _parts(path)[1]


def write(columns: Sequence[KernelCoverage], path: Path = DOCUMENT) -> None:
    """Put a new matrix into a document. Raises NoMatrixError."""
    before, _, after = _parts(path)
    path.write_text(f"{before}{_BEGIN}\n{matrix(columns)}\n{_END}{after}")


def _parts(path: Path) -> tuple[str, str, str]:
    before, begin, rest = path.read_text().partition(_BEGIN)
    table, end, after = rest.partition(_END)
    if not (begin and end):
        raise NoMatrixError(path)
    return before, table, after


def _series(column: KernelCoverage) -> str:
    """`6.1` of `6.1.0-50-amd64`."""
    return ".".join(column.kernel.split(".")[:2])


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


def _lacking(columns: Sequence[KernelCoverage]) -> list[str]:
    """The counters that are not whole on some kernel; coverage names no others."""
    named = {name for column in columns for name in column.stages}
    return [name for name in counters_of(Module) if name in named]


def _cell(column: KernelCoverage, name: str, notes: list[str]) -> str:
    stage = column.stages.get(name)
    if stage is None:
        return "no" if column.types == "none" else "yes"
    hooks = _hooks(stage.hook)
    if stage.state is CoverageState.ACTIVE:
        return hooks
    reason = stage.reason.replace(column.kernel, _series(column))
    if reason not in notes:
        notes.append(reason)
    note = f"({notes.index(reason) + 1})"
    return f"{hooks} in part {note}" if hooks else f"no {note}"


def _hooks(names: str) -> str:
    """Those of a kind together: `tp_btf` one, another."""
    pairs = [name.split("/", 1) for name in names.split(", ") if name]
    kinds = groupby(sorted(pairs, key=lambda pair: pair[0]), lambda pair: pair[0])
    return "<br>".join(f"`{kind}` {', '.join(name for _, name in of)}" for kind, of in kinds)


def _with_note(cell: str, notes: Mapping[str, str]) -> str:
    return _NOTE.sub(lambda found: f"({notes[found[1]]})", cell)
