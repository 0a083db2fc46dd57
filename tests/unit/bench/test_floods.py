"""The benchmark of floods: the reports that it sends, and what it makes of the figures."""

from __future__ import annotations

import math

from bench.floods import Row, answer_table, cost_table
from bench.hostile_agents import bad_report, huge_report
from bench.watched_process import Answers, Cost, counters, more
from latencyprobe.domain.stages import BY_NAME
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.link import MAX_INCOMING_BYTES
from latencyprobe_operator.agents.messages import check_size, reported_probe
from tools.fakes.samples import target_id

TARGETS = [target_id("a"), target_id("b")]
PAGE = """\
# HELP refused_total Refused.
# TYPE refused_total counter
refused_total{reason="crowded"} 3.0
refused_total{reason="expired"} 0.0
# HELP reports_total Reports.
# TYPE reports_total counter
reports_total 7.0
"""


def test_a_bad_report_is_of_a_legal_size() -> None:
    report = bad_report("checkout", TARGETS, 0)

    assert 0.9 * MAX_INCOMING_BYTES < report.ByteSize() < MAX_INCOMING_BYTES
    check_size(report)


def test_a_bad_report_is_bad_in_every_respect() -> None:
    report = bad_report("checkout", TARGETS, 0)

    assert math.isnan(report.overhead.cpu_percent)
    probe = reported_probe(report.probes[0], asked={("checkout", each) for each in TARGETS})
    assert probe.unasked > 0
    assert any(set(each.unknown_stages) - BY_NAME.keys() for each in probe.targets)
    reasons = " ".join(each.corruption or "" for each in probe.targets)
    assert "sampling ratio nan" in reasons
    assert "it must be below 2^53" in reasons
    assert any(each.measurement.counters for each in probe.targets if not each.corruption)


def test_each_bad_report_has_counters_of_its_own() -> None:
    names = [
        {name for target in report.probes[0].targets for name in target.counters}
        for report in (bad_report("checkout", TARGETS, number) for number in range(2))
    ]

    assert names[0]
    assert names[1]
    assert not names[0] & names[1]


def test_a_huge_report_is_of_16_mib() -> None:
    assert 15 << 20 < len(huge_report().SerializeToString()) <= 16 << 20
    assert pb.Report.FromString(huge_report().SerializeToString()[:80]).coverage


def test_answers_show_the_median_the_worst_and_the_failures() -> None:
    assert str(Answers.of([0.001, 0.002, 0.5])) == "2 / 500"
    assert str(Answers.of([0.001, 0.002, 0.5], ["late", "late"])) == "2 / 500, 3 of 5"
    assert str(Answers.of([], ["late"] * 4)) == "none of 4"
    assert str(Answers.of([])) == ""
    assert Answers.of([], ["late", "early", "late"]).reasons == ("early", "late")


def test_counters_are_found_by_label_or_name_and_only_growth_is_shown() -> None:
    before = counters(PAGE, "refused_total", "reports_total")
    after = counters(PAGE.replace("3.0", "5.0"), "refused_total", "reports_total")

    assert before == {"crowded": 3, "expired": 0, "reports": 7}
    assert more(after, before) == {"crowded": 2}


def test_each_flood_is_a_row_of_both_tables() -> None:
    answers = {name: Answers.of([0.1]) for name in ("calls", "connections", "scrapes")}
    rows = [
        Row("none", Cost(1.0, 0.1, 50.0, 51.0, 50.0), {}, {}, answers),
        Row("silent", Cost(9.0, 2.0, 50.0, 80.0, 60.0), {"opened": 2000}, {"crowded": 9}, answers),
    ]

    assert cost_table("agent", rows).row_count == 2
    assert answer_table("agent", rows).row_count == 2
    assert list(cost_table("agent", rows).columns[6].cells) == ["", "2,000 opened"]
