"""What a report says of a measurement, and under which names."""

from __future__ import annotations

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    NOTHING,
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.report import report_on, report_on_node
from latencyprobe.domain.serialisation import document_of
from latencyprobe.domain.stages import DEFAULT_MODULES, Module, stages_of


def of(*durations_ns: int) -> StageMeasurement:
    return StageMeasurement(Histogram.of(durations_ns))


MEASUREMENT = Measurement(
    {
        "tx.total": of(10_000),
        "rx.total": of(1_000, 3_000),
        "rx.stack": of(500, 500),
        "rx.socket": StageMeasurement(
            Histogram.of([500, 2_500]), lost=1, unmatched=2, clamped=3, sampling_ratio=0.5
        ),
        "tcp.rtt": of(80_000),
    },
    {"retransmits": 4, "headOfLineSegments": 1},
)


def test_stages_come_in_the_vocabularys_order_and_only_if_seen() -> None:
    report = report_on(MEASUREMENT, DEFAULT_MODULES)
    assert [stage.name for stage in report.stages] == [
        "rx.stack",
        "rx.socket",
        "rx.total",
        "tx.total",
        "tcp.rtt",
    ]
    assert report.stage("rx.host") is None


def test_only_the_modules_asked_for_are_reported() -> None:
    report = report_on(MEASUREMENT, [Module.RX])
    assert [stage.name for stage in report.stages] == ["rx.stack", "rx.socket", "rx.total"]
    of_dns = {"dnsResponseNs": 0, "dnsQueries": 0, "dnsQueriesEnded": 0}
    of_others = {"fragmentedPackets": 0, "mptcpSegments": 0}
    of_dns |= {"dnsQueriesRepeated": 0, "dnsQueriesRepeatedNs": 0, "spareReplies": 0}
    others = {"readerDelayNs": 0, **of_others, **of_dns}
    assert report.counters == {"headOfLineSegments": 1, **others}


def test_the_verdict_rests_on_the_modules_asked_for() -> None:
    packets = {
        "rx.total": of(*[5_000_000] * 100),
        "rx.socket": of(*[5_000_000] * 100),
        "tx.total": of(*[9_000_000] * 100),
        "tx.qdisc": of(*[9_000_000] * 100),
    }
    both = report_on(Measurement(packets), DEFAULT_MODULES)
    rx_alone = report_on(Measurement(packets), [Module.RX])
    assert both.verdict.bottleneck is Bottleneck.QDISC_BACKLOG
    assert rx_alone.verdict.bottleneck is Bottleneck.SLOW_READER


def test_a_stages_document_has_the_apis_names_and_units() -> None:
    stage = report_on(MEASUREMENT, DEFAULT_MODULES).stage("rx.socket")
    assert stage is not None
    assert document_of(stage) == {
        "name": "rx.socket",
        "count": 2,
        "meanNs": 1_500,
        "p50Ns": 519,  # the bound of its bucket
        "p90Ns": stage.p90_ns,
        "p99Ns": stage.p99_ns,
        "maxNs": 2_500,
        "sharePercent": 75.0,
        "lost": 1,
        "unmatched": 2,
        "clamped": 3,
        "samplingRatio": 0.5,
    }


def test_shares_of_a_total_add_up_and_a_total_has_none() -> None:
    report = report_on(MEASUREMENT, DEFAULT_MODULES)
    shares = [stage.share_percent for stage in report.stages if stage.name.startswith("rx.")]
    assert shares == [25.0, 75.0, None]
    total = report.stage("rx.total")
    assert total is not None
    assert "sharePercent" not in document_of(total)


def test_a_verdict_is_of_all_stages_though_only_some_have_figures() -> None:
    packets = {"rx.total": of(*[5_000_000] * 100), "rx.socket": of(*[4_000_000] * 100)}
    whole = report_on(Measurement(packets), DEFAULT_MODULES)
    brief = report_on(Measurement(packets), DEFAULT_MODULES, only_stages={"rx.total"})
    assert brief.stages == (whole.stage("rx.total"),)
    assert brief.verdict == whole.verdict


def test_counters_that_saw_nothing_are_0_not_absent() -> None:
    report = report_on(NOTHING, [Module.TCP])
    assert report.stages == ()
    assert set(report.counters.values()) == {0}
    assert "connectRefused" in report.counters


def test_counters_that_the_node_cannot_count_are_absent_not_0() -> None:
    counters = report_on(NOTHING, [Module.TCP], uncounted={"rtos"}).counters
    assert "rtos" not in counters
    assert counters["retransmits"] == 0


def test_a_verdicts_document_names_cause_share_evidence_and_next_step() -> None:
    packets = {"rx.stack": of(*[1_000_000] * 100), "rx.socket": of(*[4_000_000] * 100)}
    document = document_of(report_on(Measurement(packets), DEFAULT_MODULES).verdict)
    assert document["bottleneck"] == "SlowReader"
    assert document["stage"] == "rx.socket"
    assert document["sharePercent"] == 80
    assert document["evidence"][0] == "rx.socket: 4ms on average, p50 4ms, p99 4ms, 100 times"
    assert document["nextStep"]


def test_counters_of_cgroups_stand_before_drops_with_any_modules_if_they_grew() -> None:
    counters = {"drops.NO_SOCKET": 1, "cpuPeriods": 4, "cpuThrottledNs": 7, "cpuPressureNs": 0}
    of_tcp = report_on(Measurement(counters=counters), [Module.TCP]).counters
    assert list(of_tcp)[-3:] == ["cpuThrottledNs", "cpuPeriods", "drops.NO_SOCKET"]
    of_irq = report_on(Measurement(counters=counters), [Module.IRQ]).counters
    assert of_irq == {"cpuThrottledNs": 7, "cpuPeriods": 4}


def test_a_namespaces_counters_are_kept_apart_and_only_what_happened() -> None:
    netns = Measurement(netns_counters={"UdpRcvbufErrors": 0, "TcpExtListenDrops": 2})
    report = report_on(MEASUREMENT + netns, [Module.RX])
    assert report.netns_counters == {"TcpExtListenDrops": 2}
    assert "TcpExtListenDrops" not in report.counters


def test_a_nodes_costliest_details_come_first_within_each_stage() -> None:
    node = NodeMeasurement(
        {
            NodeStage("rx.stack", "b"): of(100, 100),
            NodeStage("rx.softirq", "a"): of(1),
            NodeStage("rx.stack", "c"): of(150),
            NodeStage("tcp.rtt", "other module"): of(1),
        },
        {"z": 1, "a": 2, "never": 0},
    )
    report = report_on_node(node, [Module.RX])
    assert [(stage.name, stage.detail) for stage in report.stages] == [
        ("rx.softirq", "a"),
        ("rx.stack", "b"),
        ("rx.stack", "c"),
    ]
    assert list(report.counters.items()) == [("a", 2), ("z", 1)]


def test_a_module_that_is_stopped_leaves_its_part_unknown() -> None:
    """Of a module that would exceed the budget, coverage has no stage."""
    quick = Measurement({"rx.total": StageMeasurement(Histogram.of([5000] * 200))})
    stopped = {stage.name for stage in stages_of([Module.TCP])}
    assert report_on(quick, DEFAULT_MODULES).verdict.next_step.startswith("Nothing to do")
    verdict = report_on(quick, DEFAULT_MODULES, uncounted=stopped).verdict
    assert "module tcp does not measure: losses" in verdict.evidence[-1]
    partly = report_on(quick, DEFAULT_MODULES, uncounted={"tcp.rtt"}).verdict
    assert partly.next_step.startswith("Nothing to do")
