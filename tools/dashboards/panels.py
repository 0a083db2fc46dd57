"""Panels in one form, and a board that takes them row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

TAG = "latencyprobe"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID_WIDTH = 24
_HEIGHT, _STAT_HEIGHT = 8, 4


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression. `legend`: the name of a series, with its labels in {{ }}.

    `exemplars`: show those of its histograms as points.
    """

    expr: str
    legend: str = ""
    exemplars: bool = False


Panel = stat.Panel | timeseries.Panel | table.Panel | heatmap.Panel


class Board:
    """A dashboard in the making: rows of panels of one width."""

    def __init__(self, name: str, title: str, description: str) -> None:
        self.name = name
        self._number = 0
        others = (
            dashboard.DashboardLink("Boards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
        )
        self._builder = (
            dashboard.Dashboard(f"latencyprobe / {title}")
            .uid(f"latencyprobe-{name}")
            .description(description)
            .tags([TAG])
            .time("now-1h", "now")
            .refresh("30s")
            .timezone("browser")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .link(others)
            .with_variable(
                dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
            )
        )

    def variable(self, variable: dashboard.QueryVariable) -> None:
        """Add a variable."""
        self._builder.with_variable(variable)

    def row(self, title: str, *panels: Panel) -> None:
        """Add a row with these panels, side by side."""
        self._builder.with_row(dashboard.Row(title).id(self._next()))
        for panel in panels:
            self._builder.with_panel(panel.id(self._next()).span(GRID_WIDTH // len(panels)))

    def build(self) -> models.Dashboard:
        """Return the dashboard."""
        return self._builder.build()

    def _next(self) -> int:
        self._number += 1
        return self._number


def variable(
    name: str, label: str, values: str, *, default: str = "", multi: bool = False
) -> dashboard.QueryVariable:
    """Return a variable whose values are a query's. `multi`: several may be chosen, first all."""
    made = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": values, "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    if multi:
        # Not the list of all values: it lacks the series without that label.
        chosen = models.VariableOption(selected=True, text=["All"], value=["$__all"])
        return made.multi(True).include_all(True).all_value(".*").current(chosen)
    if default:
        made.current(models.VariableOption(selected=True, text=default, value=default))
    return made


def figure(title: str, description: str, query: Query, *, unit: str = "short") -> Panel:
    """Return a panel with the newest value; with a legend, its name is shown in place of it."""
    newest = common.ReduceDataOptions().calcs(["lastNotNull"])
    mode = common_models.BigValueTextMode
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(_STAT_HEIGHT)
        .unit(unit)
        .reduce_options(newest)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .color_mode(common_models.BigValueColorMode.NONE)
        .text_mode(mode.NAME if query.legend else mode.AUTO)
        .with_target(_target(query, 0).instant())
    )


def graph(
    title: str, description: str, *queries: Query, unit: str = "short", stacked: bool = False
) -> Panel:
    """Return a panel with series over time. `stacked`: as areas that add up."""
    legend = (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    tooltip = (
        common.VizTooltipOptions()
        .mode(common_models.TooltipDisplayMode.MULTI)
        .sort(common_models.SortOrder.DESCENDING)
    )
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(_HEIGHT)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(60 if stacked else 0)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(tooltip)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number).range())
    return panel


def rows(
    title: str,
    description: str,
    query: Query,
    *,
    columns: Sequence[str],
    value: str = "",
    unit: str = "short",
    link: str = "",
) -> Panel:
    """Return a table of the newest values.

    `columns`: the labels that are shown. `value`: the title of the value's column; empty: it is
    left out. `link`: the address that the first column leads to.
    """
    order = [*columns, "Value"]
    excluded = {"Time": True, "Value": not value}
    arranged = models.DataTransformerConfig(
        id_val="organize",
        options={
            "excludeByName": excluded,
            "indexByName": {name: place for place, name in enumerate(order)},
            "renameByName": {"Value": value} if value else {},
        },
    )
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(_HEIGHT)
        .with_transformation(arranged)
        .with_target(_target(query, 0).instant().format(prometheus_models.PromQueryFormat.TABLE))
    )
    if value:
        panel.sort_by([common.TableSortByFieldState().display_name(value).desc(True)])
        panel.override_by_name(value, [models.DynamicConfigValue(id_val="unit", value=unit)])
    if link:
        target = [{"title": "Open the probe", "url": link}]
        panel.override_by_name(columns[0], [models.DynamicConfigValue("links", target)])
    return panel


def distribution(title: str, description: str, query: Query, *, repeat: str) -> Panel:
    """Return a heatmap of a native histogram, once for each value of the variable `repeat`."""
    colours = (
        heatmap.HeatmapColorOptions()
        .mode(heatmap_models.HeatmapColorMode.SCHEME)
        .scheme("Turbo")
        .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
        .exponent(0.5)
        .steps(64)
    )
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(_HEIGHT)
        .repeat(repeat)
        .repeat_direction("h")
        # The buckets are those of the query: exponential already.
        .calculate(False)
        .color(colours)
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .show_tooltip()
        .show_y_histogram()
        # As time series: Grafana before 10.3 takes the format `heatmap` for classic buckets alone.
        .with_target(_target(query, 0).range())
    )


def _target(query: Query, number: int) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + number)).datasource(SOURCE)
    made.format(prometheus_models.PromQueryFormat.TIME_SERIES)
    if query.exemplars:
        made.exemplar(True)
    return made.legend_format(query.legend) if query.legend else made
