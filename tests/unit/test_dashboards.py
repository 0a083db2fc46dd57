"""The Grafana boards: equal to their code, complete, and of metrics that are exported."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.unit.boards import (
    ALL,
    Board,
    PanelQuery,
    Variable,
    boards,
    panels,
    queries,
    variables,
)
from tests.unit.exported import exported_metrics
from tools.dashboards.__main__ import FOLDER, rendered
from tools.helm.chart import ROOT

BOARDS = boards()
QUERIES = list(queries())
# Grafana's own; the others are variables of the board.
OF_GRAFANA = {"__rate_interval", "__range"}
PAGE = ROOT / "docs" / "dashboards.md"


def used_variables(text: str) -> set[str]:
    return set(re.findall(r"\$(\w+)", text))


def test_the_committed_boards_are_those_of_the_code() -> None:
    committed = {path: path.read_text() for path in FOLDER.glob("*")}

    assert committed == dict(rendered()), "run `make dashboards`"
    assert set(BOARDS) == {"fleet", "probe", "agents"}


@pytest.mark.parametrize("name", BOARDS)
def test_metrics_of_a_board_are_exported(name: str, tmp_path: Path) -> None:
    texts = [query.expr for query in QUERIES if query.board == name]
    texts += [
        variable["query"]["query"]
        for variable in BOARDS[name]["templating"]["list"]
        if variable["type"] == "query"
    ]
    used = set().union(*(re.findall(r"\blatencyprobe_\w+", text) for text in texts))

    assert used
    assert used <= exported_metrics(tmp_path)


def test_a_query_is_one_that_prometheus_can_parse(tmp_path: Path) -> None:
    values = {"__rate_interval": "1m", "__range": "1h"}
    for board in BOARDS.values():
        values |= {variable["name"]: "x" for variable in board["templating"]["list"]}
    records = [
        {"record": f"query_{number}", "expr": query.filled(values)}
        for number, query in enumerate(QUERIES)
    ]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "boards", "rules": records}]}))

    checked = subprocess.run(
        ["promtool", "check", "rules", rules], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(QUERIES)} rules found" in checked.stdout


@pytest.mark.parametrize("name", BOARDS)
def test_a_query_uses_variables_that_its_board_has(name: str) -> None:
    own = {variable["name"] for variable in BOARDS[name]["templating"]["list"]}
    used = set().union(*(used_variables(each.expr) for each in QUERIES if each.board == name))

    assert own - {"datasource"} <= used <= own | OF_GRAFANA


def test_a_variable_with_several_values_is_matched_as_a_pattern() -> None:
    for query in QUERIES:
        matched = set(re.findall(r'(=~?)"\$(\w+)"', query.expr))
        for operator, variable in matched:
            assert (operator == "=~") is (variable in query.multiple), query


def test_the_value_of_a_variable_with_several_values_is_escaped() -> None:
    query = PanelQuery("b", "p", "A", 'm{a=~"$many",b="$one"}[$__range]', frozenset({"many"}))

    filled = query.filled({"many": "rx.total", "one": "rx.total", "__range": "5m"})

    assert filled == r'm{a=~"rx\\.total",b="rx.total"}[5m]'


def test_several_chosen_values_are_one_pattern() -> None:
    query = PanelQuery("b", "p", "A", 'm{a=~"$many"}', frozenset({"many"}))

    assert query.filled({"many": ("rx.irq", "tx")}) == r'm{a=~"(rx\\.irq|tx)"}'
    assert query.filled({"many": ("rx.irq",)}) == r'm{a=~"rx\\.irq"}'


def test_a_variable_takes_values_that_there_are() -> None:
    several = Variable("node", "m", "node", "", frozenset({"node"}))
    single = Variable("stage", "m", "stage", "tx", frozenset({"node"}))

    assert several.chosen(("a", "b")) == ("a", "b")
    assert several.chosen(("a", "b"), ALL) == ALL
    assert several.chosen(("a", "b"), "b") == "b"
    assert single.chosen(("rx", "tx")) == "tx"
    assert single.chosen(("rx", "irq")) == "rx"
    assert single.chosen(("rx", "irq"), "tx") == single.chosen(()) == ""


def test_the_variables_of_the_boards_are_read_in_their_order() -> None:
    names = {name: [each.name for each in variables(board)] for name, board in BOARDS.items()}

    assert names == {
        "agents": ["node"],
        "fleet": ["namespace", "stage"],
        "probe": ["namespace", "probe", "node", "pod", "stage"],
    }


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_board_is_one_that_a_person_understands(board: Board) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(board):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


@pytest.mark.parametrize("name", BOARDS)
def test_the_docs_have_each_panel_of_a_board(name: str) -> None:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (section,) = (each for each in sections if each.partition("\n")[0].lower() == name)
    documented = re.findall(r"^\| ([^|]+?) \|", section, flags=re.MULTILINE)[1:]

    titles = [panel["title"].replace("$stage", "STAGE") for panel in panels(BOARDS[name])]
    assert [each for each in documented if not each.startswith("---")] == titles


def test_boards_have_uids_that_their_links_lead_to() -> None:
    uids = {board["uid"] for board in BOARDS.values()}
    linked = set().union(
        *(re.findall(r"/d/([\w-]+)", str(panels(board))) for board in BOARDS.values())
    )

    assert len(uids) == len(BOARDS)
    assert linked == {"latencyprobe-probe"} <= uids
