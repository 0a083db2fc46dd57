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
ALL = ".*"
"""The value that stands for all, in a query."""


@dataclass(frozen=True)
class PanelQuery:
    """One query of a panel."""

    board: str
    panel: str
    letter: str
    expr: str
    multiple: frozenset[str]
    """The variables of the board that may have several values."""

    def filled(self, values: Mapping[str, str]) -> str:
        """The expression with these values in place of its variables, as Grafana fills them.

        The value of a variable that may have several is a pattern: its characters are escaped.
        """

        def value(found: re.Match[str]) -> str:
            text = values[found[1]]
            if found[1] not in self.multiple or text == ALL:
                return text
            return re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", text)

        return re.sub(r"\$(\w+)", value, self.expr)


def boards() -> dict[str, Board]:
    """All boards, by the name of their file."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.json"))}


def panels(board: Board) -> list[dict[str, Any]]:
    """The panels of a board, without rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> Iterator[PanelQuery]:
    """The queries of all boards."""
    for name, board in boards().items():
        variables = board["templating"]["list"]
        multiple = frozenset(each["name"] for each in variables if each["multi"])
        for panel in panels(board):
            for target in panel["targets"]:
                yield PanelQuery(name, panel["title"], target["refId"], target["expr"], multiple)


def _read(path: Path) -> Board:
    board: Board = json.loads(path.read_text())
    return board
