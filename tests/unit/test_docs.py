"""What the documents say is what the code has: reasons, states, fields, metrics, stages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.stages import COUNTERS, STAGES
from latencyprobe.domain.targets import TargetState
from latencyprobe.exposition.page import ClassicView
from latencyprobe.otlp.counts import Loss
from latencyprobe.otlp.options import otlp_options
from latencyprobe.otlp.vocabulary import INSTRUMENTS
from latencyprobe_agent.kernel.hooks import EVENTS, Hook, HookKind
from latencyprobe_agent.serving.tls_proxy import TlsRefusal
from latencyprobe_operator.api.conditions import REASONS, ConditionType, node_figures_refusal
from latencyprobe_operator.api.events import EventReason
from latencyprobe_operator.api.status_fields import NodeState, Phase
from latencyprobe_operator.probes.objectives import Judgement
from tests.unit.agent.sample_figures import sample_figures
from tests.unit.exported import agent_metrics, operator_metrics
from tests.unit.plain_english import replaced_words

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
API = DOCS / "api.md"
METRICS = DOCS / "metrics.md"
OPENTELEMETRY = DOCS / "opentelemetry.md"
STAGES_PAGE = DOCS / "stages.md"
HOOKS_PAGE = ROOT / "bpf/README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted(
    [
        *DOCS.glob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        HOOKS_PAGE,
        ROOT / "devcluster/README.md",
        ROOT / "charts/latencyprobe/README.md",
    ]
)
# The chart's README is rendered, and CONTRIBUTING is for those who read code.
PLAIN_PAGES = [
    page for page in PAGES if page not in (CONTRIBUTING, ROOT / "charts/latencyprobe/README.md")
]
STAGE_FORM = ["From", "To", "Normal", "A large value", "Next"]
Schema = dict[str, Any]
Row = list[str]


# ------------------------------------------------------------------------- reading pages


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def section(page: Path, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = f"\n{page.read_text()}".partition(f"\n{heading}\n")
    assert found, f"{page.name} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def tables(text: str) -> Iterator[list[Row]]:
    """The rows of each table in a text, without its heading."""
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = table.splitlines()[2:]
        yield [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def rows(text: str) -> Iterator[Row]:
    """The rows of all tables in a text."""
    return chain.from_iterable(tables(text))


def codes(cell: str) -> list[str]:
    """The names in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def first_names(text: str) -> list[str]:
    """The names in the first column of a text's tables."""
    return [name for row in rows(text) for name in codes(row[0])]


# ------------------------------------------------------------------------ reading code


def reasons() -> set[str]:
    """Every reason that a condition can have."""
    return {str(reason) for kind in REASONS.values() for reason in kind}


def metrics_of(registry: CollectorRegistry) -> dict[str, tuple[str, set[str]]]:
    """The type and labels of each metric, by the name that Prometheus shows."""
    own_labels = {"le"}
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - own_labels,
        )
        for family in ClassicView(registry).collect()
    }


def documented_metrics(heading: str) -> dict[str, tuple[str, set[str]]]:
    """The same as a page has it."""
    return {
        codes(row[0])[0]: (row[1], set(codes(row[2])))
        for row in rows(section(METRICS, heading))
        if row[0].startswith("`latencyprobe_")
    }


def schema_of(part: str) -> Schema:
    """The CRD's schema of spec or status."""
    crd = yaml.safe_load((ROOT / "charts/latencyprobe/files/crd.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]["properties"][part]
    return found


def fields(schema: Schema, path: str = "") -> Iterator[str]:
    """The paths of all fields below a schema."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}{name}"
        yield from fields(inner, f"{path}{name}.")
    if isinstance(schema.get("items"), dict):
        yield from fields(schema["items"], f"{path.removesuffix('.')}[].")


# -------------------------------------------------------------------------------- API


def test_every_reason_of_a_condition_is_explained_and_no_other() -> None:
    documented = {
        name
        for heading in (f"### {condition}" for condition in ConditionType)
        for name in first_names(section(API, heading))
    }

    assert documented == reasons()


@pytest.mark.parametrize("condition", list(ConditionType))
def test_a_condition_has_a_row_for_each_of_its_reasons(condition: ConditionType) -> None:
    documented = first_names(section(API, f"### {condition}"))

    assert sorted(documented) == sorted(map(str, REASONS[condition]))


def test_each_reason_has_a_status_a_meaning_and_something_to_do() -> None:
    for row in rows(section(API, "## Conditions")):
        assert all(row), row


def test_the_reasons_are_found_in_the_code() -> None:
    """The test above holds nothing if it looks in the wrong place."""
    assert {"Measuring", "NoAgent", "Attaching", "InvalidSelector", "Completed"} <= reasons()


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("### Phases", [str(phase) for phase in Phase]),
        ("### Verdicts", [str(bottleneck) for bottleneck in Bottleneck]),
        ("## Events", [str(reason) for reason in EventReason]),
        ("### Node states", [str(state) for state in NodeState if state is not NodeState.READY]),
    ],
)
def test_a_table_has_a_row_for_each_value(heading: str, names: list[str]) -> None:
    documented = [codes(row[0])[0] for row in rows(section(API, heading))]

    assert sorted(documented) == sorted(names)


def test_every_field_of_a_spec_has_its_row() -> None:
    assert first_names(section(API, "## spec")) == list(fields(schema_of("spec")))


def test_every_field_of_a_status_is_named() -> None:
    named = {
        name for row in rows(section(API, "## status")) for cell in row for name in codes(cell)
    }
    named |= set(codes(section(API, "### Verdicts"))) | set(codes(section(API, "## Conditions")))
    named |= set(codes(section(API, "### A stage")))
    of_a_condition = {"type", "status", "reason", "message", "observedGeneration"}

    wanted = {path.rpartition(".")[2] for path in fields(schema_of("status"))} - of_a_condition

    assert wanted - named == set()


# ------------------------------------------------------------------------------ metrics


def test_every_metric_of_the_operator_is_documented_as_it_is(tmp_path: Path) -> None:
    assert documented_metrics("## Operator") == metrics_of(operator_metrics(tmp_path).registry)


def test_every_metric_of_the_agent_is_documented_as_it_is(tmp_path: Path) -> None:
    assert documented_metrics("## Agent") == metrics_of(agent_metrics(tmp_path).registry)


def test_every_metric_of_pods_and_probes_is_documented_as_it_is() -> None:
    assert documented_metrics("## Figures of pods and probes") == metrics_of(sample_figures())


def test_every_value_of_an_agents_label_is_documented() -> None:
    agent = section(METRICS, "## Agent")
    refusals = [codes(row[0])[0] for row in rows(agent) if len(row) == 2]

    assert refusals == [str(refusal) for refusal in TlsRefusal]
    assert {state.lower() for state in TargetState} <= set(codes(agent))


# -------------------------------------------------------------------------- OpenTelemetry


def test_every_name_of_opentelemetry_is_documented_as_it_is() -> None:
    documented = [
        (codes(row[0])[0], row[1], *codes(row[2]), *codes(row[3]))
        for row in rows(section(OPENTELEMETRY, "## Names"))
    ]

    assert documented == [
        (each.name, each.kind, each.unit, f"{family}_total" if each.kind == "Counter" else family)
        for family, each in INSTRUMENTS.items()
    ]


def test_every_option_of_the_push_is_documented() -> None:
    otlp_command = click.command()(otlp_options(lambda **_: None))
    options = {name for each in otlp_command.params for name in each.opts}
    documented = [codes(row[1]) for row in rows(section(OPENTELEMETRY, "## Settings"))]

    assert {name for names in documented for name in names} == options


def test_every_reason_of_a_loss_is_documented() -> None:
    documented = first_names(section(OPENTELEMETRY, "## An absent collector"))

    assert documented == [str(loss) for loss in Loss]


# ------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_every_stage_has_a_section_of_one_form(stage: str) -> None:
    text = section(STAGES_PAGE, f"### {stage}")

    assert re.findall(r"^- \*\*(.+?)\*\*", text, flags=re.MULTILINE)[:5] == STAGE_FORM


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_the_normal_value_of_a_stage_has_a_figure(stage: str) -> None:
    text = section(STAGES_PAGE, f"### {stage}")
    (normal,) = re.findall(r"^- \*\*Normal\*\*(.*?)^- ", text, flags=re.MULTILINE | re.DOTALL)

    # A percentile's name and a link's target are no figures of a time.
    assert re.search(r"\d", re.sub(r"\bp\d+|\]\([^)]*\)", "", normal))


def test_no_name_is_in_two_rows_of_a_table_of_stages() -> None:
    for table in tables(prose(STAGES_PAGE)):
        names = [name for row in table for name in codes(row[0])]
        assert len(names) == len(set(names)), sorted(names)


def test_the_table_of_modules_has_each_stage_in_one_row() -> None:
    table = next(tables(prose(STAGES_PAGE)))
    linked = [(row[0], re.findall(r"\[([a-z.]+)\]", row[1])) for row in table]
    listed = [(module, name) for module, names in linked for name in names]

    assert sorted(listed) == sorted((f"`{stage.module}`", stage.name) for stage in STAGES)


def test_every_counter_of_a_target_is_explained() -> None:
    explained = set(first_names(section(STAGES_PAGE, "### The target's own counters")))

    assert [counter.name for counter in COUNTERS if counter.name not in explained] == []


# -------------------------------------------------------------------------------- hooks


def hooks_of_events() -> Iterator[Hook]:
    """Each hook that an event may have, with those that it requires."""
    for event in EVENTS:
        for hook in event.hooks:
            yield from (hook, *hook.also)


def test_every_hook_of_an_event_is_on_the_page_of_hooks() -> None:
    page = HOOKS_PAGE.read_text()
    # A count has a name of ours, as its own is that of an enumerator.
    wanted = {
        hook.function if hook.kind is HookKind.COUNT else hook.symbol for hook in hooks_of_events()
    }

    assert "inet_csk_accept" in wanted
    assert [name for name in sorted(wanted) if not re.search(rf"\b{name}\b", page)] == []


# ------------------------------------------------------------------------- small changes


def small_changes() -> dict[str, Row]:
    """The files that each small change opens."""
    return {row[0]: row[1:] for row in rows(section(CONTRIBUTING, "## Small changes"))}


def paths_in(text: str) -> set[str]:
    """The files and folders of the checkout that a text names."""
    return {name for name in codes(text) if re.fullmatch(r"[\w./]+", name) and "/" in name}


def test_a_small_change_opens_files_that_exist() -> None:
    named = paths_in(section(CONTRIBUTING, "## Small changes"))

    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_a_new_hook_opens_the_page_that_holds_every_hook() -> None:
    assert "bpf/README.md" in paths_in(" ".join(small_changes()["another hook of an event"]))


def test_the_makers_of_other_messages_of_conditions_are_named() -> None:
    makers = (Judgement, node_figures_refusal)
    files = {str(Path(inspect.getfile(each)).relative_to(ROOT)) for each in makers}

    assert files <= paths_in(section(CONTRIBUTING, "## Small changes"))


# ------------------------------------------------------------------------------- README


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# ---------------------------------------------------------------------------- language


WORDS_OF_A_SENTENCE = 25


def blocks(page: Path) -> Iterator[str]:
    """Paragraphs, items of lists and cells of tables, each on one line, without generated parts."""
    text = re.sub(r"<!-- matrix:.*?<!-- end of matrix -->", "", prose(page), flags=re.DOTALL)
    for line in re.findall(r"^ *\|.*$", text, flags=re.MULTILINE):
        yield from re.split(r"(?<!\\)\|", line)
    text = re.sub(r"^ *\|.*$", "", text, flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|^#+ ", text, flags=re.MULTILINE):
        yield " ".join(block.split())


def sentences(page: Path) -> Iterator[str]:
    """The sentences of a page; what stands before a colon or a semicolon is one by itself."""
    for block in blocks(page):
        without_targets = re.sub(r"\]\([^)]*\)", "]", block)
        yield from re.split(r"(?<=[.!?:;])\**\s+", without_targets)


@pytest.mark.parametrize("page", PLAIN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page: Path) -> None:
    lengths = {text: len(re.findall(r"\S*\w\S*", text)) for text in sentences(page)}

    assert {text: n for text, n in lengths.items() if n > WORDS_OF_A_SENTENCE} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_in_plain_english(page: Path) -> None:
    found = {text: list(replaced_words(text)) for text in blocks(page)}

    assert {text: words for text, words in found.items() if words} == {}
