"""A LatencyProbe's spec is read with its defaults, and refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.stages import Module
from latencyprobe_operator.api.spec import NamedObjective, SpecError, read_probe
from tools.fakes.samples import probe_body


def test_absent_fields_have_the_defaults_of_the_schema() -> None:
    body = probe_body()
    body["spec"] = {"selector": {}}

    spec = read_probe(body)

    assert str(spec.selector) == ""
    assert spec.modules == (Module.RX, Module.TX, Module.TCP)
    assert (spec.interval_s, spec.window_s) == (10, 60)
    assert spec.duration_s is None
    assert not spec.suspend
    assert (spec.max_cpu_percent, spec.max_pods) == (1, 20)
    assert (spec.ports, spec.protocols, spec.containers) == ((), (), frozenset())
    assert not spec.metrics_per_pod


def test_all_fields_are_read() -> None:
    spec = read_probe(
        probe_body(
            containers=["server"],
            modules=["tcp", "rx"],
            filter={"ports": [443, 80], "protocols": ["TCP"]},
            interval="1m30s",
            window="10m",
            duration="1h",
            suspend=True,
            overhead={"maxCPUPercent": 0.5},
            report={"maxPods": 3},
            metrics={"perPod": True},
            objectives=[
                {
                    "name": "reads",
                    "stage": "rx.total",
                    "percentile": "p99.9",
                    "max": "5ms",
                    "for": "2m",
                }
            ],
        )
    )

    assert spec.containers == {"server"}
    assert spec.modules == (Module.RX, Module.TCP)
    assert (spec.ports, spec.protocols) == ((80, 443), ("TCP",))
    assert (spec.interval_s, spec.window_s, spec.duration_s) == (90, 600, 3600)
    assert spec.suspend
    assert (spec.max_cpu_percent, spec.max_pods) == (0.5, 3)
    assert spec.metrics_per_pod
    objective = spec.objectives[0]
    assert objective == NamedObjective("reads", Objective("rx.total", 99.9, 5_000_000), 120)
    assert spec.bounds == (objective.bound,)


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"modules": ["rx", "dns"]}, "InvalidSpec", "unknown module 'dns'"),
        ({"interval": "soon"}, "InvalidSpec", "'soon' is not a duration"),
        (
            {"objectives": [{"name": "a", "stage": "ab.c", "percentile": "p9", "max": "1s"}]},
            "InvalidSpec",
            "unknown stage 'ab.c'",
        ),
        (
            {"modules": ["tcp"], "filter": {"protocols": ["UDP"]}},
            "InvalidSpec",
            "module tcp measures connections, but the filter allows only UDP",
        ),
        (
            {
                "modules": ["rx"],
                "objectives": [{"name": "a", "stage": "tcp.rtt", "percentile": "p99", "max": "1s"}],
            },
            "InvalidSpec",
            "objective a: tcp.rtt is measured by module tcp, which spec.modules lacks",
        ),
        (
            {
                "filter": {"protocols": ["UDP"]},
                "objectives": [{"name": "a", "stage": "tcp.rtt", "percentile": "p99", "max": "1s"}],
            },
            "InvalidSpec",
            "objective a: tcp.rtt applies to TCP only",
        ),
        ({"selector": {"matchLabels": {"a b": "c"}}}, "InvalidSelector", "'a b' is neither"),
        ({"selector": None}, "InvalidSpec", "cannot be read"),
    ],
)
def test_an_invalid_spec_that_a_schema_passed_is_refused_with_a_reason(
    spec: dict[str, Any], reason: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        read_probe(probe_body(**spec))
    assert caught.value.reason == reason
