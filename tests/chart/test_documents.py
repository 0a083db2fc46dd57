"""What is rendered from the chart, or describes it, is in step with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from latencyprobe import __version__
from tests.chart.helm import VALUES_FILES, Helm
from tools.helm.chart import CHART, ROOT
from tools.helm.programs import obtain_helm_docs
from tools.manifests import rendered
from tools.progress import say_on_stderr

Schema = dict[str, Any]


@pytest.fixture(scope="session")
def files(helm: Helm) -> dict[Path, str]:
    """The rendered files as they should be."""
    return dict(rendered(helm.program, obtain_helm_docs(say_on_stderr)))


@pytest.mark.parametrize(
    "name", ["manifests/install.yaml", "manifests/rbac.yaml", "charts/latencyprobe/README.md"]
)
def test_a_rendered_file_is_up_to_date_with_the_chart(files: dict[Path, str], name: str) -> None:
    path = ROOT / name

    assert path.read_text() == files[path], f"{name} is out of date: run `make manifests`"


def test_the_crd_of_the_chart_is_the_one_in_manifests(helm: Helm) -> None:
    (crd,) = helm.manifests("crds.keep=false").of_kind("CustomResourceDefinition")

    assert crd == yaml.safe_load((ROOT / "manifests/crd.yaml").read_text())


def test_the_chart_has_the_version_of_the_product() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_the_chart_passes_helms_own_checks(helm: Helm) -> None:
    for values in VALUES_FILES:
        helm.run("lint", "--strict", str(CHART), f"--values={values}")


def schema_fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every value that the schema knows, with its dotted path; not what lies inside of one."""
    for name, field in schema["properties"].items():
        if "description" in field:
            yield f"{path}{name}", field
        else:
            yield from schema_fields(field, f"{path}{name}.")


def comments(text: str) -> Iterator[tuple[str, str]]:
    """The dotted path and the `# --` comment of every value that has one."""
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        if match := re.match(r" *# (?:-- )?(.*)", line):
            comment.append(match[1])
        elif match := re.match(r"( *)(\w+):", line):
            path[len(match[1]) // 2 :] = [match[2]]
            if comment:
                yield ".".join(path), " ".join(comment)
            comment = []


def test_the_schema_describes_each_value_as_its_comment_does() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    described = {path: field["description"] for path, field in schema_fields(schema)}

    assert described == dict(comments((CHART / "values.yaml").read_text()))


def test_every_value_is_documented() -> None:
    documented = dict(comments((CHART / "values.yaml").read_text()))
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def undocumented(part: Any, path: str) -> Iterator[str]:
        if path in documented:
            return
        if not isinstance(part, dict):
            yield path
            return
        for name, inner in part.items():
            yield from undocumented(inner, f"{path}.{name}".removeprefix("."))

    assert list(undocumented(values, "")) == []
