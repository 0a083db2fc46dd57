"""What stands around the tests of other kernels: which kernels, what guests said, the matrix."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import BY_NAME
from tests.kernels.debian import RELEASES
from tests.kernels.errors import KernelError
from tests.kernels.guests import (
    ARGUMENTS_VARIABLE,
    DEFAULT,
    VARIABLE,
    cases_in,
    only_run,
    pytest_arguments,
    wanted_releases,
)
from tests.kernels.inside.results import (
    RESULTS_VARIABLE,
    KernelCoverage,
    read_coverage,
    write_coverage,
)
from tests.kernels.matrix import PLACE, cells_of, documented, head, matrix, write
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


def test_second_choices_of_hooks_are_left_out_unless_a_kernel_is_named() -> None:
    assert pytest_arguments({}) == "--first-choices-alone "
    assert pytest_arguments({VARIABLE: ""}) == "--first-choices-alone "
    assert pytest_arguments({VARIABLE: "6.1", ARGUMENTS_VARIABLE: "-k driver"}) == "-k driver"
    assert pytest_arguments({ARGUMENTS_VARIABLE: "-x"}).split() == ["--first-choices-alone", "-x"]


def test_an_unknown_kernel_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(KernelError, match=r"'4\.4' is no kernel of ours \(there are: 5\.10, "):
        wanted_releases("6.1,4.4")


def test_a_result_inside_that_is_no_pass_is_a_failure_outside(tmp_path: Path) -> None:
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


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_matrix_has_a_row_a_stage_and_states_each_reason_once() -> None:
    reason = "tp_btf/x: Linux 5.10.0 has none"
    missing = {
        name: StageCoverage(name, CoverageState.UNAVAILABLE, reason=reason) for name in BY_NAME
    }
    hook = StageCoverage("rx.total", CoverageState.ACTIVE, "tp_btf/a, fentry/c, tp_btf/b")
    part = StageCoverage("rx.stack", CoverageState.PARTIAL, "tp_btf/a", "UDP is not measured")
    columns = [
        KernelCoverage("5.10.0", "btf", {**missing, "rx.total": hook, "rx.stack": part}),
        KernelCoverage("5.10.0", "none", missing),
    ]
    text = matrix(columns)
    rows = rows_of(text)
    assert ["5.10, BTF", "`tp_btf`", "`fentry`", "-"] in rows
    assert ["5.10, neither", "-", "-", "-"] in rows
    assert [row[0].strip("`") for row in rows if len(row) == 2][2:] == list(BY_NAME)
    assert ["`rx.total`", "`a`, `b`, `c()`"] in rows
    assert ["`rx.stack`", "`a`, in part (2)"] in rows
    lines = text.splitlines()
    assert lines[-2:] == ["1. tp_btf/x: Linux 5.10 has none", "2. UDP is not measured"]
    cells = cells_of(text)
    assert cells["5.10, BTF"]["`rx.total`"] == "`fentry` c<br>`tp_btf` a, b"
    assert cells["5.10, BTF"]["`rx.stack`"] == "`tp_btf` a in part (UDP is not measured)"
    assert cells["5.10, neither"]["`rx.total`"] == "no (tp_btf/x: Linux 5.10 has none)"


def test_common_facts_of_kernels_stand_once_and_the_exceptions_apart() -> None:
    def measured(hooks: str, **others: StageCoverage) -> dict[str, StageCoverage]:
        whole = {name: StageCoverage(name, CoverageState.ACTIVE, hooks) for name in BY_NAME}
        return {**whole, **others}

    lacking = StageCoverage("rx.irq", CoverageState.UNAVAILABLE, reason="no irq_handler_entry")
    columns = [
        KernelCoverage("5.10.0", "btf", measured("raw_tp/a, kprobe/f", **{"rx.irq": lacking})),
        KernelCoverage("6.1.0", "btf", measured("tp_btf/a, fentry/f, kprobe/f")),
        KernelCoverage("7.2.0", "btf", measured("tp_btf/a, tp_btf/b")),
    ]
    text = matrix(columns)
    rows = rows_of(text)
    exceptions = [row for row in rows if len(row) == 3][2:]
    others = ", ".join(f"`{name}`" for name in BY_NAME if name != "rx.irq")
    assert ["`rx.irq`", "5.10, BTF", "no (1)"] in exceptions
    assert [others, "5.10, BTF", "with `f()`; without `b`"] in exceptions
    assert ["every stage", "6.1, BTF", "with `f()`, `kprobe/f`; without `b`"] in exceptions
    assert len(exceptions) == 3
    cells = cells_of(text)
    assert cells["5.10, BTF"]["`rx.total`"] == "`kprobe` f<br>`raw_tp` a"
    assert cells["6.1, BTF"]["`rx.irq`"] == "`fentry` f<br>`kprobe` f<br>`tp_btf` a"
    assert cells["7.2, BTF"]["`rx.irq`"] == "`tp_btf` a, b"
    assert cells["5.10, BTF"]["`rx.irq`"] == "no (no irq_handler_entry)"


def test_a_matrix_that_a_document_holds_is_read_column_by_column(tmp_path: Path) -> None:
    document = tmp_path / "kernels.md"
    document.write_text("# Kernels\n\n1. One\n\n" + "".join(PLACE) + "\n## More\n\n| a | b |\n")
    active = {
        name: StageCoverage(name, CoverageState.ACTIVE, "tp_btf/a, tp_btf/b") for name in BY_NAME
    }
    lacking = StageCoverage("rx.total", CoverageState.UNAVAILABLE, reason="no tcp_probe (5.10.0)")
    other = StageCoverage("rx.total", CoverageState.PARTIAL, "tp_btf/a", "UDP is not measured")
    columns = [
        KernelCoverage("5.10.0", "btf", {**active, "rx.total": lacking}),
        KernelCoverage("7.2.1", "btf", {**active, "rx.total": other}),
    ]
    write(columns, document)
    shown = cells_of(documented(document))
    assert shown["5.10, BTF"]["`rx.total`"] == "no (no tcp_probe (5.10))"
    assert shown["7.2, BTF"]["`rx.total`"] == "`tp_btf` a in part (UDP is not measured)"
    for column in columns:  # alone it has other numbers of notes
        assert cells_of(matrix([column]))[head(column)] == shown[head(column)]
    written = document.read_text()
    write(columns, document)
    assert document.read_text() == written
    assert written.startswith("# Kernels")
    assert written.endswith("## More\n\n| a | b |\n")


def test_a_document_without_a_place_for_the_matrix_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "kernels.md"
    document.write_text("# Kernels\n")
    with pytest.raises(KernelError, match=r"kernels\.md has no lines '<!-- matrix"):
        write([], document)


def test_a_second_run_of_guests_is_refused_with_the_first_ones_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENCYPROBE_CACHE", str(tmp_path))
    refused = pytest.raises(KernelError, match=rf"PID {os.getpid()} in .* holds {tmp_path}")
    with only_run(), refused, only_run():
        pass
    with only_run():
        pass


def test_results_are_plain_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path))
    write_coverage("none", [StageCoverage("rx.total", CoverageState.IDLE, reason="nobody asks")])
    content = json.loads((tmp_path / "none.coverage.json").read_text())
    assert content["stages"] == [["rx.total", "Idle", "", "nobody asks"]]
