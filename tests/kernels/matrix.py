"""The matrix: what measures each stage on each kernel, or why nothing does.

It is text in Markdown that docs/kernels.md holds, and that can be read again:

- a table of the kinds of hook, once a kernel;
- a table of the hooks of each stage on the newest kernel that measures it in full;
- a table of the exceptions, and the reasons below it, numbered.

A *cell* is what the three tables together say of one stage on one kernel.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
_KINDS_HEADING = ("kernel", "tracepoints", "a function's entry", "a function's end")
_HOOKS_HEADING = ("stage", "hooks on the newest kernel")
_EXCEPTIONS_HEADING = ("stage", "kernel", "what is different")
# The kinds that stand in one column of the first table, by its place; `()` and `() end` tell a
# function from a tracepoint in the others.
_PLACES = (
    frozenset({"tp_btf", "raw_tp", "tracepoint"}),
    frozenset({"fentry", "kprobe"}),
    frozenset({"fexit", "kretprobe"}),
)
_SUFFIXES = ("", "()", "() end")
_NOTHING = "-"
_EVERY_STAGE = "every stage"
_NOTE = re.compile(r"\((\d+)\)$")

# Stage to hooks or reason.
Cells = Mapping[str, str]
Hook = tuple[str, str]
"""(kind, name)"""


class NoMatrixError(KernelError):
    """A text that has no place for the matrix."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} has no lines {_BEGIN.strip()!r} and {_END.strip()!r}")


@dataclass(frozen=True, slots=True)
class _Cell:
    """One stage on one kernel: its hooks without their kinds, and what else is to be said."""

    hooks: frozenset[str]
    remark: str = ""


def matrix(columns: Sequence[KernelCoverage]) -> str:
    """The tables of these columns, and the notes below them."""
    notes: list[str] = []
    kinds = {head(column): _kinds(column) for column in columns}
    cells = {
        name: {head(column): _cell(column, name, kinds[head(column)], notes) for column in columns}
        for name in (*BY_NAME, *_lacking(columns))
    }
    usual = {name: _usual(row.values()) for name, row in cells.items()}
    return "\n".join(
        [
            *_table(_KINDS_HEADING, ([name, *map(_code, kind)] for name, kind in kinds.items())),
            "",
            *_table(
                _HOOKS_HEADING,
                ([f"`{name}`", _usual_text(cell)] for name, cell in usual.items()),
            ),
            "",
            *_table(_EXCEPTIONS_HEADING, _exceptions(cells, usual)),
            "",
            *(f"{number}. {note}" for number, note in enumerate(notes, 1)),
            "",
        ]
    )


def head(column: KernelCoverage) -> str:
    """How a column's kernel is called."""
    return f"{_series(column)}, {_SOURCES[column.types]}"


def cells_of(text: str) -> Mapping[str, Cells]:
    """A matrix, read again: each kernel to its cells, in full and with the notes themselves."""
    tables = list(_tables(text))
    if not tables:
        return {}
    kinds, hooks, exceptions = tables
    notes = dict(line.split(". ", 1) for line in text.splitlines() if re.match(r"\d+\. ", line))
    usual = {stage: _read_usual(cell) for stage, cell in hooks}
    cells = {kernel: dict(usual) for kernel, *_ in kinds}
    for stages, kernels, change in exceptions:
        for kernel in kernels.split("; "):
            for stage in _stages(stages, usual):
                cells[kernel][stage] = _read_change(usual[stage], change)
    return {
        kernel: {
            stage: _with_note(_full(cell, kinds_of_kernel), notes)
            for stage, cell in cells[kernel].items()
        }
        for kernel, *kinds_of_kernel in kinds
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


def _lacking(columns: Sequence[KernelCoverage]) -> list[str]:
    """The counters that are not whole on some kernel; coverage names no others."""
    named = {name for column in columns for name in column.stages}
    return [name for name in counters_of(Module) if name in named]


# ------------------------------------------------------------------------------- writing


def _kinds(column: KernelCoverage) -> tuple[str, ...]:
    """The kind of hook in each of _PLACES that this kernel uses most; empty for none."""
    used = Counter(kind for stage in column.stages.values() for kind, _ in _hooks(stage.hook))
    return tuple(
        max(sorted(place & used.keys()), key=lambda kind: used[kind], default="")
        for place in _PLACES
    )


def _cell(column: KernelCoverage, name: str, kinds: Sequence[str], notes: list[str]) -> _Cell:
    stage = column.stages.get(name)
    if stage is None:
        return _Cell(frozenset(), "no" if column.types == "none" else "yes")
    hooks = frozenset(_short(hook, kinds) for hook in _hooks(stage.hook))
    if stage.state is CoverageState.ACTIVE:
        return _Cell(hooks)
    reason = stage.reason.replace(column.kernel, _series(column))
    if reason not in notes:
        notes.append(reason)
    note = f"({notes.index(reason) + 1})"
    return _Cell(hooks, f"in part {note}" if hooks else f"no {note}")


def _hooks(names: str) -> list[Hook]:
    """(kind, name) of each of coverage's hooks."""
    pairs = (name.split("/", 1) for name in names.split(", ") if name)
    return [(kind, name) for kind, name in pairs]


def _short(hook: Hook, kinds: Sequence[str]) -> str:
    """A hook as the tables name it: with its kind only where the kernel has another as a rule."""
    kind, name = hook
    if kind not in kinds:
        return f"{kind}/{name}"
    return name + _SUFFIXES[kinds.index(kind)]


def _usual(cells: Iterable[_Cell]) -> _Cell:
    """The last cell that is measured in full, else in part; kernels stand oldest first."""
    newest_first = [cell for cell in cells if not cell.remark.startswith("no")][::-1]
    in_full = (cell for cell in newest_first if cell.remark in ("", "yes"))
    return next(in_full, newest_first[0] if newest_first else _Cell(frozenset(), "no"))


def _usual_text(cell: _Cell) -> str:
    return ", ".join([*map(_code, sorted(cell.hooks)), *([cell.remark] if cell.remark else [])])


def _exceptions(
    cells: Mapping[str, Mapping[str, _Cell]], usual: Mapping[str, _Cell]
) -> Iterator[list[str]]:
    """Rows of the third table: what is said of several stages or kernels is said once."""
    changes: dict[str, dict[str, list[str]]] = {}
    for stage, row in cells.items():
        kernels: dict[str, list[str]] = {}
        for kernel, cell in row.items():
            if cell != usual[stage]:
                kernels.setdefault(_change(usual[stage], cell), []).append(kernel)
        for change, named in kernels.items():
            changes.setdefault(change, {}).setdefault("; ".join(named), []).append(stage)
    for change, places in changes.items():
        for kernels_text, stages in places.items():
            yield [_stages_text(stages), kernels_text, change]


def _stages_text(stages: Sequence[str]) -> str:
    if set(BY_NAME) <= set(stages):
        return ", ".join([_EVERY_STAGE, *(f"`{name}`" for name in stages if name not in BY_NAME)])
    return ", ".join(f"`{name}`" for name in stages)


def _change(usual: _Cell, cell: _Cell) -> str:
    """How a cell differs: `with` and `without` hooks, and the remark."""
    if not cell.hooks:
        return cell.remark
    parts = [
        f"{word} {', '.join(map(_code, sorted(hooks)))}"
        for word, hooks in (
            ("with", cell.hooks - usual.hooks),
            ("without", usual.hooks - cell.hooks),
        )
        if hooks
    ]
    return "; ".join([*parts, *([cell.remark] if cell.remark else [])]) or "measured in full"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(heading), _row(["---"] * len(heading)), *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(name: str) -> str:
    return f"`{name}`" if name else _NOTHING


# ------------------------------------------------------------------------------- reading


def _tables(text: str) -> Iterator[list[list[str]]]:
    """The rows of each table, without its heading."""
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if is_table:
            yield [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines][2:]


def _stages(text: str, known: Iterable[str]) -> Iterator[str]:
    for stage in text.split(", "):
        if stage == _EVERY_STAGE:
            yield from (name for name in known if name.strip("`") in BY_NAME)
        else:
            yield stage


def _read_usual(text: str) -> _Cell:
    names = [name for name in text.split(", ") if name]
    remark = "" if not names or names[-1].startswith("`") else names.pop()
    return _Cell(frozenset(name.strip("`") for name in names), remark)


def _read_change(usual: _Cell, change: str) -> _Cell:
    hooks, remark = usual.hooks, ""
    for part in change.split("; "):
        word, _, names = part.partition(" ")
        named = frozenset(name.strip("`") for name in names.split(", "))
        match word:
            case "with":
                hooks |= named
            case "without":
                hooks -= named
            case "no" | "yes":
                hooks, remark = frozenset(), part
            case "in":
                remark = part
    return _Cell(hooks, remark)


def _full(cell: _Cell, kinds: Sequence[str]) -> str:
    """A cell as a sentence of its own: hooks of a kind together, then the remark."""
    pairs = sorted(_long(name, kinds) for name in cell.hooks)
    of_a_kind = groupby(pairs, lambda pair: pair[0])
    hooks = "<br>".join(f"`{kind}` {', '.join(name for _, name in of)}" for kind, of in of_a_kind)
    return " ".join(filter(None, (hooks, cell.remark)))


def _long(name: str, kinds: Sequence[str]) -> Hook:
    if "/" in name:
        kind, _, rest = name.partition("/")
        return kind, rest
    for place in (2, 1):
        if name.endswith(_SUFFIXES[place]):
            return kinds[place].strip("`"), name.removesuffix(_SUFFIXES[place])
    return kinds[0].strip("`"), name


def _with_note(cell: str, notes: Mapping[str, str]) -> str:
    return _NOTE.sub(lambda found: f"({notes[found[1]]})", cell)
