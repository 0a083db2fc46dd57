"""The report as a document for programs and as a table for people."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from ipaddress import ip_address

import pytest
from rich.console import Console

from latencyprobe.commands.render import BAR_WIDTH, render_live, render_report
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
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.report import report_on, report_on_node
from latencyprobe.domain.serialisation import document_of
from latencyprobe.domain.stages import DEFAULT_MODULES, Module


def of(duration_ns: int, **losses: float) -> StageMeasurement:
    return StageMeasurement(Histogram.of([duration_ns] * 200), **losses)  # type: ignore[arg-type]


SLOW = Measurement(
    {
        "rx.stack": of(2_500_000),
        "rx.socket": of(7_500_000, lost=3, unmatched=2, clamped=1, sampling_ratio=0.25),
        "rx.total": of(10_000_000),
        "tcp.rtt": of(50_000),
    },
    {"retransmits": 1234},
    {"TcpExtListenDrops": 5, "UdpRcvbufErrors": 0},
)


def report(
    measurement: Measurement = SLOW,
    *,
    message: str = "",
    modules: tuple[Module, ...] = DEFAULT_MODULES,
) -> LatencyReport:
    return LatencyReport(
        node=Node("node-a", "6.18.0", "x86_64", "btf", "v2", "0.1.0"),
        duration_seconds=9.98765,
        targets=(
            TargetResult(
                name="nginx[42]",
                pids=(42, 43),
                cgroup="/web",
                report=report_on(measurement, modules),
                message=message,
            ),
        ),
        coverage=(
            StageCoverage("rx.total", CoverageState.ACTIVE, hook="tp_btf/tcp_probe"),
            StageCoverage("tx.stack", CoverageState.PARTIAL, hook="x", reason="TCP only"),
            StageCoverage("rx.host", CoverageState.UNAVAILABLE, reason="no such tracepoint"),
        ),
    )


NODE = NodeMeasurement(
    {
        NodeStage("rx.softirq", "NET_RX"): of(1_000_000),
        NodeStage("rx.softirq", "TIMER"): of(2_000, lost=4),
    },
    {"softnetTimeSqueezed": 12_345, "softnetDropped": 0},
)


def with_node(measurement: NodeMeasurement) -> LatencyReport:
    whole = report()
    node = report_on_node(measurement, DEFAULT_MODULES)
    return replace(whole, node=replace(whole.node, report=node))


def table(latency_report: LatencyReport) -> str:
    stream = io.StringIO()
    write_report(latency_report, OutputFormat.TABLE, stream)
    return stream.getvalue()


def on_a_terminal(latency_report: LatencyReport, columns: int) -> str:
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(render_report(latency_report))
    return shown.get()


def line_of(text: str, beginning: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(beginning))


def test_pending_figures_have_a_line() -> None:
    waiting = Measurement(
        pending={
            "unansweredRequests": Pending(1, 1, 0, 2_000_000_000, 2_000_000_000),
            "unreadSegments": Pending(1200, 20, 40_000, 6_100_000_000, 99_000_000_000),
        }
    )
    line = line_of(on_a_terminal(report(SLOW + waiting), 200), "pending")
    assert line.strip() == (
        "pending: 1,200 unread segments in 20 sockets, the oldest for 6.1s; "
        "1 unanswered request for 2s"
    )
    assert "pending" not in on_a_terminal(report(SLOW), 200)


def test_peers_that_requests_wait_for_have_a_line() -> None:
    peer = Endpoint(ip_address("10.0.0.7"), 7000)
    waiting = Measurement(
        pending={"missingAnswers": Pending(15, 15)},
        peers=(Peer(peer, "missingAnswers", 15, 5_200_000_000, 60_000_000_000),),
    )
    line = line_of(on_a_terminal(report(SLOW + waiting), 200), "peers")
    assert line.strip() == "peers: 10.0.0.7:7000 (15 missing answers, the oldest for 5.2s)"
    assert "peers" not in on_a_terminal(report(SLOW), 200)


def test_cgroups_that_the_threads_waited_for_have_a_line() -> None:
    whole = report(SLOW)
    (target,) = whole.targets
    cgroups = (Cgroup(4711, "cgroup /system.slice/backup.service"), Cgroup(1, "cgroup /"))
    target = replace(target, report=replace(target.report, cgroups=cgroups))
    line = line_of(on_a_terminal(replace(whole, targets=(target,)), 200), "waited for")
    assert line.strip() == (
        "waited for: 4711 is cgroup /system.slice/backup.service, 1 is cgroup /"
    )
    assert "waited for" not in on_a_terminal(whole, 200)


def test_the_wait_for_a_cgroup_is_shown_as_a_time() -> None:
    waits = Measurement(counters={"waitedForCgroup.4711": 4_592_641_834})
    line = line_of(on_a_terminal(report(SLOW + waits, modules=tuple(Module)), 200), "counters")
    assert "waitedForCgroup.4711 4.59s" in line


def test_the_document_has_the_fields_that_the_api_promises() -> None:
    document = document_of(report())
    assert {key: document[key] for key in ("apiVersion", "kind", "node", "durationSeconds")} == {
        "apiVersion": "latencyprobe.io/v1alpha1",
        "kind": "LatencyReport",
        "node": {
            "name": "node-a",
            "kernel": "6.18.0",
            "architecture": "x86_64",
            "kernelTypes": "btf",
            "cgroupVersion": "v2",
            "agentVersion": "0.1.0",
            "stages": [],
            "counters": {},
        },
        "durationSeconds": 9.988,
    }
    (target,) = document["targets"]
    assert list(target) == [
        "name",
        "pids",
        "cgroup",
        "stages",
        "counters",
        "netnsCounters",
        "verdict",
        "pending",
    ]
    assert target["netnsCounters"] == {"TcpExtListenDrops": 5}
    assert target["pids"] == [42, 43]
    assert [stage["name"] for stage in target["stages"]][:3] == [
        "rx.stack",
        "rx.socket",
        "rx.total",
    ]
    assert target["verdict"]["bottleneck"] == "SlowReader"
    assert document["coverage"][1] == {
        "name": "tx.stack",
        "state": "Partial",
        "hook": "x",
        "reason": "TCP only",
    }


def test_json_output_is_one_document() -> None:
    stream = io.StringIO()
    write_report(report(), OutputFormat.JSON, stream)
    assert json.loads(stream.getvalue()) == document_of(report())


def test_a_target_with_a_problem_says_so_in_the_document() -> None:
    (target,) = document_of(report(message="it has exited"))["targets"]
    assert target["message"] == "it has exited"


def test_the_table_shows_each_total_above_its_indented_parts() -> None:
    names = re.findall(r"^ ( *[rt][a-z]+\.[a-z]+) ", table(report()), re.MULTILINE)
    assert names[:4] == ["rx.total", "  rx.stack", "  rx.socket", "tcp.rtt"]


def test_a_stage_within_a_part_stands_below_it_and_begins_where_it_does() -> None:
    starved = SLOW + Measurement({"rx.wakeup": of(2_500_000)})
    text = table(report(starved, modules=tuple(Module)))
    names = re.findall(r"^ ( *[rt][a-z]+\.[a-z]+) ", text, re.MULTILINE)
    assert names[:4] == ["rx.total", "  rx.stack", "  rx.socket", "    rx.wakeup"]
    assert "25.0%" in line_of(text, "rx.wakeup")
    begins = {line_of(text, name).index("█") for name in ("rx.socket", "rx.wakeup")}
    assert len(begins) == 1


def test_a_bar_begins_where_the_one_before_it_ended() -> None:
    text = table(report())
    quarter = BAR_WIDTH // 4
    assert "█" * BAR_WIDTH in line_of(text, "rx.total")
    assert line_of(text, "rx.stack").count("█") == quarter
    socket = line_of(text, "rx.socket")
    assert "█" * (BAR_WIDTH - quarter) in socket
    assert socket.index("█") == line_of(text, "rx.stack").index("█") + quarter


def test_the_table_shows_figures_losses_counters_verdict_and_coverage() -> None:
    text = table(report())
    assert line_of(text, "rx.socket").split()[-6:] == ["75.0%", "200", *["7.5ms"] * 4]
    assert "rx.socket: 3 lost, 2 unmatched, 1 clamped to 0, sampled 25.0% of the packets" in text
    assert "counters: retransmits 1,234\n" in text
    assert "connectRefused" not in text
    assert "verdict: SlowReader in rx.socket, 92%" in text
    assert "  - rx.socket: 7.5ms on average, p50 7.5ms, p99 7.5ms, 200 times" in text
    assert "  next: Profile the application between two reads" in text
    assert re.search(r"tx\.stack +partial +TCP only", text)
    assert re.search(r"rx\.host +unavailable +no such tracepoint", text)
    assert "tp_btf/tcp_probe" not in text


def test_the_node_has_its_own_stages_and_counters_in_the_document() -> None:
    node = document_of(with_node(NODE))["node"]
    assert [(stage["name"], stage["detail"]) for stage in node["stages"]] == [
        ("rx.softirq", "NET_RX"),
        ("rx.softirq", "TIMER"),
    ]
    assert node["stages"][0]["p99Ns"] == 1_000_000
    assert node["counters"] == {"softnetTimeSqueezed": 12_345}


def test_the_table_shows_the_namespaces_counters_apart_and_the_node_below_the_targets() -> None:
    text = table(with_node(NODE))
    assert "network namespace: TcpExtListenDrops 5\n" in text
    node = text[text.index("node-a  the whole node") :]
    assert line_of(node, "rx.softirq").split() == ["rx.softirq", "NET_RX", "200", *["1ms"] * 4]
    assert "rx.softirq TIMER: 4 lost" in node
    assert "counters: softnetTimeSqueezed 12,345\n" in node


def test_a_node_of_which_nothing_is_known_takes_no_room() -> None:
    assert "the whole node" not in table(report())


def test_many_interrupt_handlers_are_counted_not_listed() -> None:
    many = {NodeStage("rx.softirq", f"handler-{n:02}"): of(1000 * (n + 1)) for n in range(20)}
    text = table(with_node(NodeMeasurement(many)))
    assert text.count("handler-") == 8
    assert "handler-19" in text
    assert re.search(r"rx\.softirq +and 12 more", text)


def test_a_target_that_saw_nothing_is_no_empty_table() -> None:
    text = table(report(NOTHING, message="gone: it has exited"))
    assert "no packets seen" in text
    assert "gone: it has exited" in text
    assert "verdict: InsufficientData" in text


def test_many_processes_are_counted_not_listed() -> None:
    target = TargetResult("web", tuple(range(1, 21)), "", report_on(NOTHING, DEFAULT_MODULES))
    text = table(LatencyReport(report().node, 1, (target,), ()))
    assert "pids 1, 2, 3, 4, 5, 6 and 14 more" in text


def test_there_are_no_colours_off_a_terminal() -> None:
    assert "\x1b" not in table(report())


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_colours_on_a_terminal_obey_no_color(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(render_report(report()))
    assert ("\x1b[31" in captured.get() or "\x1b[1;31" in captured.get()) == coloured


def test_the_live_view_fits_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        console.print(render_live(report()))
    assert line_of(captured.get(), "rx.socket").split()[-4:] == ["75.0%", "200", "7.5ms", "7.5ms"]
    assert "…" not in captured.get()


@pytest.mark.parametrize("columns", [72, 80, 200])
def test_a_narrow_terminal_shortens_the_bars_and_no_figure(columns: int) -> None:
    measurement = Measurement(
        {
            name: StageMeasurement(Histogram.of([123_456_789] * 12_345))
            for name in ("rx.softirq", "rx.total", "tcp.handshake")
        }
    )
    shown = on_a_terminal(report(measurement), columns)
    for name in ("rx.softirq", "rx.total", "tcp.handshake"):
        assert line_of(shown, name).split()[-5:] == ["12,345", *["123ms"] * 4]
    assert max(map(len, shown.splitlines())) <= columns
