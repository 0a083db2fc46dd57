"""The boards as a real Prometheus fills them: their variables have the values of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.live.prometheus import Prometheus
from tests.unit.boards import PanelQuery, Values, boards, queries, variables

# Grafana's own. It holds all traffic of a test.
_RANGES = {"__rate_interval": "10m", "__range": "10m"}


@dataclass
class FilledBoards:
    """The figures that panels have shown. `wanted`: values of variables in place of the first."""

    prometheus: Prometheus
    wanted: Mapping[str, str]
    shown: dict[PanelQuery, float] = field(default_factory=dict)
    """The largest figure of each query that has one."""

    def values(self, board: str) -> Values:
        """The values of a board's variables, each of those that Prometheus has for it now."""
        values: dict[str, str | tuple[str, ...]] = {**_RANGES}
        for each in variables(boards()[board]):
            found = self.prometheus.label_values(each.label, each.filled(values))
            values[each.name] = each.chosen(tuple(found), self.wanted.get(each.name, ""))
        return values

    def empty(self) -> list[PanelQuery]:
        """Ask for all that has not been shown yet; return what still has no figure."""
        values = {name: self.values(name) for name in boards()}
        missing = [query for query in queries() if query not in self.shown]
        for query in missing:
            found = self.prometheus.figures(query.filled(values[query.board]))
            figures = [value for _, value in found if not math.isnan(value)]
            if figures:
                self.shown[query] = max(figures)
        return [query for query in missing if query not in self.shown]

    def lines(self) -> list[str]:
        """Each query in the order of the boards, with its figure."""
        return [f"{query}: {self.shown.get(query, 'no figure')}" for query in queries()]
