"""The matrix: what measures each stage on each kernel, or why nothing does."""

from __future__ import annotations

from collections.abc import Sequence

from latencyprobe.coverage import CoverageState, StageCoverage
from latencyprobe.stages import STAGES
from tests.kernels.inside.results import KernelCoverage


def matrix(columns: Sequence[KernelCoverage]) -> str:
    """As a table in Markdown, with the reasons below it, numbered."""
    notes: list[str] = []
    heads = [f"{column.kernel}, {_SOURCES[column.types]}" for column in columns]
    lines = [_row("stage", heads), _row("---", ["---"] * len(columns))]
    for stage in STAGES:
        cells = [_cell(column.stages.get(stage.name), notes) for column in columns]
        lines.append(_row(f"`{stage.name}`", cells))
    return "\n".join([*lines, "", *(f"{n}. {note}" for n, note in enumerate(notes, 1))])


_SOURCES = {"btf": "BTF", "headers": "headers alone", "none": "neither"}


def _row(head: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([head, *cells])} |"


def _cell(stage: StageCoverage | None, notes: list[str]) -> str:
    if stage is None:
        return "?"
    hooks = "<br>".join(f"`{hook}`" for hook in stage.hook.split(", ") if hook)
    if stage.state is CoverageState.ACTIVE:
        return hooks
    if stage.reason not in notes:
        notes.append(stage.reason)
    note = f"({notes.index(stage.reason) + 1})"
    return f"{hooks} in part {note}" if hooks else f"— {note}"
