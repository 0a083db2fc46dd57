"""The types of the API say the same as the CRD, and reasons stand in one place."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.report import StageReport
from latencyprobe.domain.serialisation import written
from latencyprobe.domain.verdict import Verdict
from latencyprobe_operator.api import conditions, status_fields
from latencyprobe_operator.api.conditions import REASONS, Condition, ConditionStatus, ConditionType
from latencyprobe_operator.api.status_fields import (
    NodeContext,
    NodeStatus,
    PodStatus,
    ProbeStatus,
    StatusTimes,
    Summary,
    TargetCounts,
)

ROOT = Path(__file__).parents[3]
OPERATOR = ROOT / "operator" / "latencyprobe_operator"
Schema = dict[str, Any]


@pytest.fixture(scope="module")
def status_schema() -> Schema:
    """The schema of the status in v1alpha1."""
    crd = yaml.safe_load((ROOT / "manifests" / "crd.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    return found


def keys_of(kind: type[Any]) -> set[str]:
    """The keys that a type of the API is written with."""
    omitted = written(omitted=True)
    names = {field.name for field in dataclasses.fields(kind) if field.metadata != omitted}
    return {re.sub(r"_(\w)", lambda found: found[1].upper(), name) for name in names}


def properties_at(schema: Schema, path: str) -> set[str]:
    """The properties of the object at a path; `[]` is an item of a list, or a value of a map."""
    for name in path.split("."):
        schema = schema["properties"][name.removesuffix("[]")]
        if name.endswith("[]"):
            schema = schema.get("items") or schema["additionalProperties"]
    return set(schema["properties"])


def test_the_crd_describes_every_condition(status_schema: Schema) -> None:
    description = status_schema["properties"]["conditions"]["description"]

    assert re.findall(r"(\w+):", description) == list(ConditionType)


def test_the_crd_has_the_statuses_of_a_condition(status_schema: Schema) -> None:
    condition = status_schema["properties"]["conditions"]["items"]["properties"]

    assert condition["status"]["enum"] == list(ConditionStatus)


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("conditions[]", Condition),
        ("targets", TargetCounts),
        ("summary", Summary),
        ("pods[]", PodStatus),
        ("nodes[]", NodeStatus),
        ("nodeContext[]", NodeContext),
    ],
)
def test_a_part_of_the_status_has_the_fields_of_the_crd(
    status_schema: Schema, field: str, kind: type[Any]
) -> None:
    assert keys_of(kind) == properties_at(status_schema, field)


# A pod's stage has no detail, and a node's is no part of a total.
@pytest.mark.parametrize(
    ("path", "kind", "absent"),
    [
        ("pods[].verdict", Verdict, set()),
        ("pods[].stages[]", StageReport, {"detail"}),
        ("pods[].pending[]", Pending, set()),
        ("pods[].peers[]", Peer, set()),
        ("pods[].cgroups[]", Cgroup, set()),
        ("nodes[].stages[]", StageCoverage, set()),
        ("nodeContext[].stages[]", StageReport, {"sharePercent"}),
    ],
)
def test_a_row_of_the_status_has_the_fields_of_the_crd(
    status_schema: Schema, path: str, kind: type[Any], absent: set[str]
) -> None:
    assert keys_of(kind) - absent == properties_at(status_schema, path)


def test_the_status_has_the_fields_of_the_crd(status_schema: Schema) -> None:
    keys = keys_of(ProbeStatus) - {"times"} | keys_of(StatusTimes)

    assert keys == set(status_schema["properties"])


def test_every_condition_has_reasons_in_camel_case() -> None:
    assert list(REASONS) == list(ConditionType)
    reasons = [reason for kind in REASONS.values() for reason in kind]
    assert [reason for reason in reasons if not re.fullmatch(r"([A-Z][a-z]+)+", reason)] == []


def test_every_reason_has_a_meaning() -> None:
    """The text below a member, which docs/api.md tells users at length."""
    source = ast.parse(Path(conditions.__file__).read_text())
    for kind in [node for node in source.body if isinstance(node, ast.ClassDef)]:
        members = [type(node) for node in kind.body if isinstance(node, ast.Assign | ast.Expr)]
        if kind.name in {reasons.__name__ for reasons in REASONS.values()}:
            assert members == [ast.Expr] + [ast.Assign, ast.Expr] * (len(members) // 2), kind.name


def test_no_other_module_spells_a_reason() -> None:
    reasons = {str(reason) for kind in REASONS.values() for reason in kind}
    apart = {conditions.__file__, status_fields.__file__}
    spelled = [
        f"{path.name}: {node.value}"
        for path in OPERATOR.rglob("*.py")
        if str(path) not in apart
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in reasons
    ]

    assert spelled == []
