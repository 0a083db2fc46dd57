"""The documents of the API, key for key: `-o json` of a run and of a trace, and a probe's status.

A change of a golden file is a change of the API. `LATENCYPROBE_WRITE_GOLDEN=1` writes them again.
Sentences for people are left out of them: those may be reworded.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from latencyprobe.commands.packet_lines import json_line
from latencyprobe.commands.terminal import OutputFormat, write_report
from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.document import LatencyReport, Node, TargetResult
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    NOTHING,
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.names import Names, named
from latencyprobe.domain.overhead import HookOverhead, ProgramsOverhead
from latencyprobe.domain.packets import Endpoint, TracedPacket, User
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.report import report_on, report_on_node
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_operator.api.spec import read_probe
from latencyprobe_operator.api.status_fields import NodeState, Phase
from latencyprobe_operator.probes import status
from latencyprobe_operator.probes.facts import NodeFacts, PodFacts, ProbeFacts

GOLDEN = Path(__file__).parent / "golden"
WRITE_VARIABLE = "LATENCYPROBE_WRITE_GOLDEN"
PROSE = ("evidence", "message", "nextStep")
NOW = "2026-07-01T12:00:00Z"
LATER = "2026-07-01T12:01:00Z"


def of(duration_ns: int, **losses: float) -> StageMeasurement:
    return StageMeasurement(Histogram.of([duration_ns] * 200), **losses)  # type: ignore[arg-type]


SLOW = Measurement(
    {
        "rx.stack": of(2_600_000),
        "rx.socket": of(7_400_000, lost=3, unmatched=2, clamped=1, sampling_ratio=0.25),
        "rx.total": of(10_000_000),
        "tcp.rtt": of(50_000),
    },
    {"retransmits": 1234, "drops.NO_SOCKET": 2},
    {"TcpExtListenDrops": 5, "UdpRcvbufErrors": 0},
)
NODE = NodeMeasurement(
    {
        NodeStage("rx.softirq", "NET_RX"): of(1_000_000),
        NodeStage("rx.softirq", "TIMER"): of(2_000, lost=4),
    },
    {"softnetTimeSqueezed": 12_345, "softnetDropped": 0},
)
DATABASE = Endpoint(ip_address("198.51.100.7"), 5432)
IDENTITIES = replace(
    report_on(SLOW, DEFAULT_MODULES, NODE, uncounted={"rtos"}),
    pending={"missingAnswers": Pending(15, 15, oldest_ns=5_900_000_000, waiting_ns=80_000_000_000)},
    peers=(
        Peer(DATABASE, "missingAnswers", 15, 5_900_000_000, 80_000_000_000),
        Peer(Endpoint(DATABASE.address, 80), "firstAnswers", 1, 3_000_000_000, 3_000_000_000),
    ),
    cgroups=(Cgroup(4711, pod_uid="u", container_id="c", path="/kubepods/podu/c"), Cgroup(1)),
)
REPORT = LatencyReport(
    node=Node(
        "nœud-a",
        "6.18.0",
        "x86_64",
        "btf",
        "v2",
        "0.1.0",
        report=report_on_node(NODE, DEFAULT_MODULES),
    ),
    duration_seconds=9.98765,
    targets=(
        TargetResult(
            name="nginx[42]",
            pids=(42, 43),
            cgroup="/web",
            report=report_on(SLOW, DEFAULT_MODULES, NODE),
            message="it has exited",
        ),
        TargetResult(name="b", pids=(), cgroup="", report=report_on(NOTHING, DEFAULT_MODULES)),
    ),
    coverage=(
        StageCoverage("rx.total", CoverageState.ACTIVE, hook="tp_btf/tcp_probe"),
        StageCoverage("tx.stack", CoverageState.PARTIAL, hook="x", reason="TCP only"),
        StageCoverage("rx.host", CoverageState.UNAVAILABLE, reason="no such tracepoint"),
    ),
    overhead=ProgramsOverhead(
        0.43219,
        110.0,
        "it was not measured",
        ("sched",),
        (
            HookOverhead("tp_btf/tcp_probe", 0.40019, permanent=False),
            HookOverhead("tp_btf/kfree_skb", 0.032, permanent=True),
        ),
    ),
)
PACKETS = (
    TracedPacket(
        ended_unix_ns=1_700_000_000_123_456_789,
        user=User(4242, 4243, "sërver"),
        cpu=1,
        protocol="TCP",
        local=Endpoint(ip_address("198.51.100.2"), 7000),
        remote=Endpoint(ip_address("2001:db8::1"), 40752),
        stages_ns={"rx.softirq": 500, "rx.stack": 1_500, "rx.total": 2_000},
    ),
    TracedPacket(
        ended_unix_ns=1_700_000_000_000_000_000,
        user=None,
        cpu=12,
        protocol="UDP",
        local=None,
        remote=None,
        stages_ns={"tx.qdisc": 16_000_000, "tx.total": 16_000_000},
    ),
)
PROBE = {
    "metadata": {"uid": "u", "namespace": "shop", "name": "checkout", "generation": 3},
    "spec": {
        "selector": {},
        "objectives": [{"name": "a", "stage": "rx.total", "percentile": "p99", "max": "5ms"}],
    },
}


def facts(**parts: Any) -> ProbeFacts:
    """A probe with all that a status can say, but for `parts`."""
    gaps = (
        StageCoverage("tx.stack", CoverageState.PARTIAL, "x", "TCP only"),
        StageCoverage("rx.host", CoverageState.UNAVAILABLE, "", "no such tracepoint"),
    )
    whole: dict[str, Any] = {
        "spec": replace(read_probe(PROBE), node_figures=True),
        "generation": 3,
        "matched_pods": 3,
        "containers": 4,
        "nodes": [
            NodeFacts("a", NodeState.READY, attached=2, cpu_percent=0.5),
            NodeFacts("b", NodeState.PARTIAL, gaps=gaps, attached=1),
            NodeFacts("c", NodeState.STALE, "does not report", last_report=1_700_000_000.0),
        ],
        "pods": [
            PodFacts(
                "checkout-1",
                "a",
                ("server", "sidecar"),
                named(
                    IDENTITIES,
                    Names({DATABASE: "pod shop/db-0"}, {4711: "pod shop/cart-1, container server"}),
                ),
            ),
            PodFacts("checkout-2", "b", ("server",), report_on(NOTHING, DEFAULT_MODULES)),
        ],
        "omitted_pods": 1,
        "merged": SLOW,
        "node_context": {"a": NODE, "b": NodeMeasurement()},
        "start_time": NOW,
        "last_report_time": LATER,
        **parts,
    }
    return ProbeFacts(**whole)


def hold(name: str, *documents: Mapping[str, Any]) -> None:
    """Compare with the golden file of this name."""
    path = GOLDEN / name
    text = "".join(f"{json.dumps(without_prose(d), indent=2)}\n" for d in documents)
    if os.environ.get(WRITE_VARIABLE):
        path.write_text(text)
    assert text == path.read_text()


def without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "…" if key in PROSE else without_prose(v) for key, v in value.items()}
    return [without_prose(each) for each in value] if isinstance(value, list) else value


def test_a_runs_report() -> None:
    stream = io.StringIO()
    write_report(REPORT, OutputFormat.JSON, stream)
    hold("run.json", json.loads(stream.getvalue()))


def test_a_traces_lines() -> None:
    hold("trace.json", *(json.loads(json_line(packet)) for packet in PACKETS))


def test_the_status_of_a_probe_that_measures() -> None:
    hold("status_running.json", status.build(facts(), now=LATER))


def test_the_status_of_a_probe_that_is_over() -> None:
    running = status.build(facts(), now=NOW)
    rest = facts(phase=Phase.COMPLETED, previous=running, nodes=[], matched_pods=0)
    hold("status_completed.json", status.build(rest, now=LATER))


def test_the_status_of_a_probe_without_pods() -> None:
    nothing = ProbeFacts(spec=read_probe(PROBE), generation=1)
    hold("status_empty.json", status.build(nothing, now=NOW))
