"""What stands around the tests of other kernels: which kernels, what guests said, the matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latencyprobe.coverage import CoverageState, StageCoverage
from latencyprobe.stages import BY_NAME
from tests.kernels.debian import RELEASES
from tests.kernels.errors import KernelError
from tests.kernels.guests import DEFAULT, cases_in, wanted_releases
from tests.kernels.inside.results import (
    RESULTS_VARIABLE,
    KernelCoverage,
    read_coverage,
    write_coverage,
)
from tests.kernels.matrix import matrix
from tests.kernels.vm import Console

JUNIT = """\
<testsuites><testsuite name="pytest">
<testcase classname="tests.live.one" name="test_good"/>
<testcase classname="tests.live.one" name="test_bad"><failure message="1 != 2">why</failure>
</testcase>
<testcase classname="tests.live.two" name="test_not_set_up"><error message="no veth">how</error>
</testcase>
<testcase classname="tests.live.two" name="test_left_out"><skipped message="not here"/></testcase>
</testsuite></testsuites>
"""


def test_one_kernel_is_booted_unless_others_are_named() -> None:
    assert [release.series for release in wanted_releases("")] == [DEFAULT]
    assert [release.series for release in wanted_releases("5.10, 7")] == ["5.10", "7"]
    assert wanted_releases("all") == RELEASES


def test_an_unknown_kernel_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(KernelError, match=r"'4\.4' is no kernel of ours \(there are: 5\.10, "):
        wanted_releases("6.1,4.4")


def test_whatever_is_no_pass_inside_is_a_failure_outside(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(JUNIT)
    good, bad, not_set_up, left_out = cases_in(report)
    assert (good.name, good.failure) == ("tests.live.one::test_good", None)
    assert bad.failure == "failure: 1 != 2\nwhy"
    assert not_set_up.failure == "error: no veth\nhow"
    assert left_out.failure == "skipped: not here\n"


def test_a_kernels_complaints_are_found_in_its_console(tmp_path: Path) -> None:
    console = Console(tmp_path / "console.log")
    console.path.write_text("[ 1.0] all is well\n[ 2.0] BUG: kernel NULL pointer\n[ 3.0] bye\n")
    assert console.complaints() == ["[ 2.0] BUG: kernel NULL pointer"]
    assert console.tail().endswith("bye")


def test_coverage_goes_out_of_a_guest_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path))
    stages = [
        StageCoverage("rx.total", CoverageState.ACTIVE, "tp_btf/tcp_probe"),
        StageCoverage("tx.total", CoverageState.UNAVAILABLE, reason="no such tracepoint"),
    ]
    write_coverage("btf", stages)
    (column,) = read_coverage(tmp_path)
    assert column.types == "btf"
    assert list(column.stages.values()) == stages


def test_the_matrix_has_a_row_a_stage_and_tells_each_reason_once() -> None:
    reason = "tp_btf/tcp_probe: EPERM"
    missing = {
        name: StageCoverage(name, CoverageState.UNAVAILABLE, reason=reason) for name in BY_NAME
    }
    hook = StageCoverage("rx.total", CoverageState.ACTIVE, "tp_btf/a, tp_btf/b")
    part = StageCoverage("rx.stack", CoverageState.PARTIAL, "tp_btf/a", "UDP is not measured")
    columns = [
        KernelCoverage("5.10.0", "btf", {**missing, "rx.total": hook, "rx.stack": part}),
        KernelCoverage("5.10.0", "none", missing),
    ]
    lines = matrix(columns).splitlines()
    assert lines[0] == "| stage | 5.10.0, BTF | 5.10.0, neither |"
    rows = {line.split("`")[1]: line for line in lines[2:] if line.startswith("| `")}
    assert list(rows) == list(BY_NAME)
    assert "| `tp_btf/a`<br>`tp_btf/b` | — (1) |" in rows["rx.total"]
    assert "| `tp_btf/a` in part (2) | — (1) |" in rows["rx.stack"]
    assert lines[-2:] == [f"1. {reason}", "2. UDP is not measured"]


def test_results_are_plain_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path))
    write_coverage("none", [StageCoverage("rx.total", CoverageState.IDLE, reason="nobody asks")])
    content = json.loads((tmp_path / "none.coverage.json").read_text())
    assert content["stages"] == [["rx.total", "idle", "", "nobody asks"]]
