"""The runner of all tiers: nothing turns green because nothing was looked at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.run_tiers import (
    SKIP_VARIABLE,
    TIERS,
    Outcome,
    Programs,
    Pytest,
    Result,
    TestCounts,
    Tier,
    UnknownTierError,
    Verdict,
    closing_table,
    counts_in,
    duration,
    judge_pytest,
    main,
    need_programs,
    run_tiers,
    succeeded,
    tiers_named,
)


class Scripted:
    """Checks with a given verdict; `runs` counts how often they ran."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self.runs = 0

    def run(self) -> Verdict:
        self.runs += 1
        return self._verdict


class Interrupted:
    """Checks during which somebody presses Ctrl-C."""

    def run(self) -> Verdict:
        raise KeyboardInterrupt


def good() -> Scripted:
    return Scripted(Verdict(True, "7 passed, 0 failed", TestCounts(passed=7)))


def bad() -> Scripted:
    return Scripted(Verdict(False, "6 passed, 1 failed", TestCounts(passed=6, failed=1)))


@pytest.fixture
def folder_of_tests(tmp_path: Path) -> Path:
    """A folder for tests with a configuration of its own, away from this project's."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def test_tiers_run_from_the_cheapest_to_the_dearest() -> None:
    assert [tier.name for tier in TIERS] == [
        "lint",
        "unit",
        "chart",
        "live",
        "cluster",
        "kernels",
    ]


def test_every_tier_runs_even_after_a_failure() -> None:
    first, second = bad(), good()
    results = run_tiers([Tier("first", first), Tier("second", second)])
    assert (first.runs, second.runs) == (1, 1)
    assert [result.outcome for result in results] == [Outcome.FAILED, Outcome.PASSED]
    assert not succeeded(results)


def test_a_tier_that_cannot_run_here_fails_and_says_what_is_missing() -> None:
    checks = good()
    needs = (lambda: "root is needed", lambda: None, need_programs("sh", "no-such-program"))
    (result,) = run_tiers([Tier("live", checks, needs)])
    assert checks.runs == 0
    assert result.outcome is Outcome.FAILED
    assert result.detail == "cannot run here: root is needed; not on the PATH: no-such-program"


def test_a_tier_left_out_does_not_run_and_is_said_loudly() -> None:
    cluster = good()
    results = run_tiers([Tier("unit", good()), Tier("cluster", cluster)], left_out=["cluster"])
    assert cluster.runs == 0
    assert succeeded(results)
    assert f"!!! NOT TESTED, left out by {SKIP_VARIABLE}: cluster !!!" in closing_table(results)


def test_leaving_out_everything_is_no_success() -> None:
    assert not succeeded(run_tiers([Tier("unit", good())], left_out=["unit"]))
    assert not succeeded([])


def test_an_interruption_ends_the_run_and_fails_it() -> None:
    later = good()
    results = run_tiers([Tier("live", Interrupted()), Tier("cluster", later)])
    assert later.runs == 0
    assert [(result.outcome, result.detail) for result in results] == [
        (Outcome.FAILED, "interrupted")
    ]


@pytest.mark.parametrize(
    ("exit_code", "counts", "verdict", "detail"),
    [
        (0, TestCounts(3), True, "3 passed, 0 failed"),
        (0, TestCounts(3, 0, 2), True, "3 passed, 0 failed, 2 skipped"),
        (1, TestCounts(3, 1), False, "3 passed, 1 failed"),
        (0, TestCounts(0, 0, 4), False, "no test ran: all 4 were skipped"),
        (5, TestCounts(), False, "no test ran: pytest exited with 5"),
        (4, TestCounts(), False, "no test ran: pytest exited with 4"),
        (2, TestCounts(3), False, "3 passed, 0 failed, pytest exited with 2"),
        (-9, TestCounts(), False, "no test ran: pytest exited with -9"),
    ],
)
def test_pytest_succeeds_only_where_a_test_passed_and_none_failed(
    exit_code: int, counts: TestCounts, verdict: bool, detail: str
) -> None:
    judged = judge_pytest(exit_code, counts)
    assert (judged.succeeded, judged.detail, judged.counts) == (verdict, detail, counts)


def test_errors_of_fixtures_count_as_failures() -> None:
    suite = '<testsuite errors="1" failures="2" skipped="3" tests="10"/>'
    assert counts_in(f"<testsuites>{suite}</testsuites>") == TestCounts(
        passed=4, failed=3, skipped=3
    )


def test_a_folder_of_passing_and_skipped_tests_passes(folder_of_tests: Path) -> None:
    (folder_of_tests / "test_it.py").write_text(
        "import pytest\n\ndef test_a(): pass\n\n@pytest.mark.skip\ndef test_b(): pass\n"
    )
    verdict = Pytest(folder_of_tests).run()
    assert verdict == Verdict(True, "1 passed, 0 failed, 1 skipped", TestCounts(1, 0, 1))


def test_a_folder_without_tests_fails(folder_of_tests: Path) -> None:
    assert Pytest(folder_of_tests).run().detail == "no test ran: pytest exited with 5"


def test_all_programs_run_and_the_failed_ones_are_named() -> None:
    succeeding, failing = ([sys.executable, "-c", f"exit({code})"] for code in (0, 3))
    assert Programs({"a": failing, "b": succeeding, "c": failing}).run() == Verdict(
        False, "a, c failed"
    )
    assert Programs({"a": succeeding, "b": succeeding}).run() == Verdict(True, "a, b")


def test_the_table_shows_each_tier_with_its_time_and_ends_with_the_sum() -> None:
    results = [
        Result("unit", Outcome.PASSED, "7 passed, 0 failed", 4.21, TestCounts(7)),
        Result("cluster", Outcome.FAILED, "5 passed, 1 failed", 192.4, TestCounts(5, 1)),
        Result("live", Outcome.LEFT_OUT, f"by {SKIP_VARIABLE}"),
    ]
    assert closing_table(results).splitlines()[2:] == [
        "unit     passed           4.2 s  7 passed, 0 failed",
        "cluster  FAILED      3 min 12 s  5 passed, 1 failed",
        f"live     LEFT OUT                by {SKIP_VARIABLE}",
        f"!!! NOT TESTED, left out by {SKIP_VARIABLE}: live !!!",
        "total: 12 passed, 1 failed",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (725, "12 min 05 s")]
)
def test_durations_are_said_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tiers_are_chosen_by_name_in_the_order_they_run() -> None:
    assert [tier.name for tier in tiers_named(["live", "lint"])] == ["lint", "live"]


def test_an_unknown_tier_is_refused_by_name() -> None:
    with pytest.raises(UnknownTierError, match="'clutser' is no tier of tests") as refusal:
        tiers_named(["unit", "clutser"])
    assert refusal.value.name == "clutser"


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["clutser"], {}), ([], {SKIP_VARIABLE: "live,clutser"})]
)
def test_a_misspelt_tier_runs_nothing_and_exits_with_2(
    arguments: list[str], environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, environment) == 2
    assert "'clutser' is no tier" in capsys.readouterr().out


def test_leaving_out_the_only_tier_asked_for_exits_with_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["unit"], {SKIP_VARIABLE: "unit, live"}) == 1
    assert "NOT TESTED" in capsys.readouterr().out
