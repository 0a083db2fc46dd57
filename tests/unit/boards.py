"""The committed Grafana boards, read: their panels and queries, with variables filled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.dashboards.__main__ import FOLDER

Board = dict[str, Any]
Values = Mapping[str, str | tuple[str, ...]]
"""The values of variables, by their names. A tuple: those that are chosen of several."""
ALL = ".*"
"""The value that stands for all, in a query."""


@dataclass(frozen=True)
class Variable:
    """A variable of a board, whose values are those of a label in the series of a selector.

    `preset`: the value that the board opens with; empty: the first one.
    """

    name: str
    selector: str
    label: str
    preset: str
    multiple: frozenset[str]

    def chosen(self, found: tuple[str, ...], wanted: str = "") -> str | tuple[str, ...]:
        """The wanted value, or else all of a variable with several, or else one; empty if none."""
        if wanted == ALL:
            return ALL
        if wanted or self.name not in self.multiple:
            ranked = (wanted or self.preset, *(() if wanted else found))
            return next((value for value in ranked if value in found), "")
        return found

    def filled(self, values: Values) -> str:
        """The selector with these values in place of the variables before this one."""
        return _filled(self.selector, values, self.multiple)


@dataclass(frozen=True)
class PanelQuery:
    """One query of a panel."""

    board: str
    panel: str
    letter: str
    expr: str
    multiple: frozenset[str]
    """The variables of the board that may have several values."""

    def __str__(self) -> str:
        return f"{self.board}: {self.panel} ({self.letter})"

    def filled(self, values: Values) -> str:
        """The expression with these values in place of its variables, as Grafana fills them.

        The value of a variable that may have several is a pattern: its characters are escaped.
        """
        return _filled(self.expr, values, self.multiple)


def boards() -> dict[str, Board]:
    """All boards, by the name of their file."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.json"))}


def panels(board: Board) -> list[dict[str, Any]]:
    """The panels of a board, without rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> Iterator[PanelQuery]:
    """The queries of all boards."""
    for name, board in boards().items():
        multiple = _multiple(board)
        for panel in panels(board):
            for target in panel["targets"]:
                yield PanelQuery(name, panel["title"], target["refId"], target["expr"], multiple)


def variables(board: Board) -> Iterator[Variable]:
    """The variables of a board that Prometheus has the values of, in the order of the board."""
    for each in board["templating"]["list"]:
        if each["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", each["query"]["query"])
            assert asked, each
            preset = "" if each["multi"] else (each.get("current") or {}).get("value", "")
            yield Variable(each["name"], asked[1], asked[2], preset, _multiple(board))


def _multiple(board: Board) -> frozenset[str]:
    return frozenset(each["name"] for each in board["templating"]["list"] if each["multi"])


def _filled(text: str, values: Values, multiple: frozenset[str]) -> str:
    def value(found: re.Match[str]) -> str:
        chosen = values[found[1]]
        if isinstance(chosen, str):
            is_pattern = found[1] in multiple and chosen != ALL
            return _escaped(chosen) if is_pattern else chosen
        patterns = "|".join(map(_escaped, chosen))
        return patterns if len(chosen) == 1 else f"({patterns})"

    return re.sub(r"\$(\w+)", value, text)


def _escaped(text: str) -> str:
    return re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", text)


def _read(path: Path) -> Board:
    board: Board = json.loads(path.read_text())
    return board
