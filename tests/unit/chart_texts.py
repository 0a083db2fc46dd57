"""Every text of the chart that Helm, kubectl or an alert shows, and every comment of its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.unit.product_texts import PLACEHOLDER, ROOT, Kind, Text

CHART = ROOT / "charts/latencyprobe"
VALUES = CHART / "values.yaml"
NOTES = CHART / "templates/NOTES.txt"
CRD = CHART / "files/crd.yaml"
ALERTS = CHART / "files/alerts.yaml"
_SAMPLES = ROOT / "manifests/samples"
_FAIL = re.compile(r'\{\{-? *fail \(?(?:printf )?"((?:[^"\\]|\\.)*)"')
_VERB = re.compile(r"%[a-z]")
_ACTION = re.compile(r"\{\{.*?\}\}")
_TEMPLATE_COMMENT = re.compile(r"\{\{-? */\*(.*?)\*/ *-?\}\}", re.DOTALL)
_DESCRIPTION = re.compile(r"^ *description: (.+)$", re.MULTILINE)


def refusals() -> Iterator[Text]:
    """Yield the errors by which templates refuse values."""
    for path in sorted((CHART / "templates").rglob("*.*")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            for message in _FAIL.findall(line):
                yield Text(Kind.ERROR, _name(path), number, _VERB.sub(PLACEHOLDER, message))


def notes() -> Iterator[Text]:
    """Yield the lines that Helm prints after an installation, without commands and manifests."""
    for number, line in enumerate(NOTES.read_text().splitlines(), start=1):
        text = _ACTION.sub(lambda match: "" if "{{-" in match[0] else PLACEHOLDER, line)
        if text.strip() and not text.startswith("  "):
            yield Text(Kind.OTHER, _name(NOTES), number, text)


def all_comments() -> Iterator[Text]:
    """Yield the comments of the chart's files and of the samples, those of templates included."""
    for folder in (CHART, _SAMPLES):
        for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.tpl")]):
            yield from comments(path)
            for comment in _TEMPLATE_COMMENT.findall(path.read_text()):
                yield Text(Kind.OTHER, _name(path), 0, comment)


def comments(path: Path) -> Iterator[Text]:
    """Yield the comments of a YAML file, each with the lines that go on with it."""
    block: list[str] = []
    for number, line in enumerate([*path.read_text().splitlines(), ""], start=1):
        if (comment := re.match(r"\s*#(?: -- | |$)(.*)", line)) is not None:
            block.append(comment[1])
        elif block:
            yield Text(Kind.OTHER, _name(path), number - len(block), "\n".join(block))
            block = []


def explanations() -> Iterator[Text]:
    """Yield the sentences of the alerts, and the descriptions of the chart and of its objects."""
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            for key in ("summary", "description"):
                text = _ACTION.sub(PLACEHOLDER, rule["annotations"][key])
                yield Text(Kind.OTHER, f"{_name(ALERTS)} {rule['alert']}", 0, text)
    for path in [CHART / "Chart.yaml", *sorted((CHART / "templates").rglob("*.yaml"))]:
        for text in _DESCRIPTION.findall(path.read_text()):
            yield Text(Kind.OTHER, _name(path), 0, text)


def descriptions() -> Iterator[Text]:
    """Yield the descriptions in the CRD, which `kubectl explain` prints."""
    crd = yaml.safe_load(CRD.read_text())
    for version in crd["spec"]["versions"]:
        for path, text in _described(version, "crd"):
            yield Text(Kind.OTHER, f"{_name(CRD)} {path}", 0, text)


def _described(schema: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(schema, dict):
        for key, inner in schema.items():
            if key in ("description", "message") and isinstance(inner, str):
                yield path, inner
            else:
                yield from _described(inner, f"{path}.{key}")
    elif isinstance(schema, list):
        for each in schema:
            yield from _described(each, path)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))
