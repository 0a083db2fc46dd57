"""The CRD tells of the modules and stages that exist, documents each field, and fits the status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.measurement import Measurement, NodeMeasurement, NodeStage
from latencyprobe.domain.stages import DEFAULT_MODULES, TARGET_STAGES, Module
from latencyprobe_operator.api.spec import read_probe
from latencyprobe_operator.api.status_fields import NodeState, Phase
from latencyprobe_operator.probes import status
from latencyprobe_operator.probes.facts import NodeFacts
from tests.unit.operator_.crd_schema import MANIFESTS, Schema, misfits, read_schema
from tests.unit.operator_.status_facts import NOW, SLOW_READER, facts, listed
from tools.fakes.samples import probe_body


@pytest.fixture(scope="module")
def schema() -> Schema:
    """The schema of v1alpha1."""
    return read_schema()


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field below a schema with its path."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}", inner
        yield from fields(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], f"{path}[]")


def field(schema: Schema, path: str) -> Schema:
    """The field at this path."""
    return dict(fields(schema))[path]


def test_the_enums_are_the_table_of_stages(schema: Schema) -> None:
    modules = field(schema, ".spec.modules")
    stage = field(schema, ".spec.objectives[].stage")

    assert modules["items"]["enum"] == [str(module) for module in Module]
    assert modules["default"] == [str(module) for module in DEFAULT_MODULES]
    assert stage["enum"] == [stage.name for stage in TARGET_STAGES]


def test_the_phases_are_those_of_the_status(schema: Schema) -> None:
    assert field(schema, ".status.phase")["enum"] == [str(phase) for phase in Phase]


def test_every_node_state_is_explained(schema: Schema) -> None:
    described = field(schema, ".status.nodes[].state")["description"]

    assert [state for state in NodeState if state not in described] == [NodeState.READY]


def test_every_field_has_a_type_and_a_description(schema: Schema) -> None:
    bare = [path for path, inner in fields(schema) if path != ".metadata" and lacks(inner)]

    assert bare == []


def lacks(inner: Schema) -> bool:
    """Whether a field lacks what documents it."""
    return not inner.get("type") or not inner.get("description", "").endswith(".")


def test_the_defaults_are_those_of_the_operator(schema: Schema) -> None:
    body = probe_body()
    body["spec"] = {"selector": {}}
    with_defaults = probe_body()
    with_defaults["spec"] = {"selector": {}, **defaults(schema["properties"]["spec"])}

    assert read_probe(body) == read_probe(with_defaults)


def test_no_default_lies_within_a_list(schema: Schema) -> None:
    """It would be a difference for ever to clients that compare whole lists, as Argo CD does."""
    within = [path for path, inner in fields(schema) if "[]" in path and "default" in inner]

    assert within == []


def test_no_list_that_is_merged_has_a_default(schema: Schema) -> None:
    """No client owns a default, so a server-side apply could not take its items away."""
    merged = [
        path
        for path, inner in fields(schema)
        if "default" in inner and inner.get("x-kubernetes-list-type", "atomic") != "atomic"
    ]

    assert merged == []


def defaults(schema: Schema) -> dict[str, Any]:
    """What the API server fills in."""
    found = {}
    for name, inner in schema.get("properties", {}).items():
        if "default" in inner:
            value = inner["default"]
            found[name] = defaults(inner) if isinstance(value, dict) else value
    return found


def test_the_sample_is_a_probe() -> None:
    sample = yaml.safe_load((MANIFESTS / "samples" / "latencyprobe.yaml").read_text())
    sample["metadata"].update(uid="1", namespace="shop", generation=1)

    assert str(read_probe(sample).selector) == "app=checkout"


@pytest.mark.parametrize("phase", [None, Phase.SUSPENDED])
def test_the_schema_knows_all_that_a_status_says(schema: Schema, phase: Phase | None) -> None:
    gap = StageCoverage("rx.host", CoverageState.UNAVAILABLE, "tp", "no such hook")
    netns = Measurement(netns_counters={"TcpExtListenDrops": 1})
    stage = SLOW_READER.stage("rx.total")
    whole = facts(
        phase=phase,
        nodes=[NodeFacts("a", NodeState.STALE, "m", (gap,), 1, cpu_percent=0.1, last_report=1)],
        pods=[listed("p", "a", ("server",), SLOW_READER + netns)],
        node_context={"a": NodeMeasurement({NodeStage("rx.total", "d"): stage}, {"c": 1})},
        merged=SLOW_READER,
        last_report_time=NOW,
    )

    document = status.build(whole, now=NOW)

    assert list(misfits(document, schema["properties"]["status"])) == []


def test_the_operator_may_read_no_secret_and_change_no_pod() -> None:
    documents = yaml.safe_load_all((MANIFESTS / "rbac.yaml").read_text())
    (role,) = (each for each in documents if each["kind"] == "ClusterRole")
    allowed = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }

    assert allowed == {
        ("latencyprobes", "get"),
        ("latencyprobes", "list"),
        ("latencyprobes", "watch"),
        ("latencyprobes", "patch"),
        ("latencyprobes", "delete"),
        ("latencyprobes/status", "patch"),
        ("events", "create"),
        ("events", "patch"),
        ("pods", "list"),
        ("pods", "watch"),
        ("customresourcedefinitions", "list"),
        ("customresourcedefinitions", "watch"),
    }
