"""The CRD's spec has the properties that the operator reads, and no others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from latencyprobe_operator.api.lifetime import lifetime_of
from latencyprobe_operator.api.spec import read_probe
from tests.unit.operator_.crd_schema import Schema, misfits, read_schema
from tools.fakes.samples import Json, probe_body

OBJECTIVE = {"name": "a", "stage": "rx.total", "percentile": "p99", "max": "5ms", "for": "2m"}
# All fields of a spec, and for each of its leaves another value.
WHOLE: Json = {
    "selector": {
        "matchLabels": {"app": "shop"},
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["web"]}],
    },
    "containers": ["server"],
    "modules": ["rx", "tcp"],
    "filter": {"ports": [80], "protocols": ["TCP"]},
    "interval": "20s",
    "window": "10m",
    "duration": "1h",
    "ttlSecondsAfterFinished": 60,
    "suspend": False,
    "overhead": {"maxCPUPercent": 2},
    "objectives": [OBJECTIVE],
    "report": {"maxPods": 3},
    "metrics": {"perPod": False},
}
OTHERS: dict[str, Any] = {
    "selector.matchLabels": {"app": "cart"},
    "selector.matchExpressions[].key": "zone",
    "selector.matchExpressions[].operator": "NotIn",
    "selector.matchExpressions[].values": ["db"],
    "containers": ["proxy"],
    "modules": ["rx"],
    "filter.ports": [443],
    "filter.protocols": ["UDP", "TCP"],
    "interval": "30s",
    "window": "20m",
    "duration": "2h",
    "ttlSecondsAfterFinished": 90,
    "suspend": True,
    "overhead.maxCPUPercent": 3,
    "objectives[].name": "b",
    "objectives[].stage": "rx.stack",
    "objectives[].percentile": "p50",
    "objectives[].max": "6ms",
    "objectives[].for": "3m",
    "report.maxPods": 4,
    "metrics.perPod": True,
}


@pytest.fixture(scope="module")
def schema() -> Schema:
    """The schema of the spec in v1alpha1."""
    found: Schema = read_schema()["properties"]["spec"]
    return found


def leaves(schema: Schema, path: str = "") -> Iterator[str]:
    """The paths of the fields below a schema that have none below them."""
    for name, inner in schema.get("properties", {}).items():
        items = inner.get("items", {})
        if "properties" in inner:
            yield from leaves(inner, f"{path}{name}.")
        elif "properties" in items:
            yield from leaves(items, f"{path}{name}[].")
        else:
            yield f"{path}{name}"


class Recording(dict[str, Any]):
    """An object of the API that notes the paths of the keys that are read."""

    def __init__(self, content: Json, read: set[str], path: str = "") -> None:
        self._read, self._path = read, path
        super().__init__({key: self._inner(key, value) for key, value in content.items()})

    def _inner(self, key: str, value: Any) -> Any:
        path = f"{self._path}{key}"
        if isinstance(value, dict) and path != "selector.matchLabels":
            return Recording(value, self._read, f"{path}.")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [Recording(each, self._read, f"{path}[].") for each in value]
        return value

    def __getitem__(self, key: str) -> Any:
        self._read.add(f"{self._path}{key}")
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, and note it."""
        self._read.add(f"{self._path}{key}")
        return super().get(key, default)


def completed(spec: Json) -> Json:
    """A probe with this spec that has completed."""
    body = probe_body()
    body["spec"] = spec
    condition = {
        "type": "Complete",
        "status": "True",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    body["status"] = {"observedGeneration": 1, "conditions": [condition]}
    return body


def with_other_value(path: str) -> Json:
    """The whole spec with another value of one leaf."""
    spec = copy.deepcopy(WHOLE)
    *outer, last = path.split(".")
    inner = spec
    for name in outer:
        found = inner[name.removesuffix("[]")]
        inner = found[0] if name.endswith("[]") else found
    assert inner[last] != OTHERS[path]
    inner[last] = OTHERS[path]
    return spec


def reading(spec: Json) -> tuple[object, object]:
    """All that the operator reads of a spec."""
    body = completed(spec)
    return read_probe(body), lifetime_of(body)


def test_the_operator_reads_the_properties_of_the_crd_and_no_others(schema: Schema) -> None:
    read: set[str] = set()
    body = completed(Recording(WHOLE, read))
    read_probe(body)
    lifetime_of(body)
    found = {
        path
        for path in read
        if not any(each.startswith((f"{path}.", f"{path}[]")) for each in read)
    }

    assert found == set(leaves(schema))


def test_a_value_is_given_for_each_property_of_the_crd(schema: Schema) -> None:
    assert set(OTHERS) == set(leaves(schema))


@pytest.mark.parametrize("path", OTHERS)
def test_another_value_of_a_property_changes_the_spec_that_is_read(
    schema: Schema, path: str
) -> None:
    other = with_other_value(path)

    assert list(misfits(other, schema, "spec")) == []
    assert reading(other) != reading(WHOLE)
