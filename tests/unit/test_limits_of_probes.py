"""What the CRD admits, operator and agent take: each maximum and minimum of a probe's spec.

The values are made from the schema, those of durations from its rules.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import click
import pytest

from latencyprobe.commands.parameters import INTERVAL, PID
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import DesiredProbe
from latencyprobe_agent.serving.requests import (
    MAX_INTERVAL_S,
    MAX_PID,
    MIN_INTERVAL_S,
    parse_desired,
)
from latencyprobe_operator.agents.messages import outgoing_state
from latencyprobe_operator.api.spec import ProbeSpec, read_probe
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.model import read_pod
from tests.unit.operator_.crd_schema import Schema, misfits, read_schema
from tools.fakes.samples import pod_body, probe_body

Json = dict[str, Any]

# kube-openapi, pkg/validation/validate/values.go: also an integer's format is a limit.
LARGEST_INT32 = 2**31 - 1
# A Go duration has 64 bits of nanoseconds.
SHORTEST_DURATION, LONGEST_DURATION = "1ns", "2562047h47m16.854775807s"
BOUND = re.compile(r"duration\(self\) (>=|<=|>) duration\('(\w+)'\)")
# Texts are of this, with a suffix that tells the items of a list apart. A percentile has a form.
FILLER = "a"
PERCENTILES = ("p0", "p100", "p99.9999")
OBJECTIVE = {"name": "reads", "stage": "rx.total", "percentile": "p99", "max": "5ms"}
# Fields that depend on others have those, so that no rule between fields is broken.
COMPANIONS: Mapping[str, Json] = {
    "interval": {"window": "24h"},
    "window": {"interval": "1s"},
    "ttlSecondsAfterFinished": {"duration": "1s"},
    "objectives": {"modules": ["rx", "tx", "tcp", "irq", "sched"]},
}


@functools.cache
def spec_schema() -> Schema:
    """The schema of a probe's spec."""
    found: Schema = read_schema()["properties"]["spec"]
    return found


def extremes(schema: Schema, suffix: str = "") -> Iterator[Any]:
    """Yield the least and the greatest values of a field, and each one of an enum."""
    if "enum" in schema:
        yield from schema["enum"]
    elif schema["type"] == "boolean":
        yield from (False, True)
    elif schema["type"] in ("integer", "number"):
        yield from (schema["minimum"], schema.get("maximum", LARGEST_INT32))
    elif schema["type"] == "array":
        yield from _lists(schema)
    elif schema["type"] == "object":
        yield from _objects(schema, suffix)
    elif "duration(" in str(schema.get("x-kubernetes-validations")):
        yield from _durations(schema)
    else:
        yield from _texts(schema, suffix)


def _durations(schema: Schema) -> Iterator[str]:
    rules = " ".join(rule["rule"] for rule in schema["x-kubernetes-validations"])
    bounds = dict(BOUND.findall(rules))
    assert bounds, rules
    yield bounds.get(">=", SHORTEST_DURATION)
    yield bounds.get("<=", LONGEST_DURATION)


def _texts(schema: Schema, suffix: str) -> Iterator[str]:
    lengths = (schema.get("minLength", 0), schema["maxLength"])
    texts = (FILLER * max(length - len(suffix), 0) + suffix for length in lengths)
    yield from (text for text in (*PERCENTILES, *texts) if not list(misfits(text, schema)))


def _lists(schema: Schema) -> Iterator[list[Any]]:
    items, most = schema["items"], schema["maxItems"]
    yield from ([item] for item in extremes(items))
    if "enum" in items:
        yield items["enum"][:most]
    elif items["type"] == "integer":
        yield list(range(items["maximum"] - most + 1, items["maximum"] + 1))
    else:
        suffixes = (f"{number:03}" for number in range(most))
        yield [list(extremes(items, suffix))[-1] for suffix in suffixes]


def _objects(schema: Schema, suffix: str) -> Iterator[Json]:
    """Yield objects with one extreme field each, beside those that are required."""
    for name, inner in schema.get("properties", {}).items():
        for value in extremes(inner, suffix):
            others = OBJECTIVE if "max" in schema["properties"] else {}
            named = {"name": OBJECTIVE["name"] + suffix} if others else {}
            yield {**others, **named, name: value}


def specs() -> Iterator[Json]:
    """Yield specs with one extreme field each, and what that field needs."""
    for name, schema in spec_schema()["properties"].items():
        if name == "selector":
            continue  # no agent is sent it
        for value in extremes(schema):
            yield {**COMPANIONS.get(name, {}), name: value}


def read(spec: Json) -> ProbeSpec:
    """The spec of a probe with the longest names."""
    body = probe_body("p" * 253, namespace="n" * 63, **spec)
    body["metadata"]["uid"] = "00000000-1111-2222-3333-444444444444"
    assert list(misfits(body["spec"], spec_schema(), "spec")) == []
    return read_probe(body)


def arrived(spec: Json) -> tuple[ProbeSpec, DesiredProbe]:
    """A probe as the operator reads it, and as the agent parses what the operator sends."""
    pod = pod_body("a", namespace="n" * 63, containers=tuple(spec.get("containers", ["server"])))
    pod["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555"
    pod["metadata"]["name"] = "a" * 253
    for index, status in enumerate(pod["status"]["containerStatuses"]):
        status["containerID"] = f"containerd://{index:064x}"
    states, read_spec = DesiredStates(), read({**spec, "selector": {}})
    states.set_probe(read_spec, [read_pod(pod)])
    sent = outgoing_state(states.of_node("node-a"), generation=1, lease_s=300, held=frozenset())
    assert sent.left_out == {}
    request = pb.DesiredState.FromString(sent.message.SerializeToString())
    desired = parse_desired(request, only_containers=True)
    assert dict(desired.refused) == {}
    (probe,) = desired.probes
    return read_spec, probe


def short_name(value: object) -> str:
    """A spec as the name of a test: not too long."""
    return re.sub(r"[^\w.,=-]+", "", str(value))[:60]


# Module irq alone is admitted where the administrator shows figures of nodes: nothing is sent else.
@pytest.mark.parametrize(
    "spec", [s for s in specs() if s.get("modules") != ["irq"]], ids=short_name
)
def test_an_agent_takes_what_the_schema_admits(spec: Json) -> None:
    wanted, probe = arrived(spec)
    assert probe.window is not None
    assert (probe.interval_s, probe.window.length_s) == (wanted.interval_s, wanted.window_s)
    assert probe.max_cpu_percent == wanted.max_cpu_percent
    assert probe.modules == set(wanted.measured_modules)
    assert probe.socket_filter.ports == set(wanted.ports)
    assert probe.window.max_pods == wanted.max_pods
    assert len(probe.objectives) == len(wanted.objectives)
    assert len(probe.targets) == max(len(wanted.containers), 1)


def test_the_values_are_those_of_the_schema() -> None:
    """A schema that is written otherwise must not leave this test without values."""
    found = list(specs())
    by_field = {name: [s[name] for s in found if name in s] for name in spec_schema()["properties"]}
    assert {name for name, values in by_field.items() if len(values) < 2} <= {"selector"}
    assert {"1s", "10m"} <= set(by_field["interval"])
    assert "24h" in [each["window"] for each in found if each.get("interval") == "1s"]
    assert {"maxPods": 100} in by_field["report"]
    assert {len(each["ports"]) for each in by_field["filter"] if "ports" in each} == {1, 16}
    objectives = list(itertools.chain(*by_field["objectives"]))
    assert {len(each) for each in by_field["objectives"]} == {1, 16}
    assert LONGEST_DURATION in {each["max"] for each in objectives}
    assert set(PERCENTILES) <= {each["percentile"] for each in objectives}


def test_the_command_line_has_the_limits_of_an_agent() -> None:
    for limit_s in (MIN_INTERVAL_S, MAX_INTERVAL_S):
        assert INTERVAL.convert(f"{limit_s}s", None, None) == round(limit_s * 1e9)
    for beyond in (f"{MIN_INTERVAL_S - 0.01:.2f}s", f"{MAX_INTERVAL_S + 0.01:.2f}s"):
        with pytest.raises(click.BadParameter):
            INTERVAL.convert(beyond, None, None)
    assert (PID.min, PID.max) == (1, MAX_PID)
