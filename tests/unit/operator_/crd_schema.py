"""The schema of the CRD, and a check of values by it, as strict as the API server's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

MANIFESTS = Path(__file__).parents[3] / "manifests"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
# kube-openapi, pkg/validation/validate/values.go: also an integer's format is a limit.
_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def read_schema() -> Schema:
    """Return the schema of v1alpha1."""
    crd = yaml.safe_load((MANIFESTS / "crd.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]
    return found


def misfits(value: Any, schema: Schema, path: str = "status") -> Iterator[str]:
    """Yield the places where a value does not fit a schema."""
    kind = schema["type"]
    if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{path}: {value!r} is no {kind}"
    elif isinstance(value, dict):
        yield from _misfits_of_object(value, schema, path)
    elif isinstance(value, list):
        yield from _misfits_of_list(value, schema, path)
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    elif isinstance(value, str):
        yield from _misfits_of_text(value, schema, path)
    elif isinstance(value, int | float) and kind != "boolean":
        yield from _misfits_of_number(value, schema, path)


def _misfits_of_object(value: dict[str, Any], schema: Schema, path: str) -> Iterator[str]:
    yield from (f"{path} lacks {key}" for key in schema.get("required", ()) if key not in value)
    for key, inner in value.items():
        known = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
        if known is None:
            yield f"{path}.{key}"
        else:
            yield from misfits(inner, known, f"{path}.{key}")


def _misfits_of_list(value: list[Any], schema: Schema, path: str) -> Iterator[str]:
    if len(value) > schema.get("maxItems", len(value)):
        yield f"{path} has {len(value)} items"
    if names := schema.get("x-kubernetes-list-map-keys"):
        keys = [tuple(each.get(name) for name in names) for each in value]
        if len(set(keys)) < len(keys):
            yield f"{path} repeats a key: {keys}"
    for index, inner in enumerate(value):
        yield from misfits(inner, schema["items"], f"{path}[{index}]")


def _misfits_of_text(value: str, schema: Schema, path: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path} has {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r} does not match {schema['pattern']}"
    if schema.get("format") == "date-time" and not _DATE_TIME.fullmatch(value):
        yield f"{path}: {value!r} is no time"


def _misfits_of_number(value: float, schema: Schema, path: str) -> Iterator[str]:
    lowest, highest = _RANGES.get(schema.get("format", ""), (-math.inf, math.inf))
    lowest = max(lowest, schema.get("minimum", lowest))
    highest = min(highest, schema.get("maximum", highest))
    if not math.isfinite(value) or not lowest <= value <= highest:
        yield f"{path}: {value!r} is out of range"
