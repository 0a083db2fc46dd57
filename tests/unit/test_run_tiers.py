"""The runner of all tiers: nothing turns green because nothing was looked at."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs, run_tiers
from tests.counting import Counts
from tests.run_tiers import (
    SKIP_VARIABLE,
    TIERS,
    WITHOUT_THOROUGH,
    Outcome,
    Result,
    Tier,
    closing_table,
    duration,
    judge,
    main,
    succeeded,
)

MakeTier = Callable[..., Tier]
PASSES, FAILS = "def test_a(): pass\n", "def test_a(): assert False\n"
SKIPPED = "import pytest\n\n@pytest.mark.skip\ndef test_b(): pass\n"
THOROUGH = "import pytest\n\n@pytest.mark.thorough\ndef test_c(): pass\n"


@pytest.fixture
def make_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTier:
    """Makes a folder of tests with a configuration of its own, away from this project's."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take half of its time to start

    def make(name: str, *modules: str, needs: tuple[needs.Need, ...] = (), **how: bool) -> Tier:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pytest.ini").write_text("[pytest]\nmarkers = thorough\n")
        for number, module in enumerate(modules):
            (folder / f"test_{name}_{number}.py").write_text(module)
        return Tier(folder, needs, **how)

    return make


def test_the_cheapest_tier_runs_first_and_the_one_that_waits_for_guests_last() -> None:
    assert [tier.name for tier in TIERS] == ["lint", "unit", "chart", "cluster", "kernels", "live"]
    assert [tier.name for tier in TIERS if tier.is_aside] == ["chart", "kernels"]
    assert [tier.name for tier in TIERS if tier.is_alone] == ["live"]


def test_every_folder_of_tests_is_a_tier() -> None:
    folders = {path.parent for path in run_tiers.ROOT.glob("tests/*/__init__.py")}
    assert {tier.folder for tier in TIERS} == folders


def test_every_tier_runs_even_after_a_failure(make_tier: MakeTier) -> None:
    results = run_tiers.run_tiers([make_tier("first", FAILS), make_tier("second", PASSES)])
    assert [result.outcome for result in results] == [Outcome.FAILED, Outcome.PASSED]
    assert not succeeded(results)


# Each waits for the file of the other.
MEETS = """
import pathlib, time
def test_meets():
    here, there = pathlib.Path({here!r}), pathlib.Path({there!r})
    here.touch()
    deadline = time.monotonic() + 50
    while not there.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""
ALONE = """
import pathlib
def test_alone():
    assert pathlib.Path({ended!r}).exists()
"""


def test_a_tier_aside_runs_while_others_do_and_has_ended_before_one_that_runs_alone(
    make_tier: MakeTier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other, ended = (str(tmp_path / name) for name in ("one", "other", "ended"))
    aside = MEETS.format(here=one, there=other) + f"    pathlib.Path({ended!r}).touch()\n"
    tiers = [
        make_tier("unit", MEETS.format(here=other, there=one)),
        make_tier("live", ALONE.format(ended=ended), is_alone=True),
        make_tier("kernels", aside, is_aside=True),
    ]
    results = run_tiers.run_tiers(tiers)
    shown = capfd.readouterr().out
    assert [result.name for result in results] == ["unit", "live", "kernels"]
    assert succeeded(results)
    assert shown.index("===== unit") < shown.index("===== kernels") < shown.index("===== live")
    assert shown.index("test_unit_0.py") < shown.index("test_kernels_0.py")


def test_a_tier_aside_that_fails_or_cannot_run_fails_the_whole(make_tier: MakeTier) -> None:
    wanted = (lambda: "no emulator",)
    tiers = [
        make_tier("unit", PASSES),
        make_tier("kernels", FAILS, is_aside=True),
        make_tier("others", PASSES, needs=wanted, is_aside=True),
        make_tier("none", SKIPPED, is_aside=True),
    ]
    results = run_tiers.run_tiers(tiers)
    assert [result.outcome for result in results] == [
        Outcome.PASSED,
        Outcome.FAILED,
        Outcome.FAILED,
        Outcome.FAILED,
    ]
    assert not succeeded(results)


def test_tiers_aside_run_one_after_another(make_tier: MakeTier, tmp_path: Path) -> None:
    ended = str(tmp_path / "ended")
    first = f"import pathlib\ndef test_first():\n    pathlib.Path({ended!r}).touch()\n"
    tiers = [
        make_tier("chart", first, is_aside=True),
        make_tier("kernels", ALONE.format(ended=ended), is_aside=True),
    ]
    assert succeeded(run_tiers.run_tiers(tiers))


def test_a_tier_aside_that_is_left_out_does_not_run(make_tier: MakeTier) -> None:
    tiers = [make_tier("unit", PASSES), make_tier("kernels", FAILS, is_aside=True)]
    assert succeeded(run_tiers.run_tiers(tiers, left_out=["kernels"]))


def test_a_tier_that_cannot_run_here_fails_and_says_what_is_missing(make_tier: MakeTier) -> None:
    wanted = (lambda: "root is needed", lambda: None, needs.programs("sh", "no-such-program"))
    (result,) = run_tiers.run_tiers([make_tier("live", PASSES, needs=wanted)])
    assert result.outcome is Outcome.FAILED
    assert result.detail == "cannot run here: root is needed; not on the PATH: no-such-program"
    assert result.counts == Counts()


def test_a_tier_left_out_does_not_run_and_is_said_loudly(make_tier: MakeTier) -> None:
    tiers = [make_tier("unit", PASSES), make_tier("cluster", FAILS)]
    results = run_tiers.run_tiers(tiers, left_out=["cluster"])
    assert succeeded(results)
    assert f"!!! NOT TESTED, left out by {SKIP_VARIABLE}: cluster !!!" in closing_table(results)


def test_leaving_out_everything_is_no_success(make_tier: MakeTier) -> None:
    assert not succeeded(run_tiers.run_tiers([make_tier("unit", PASSES)], left_out=["unit"]))
    assert not succeeded([])


def test_an_interruption_ends_the_run_and_fails_it(
    make_tier: MakeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    results = run_tiers.run_tiers([make_tier("live", PASSES), make_tier("cluster", PASSES)])
    assert [(result.outcome, result.detail) for result in results] == [
        (Outcome.FAILED, "interrupted")
    ]


@pytest.mark.parametrize(
    ("exit_code", "counts", "outcome", "detail"),
    [
        (0, Counts(3), Outcome.PASSED, "3 passed, 0 failed"),
        (0, Counts(3, 0, 2), Outcome.PASSED, "3 passed, 0 failed, 2 skipped"),
        (0, Counts(3, 0, 0, 4), Outcome.PASSED, "3 passed, 0 failed, 4 deselected"),
        (1, Counts(3, 1), Outcome.FAILED, "3 passed, 1 failed"),
        (
            *(0, Counts(0, 0, 4), Outcome.FAILED),
            "no test passed: 0 passed, 0 failed, 4 skipped, pytest exited with 0",
        ),
        *(
            (
                *(code, Counts(), Outcome.FAILED),
                f"no test passed: 0 passed, 0 failed, pytest exited with {code}",
            )
            for code in (5, 4, -9)
        ),
        (2, Counts(3), Outcome.FAILED, "3 passed, 0 failed, pytest exited with 2"),
    ],
)
def test_a_tier_passes_only_where_a_test_passed_and_none_failed(
    exit_code: int, counts: Counts, outcome: Outcome, detail: str
) -> None:
    assert judge(exit_code, counts) == (outcome, detail)


def test_errors_of_fixtures_count_as_failures(make_tier: MakeTier) -> None:
    fixture = "import pytest\n\n@pytest.fixture\ndef broken():\n    raise ValueError\n\n"
    result = run_tiers.run_tier(make_tier("a", fixture + "def test_it(broken): pass\n", PASSES))
    assert (result.outcome, result.counts) == (Outcome.FAILED, Counts(1, 1))


def test_each_subtest_counts(make_tier: MakeTier) -> None:
    test = "def test_it(subtests):\n    for n in range(3):\n        with subtests.test():\n"
    result = run_tiers.run_tier(make_tier("a", test + "            assert n != 1\n"))
    assert result.counts == Counts(passed=2, failed=2)


def test_a_module_that_cannot_be_imported_is_a_failure(make_tier: MakeTier) -> None:
    result = run_tiers.run_tier(make_tier("a", "import no_such_module\n", PASSES))
    assert (result.outcome, result.counts.failed) == (Outcome.FAILED, 1)


def test_a_folder_of_passing_and_skipped_tests_passes(make_tier: MakeTier) -> None:
    result = run_tiers.run_tier(make_tier("a", PASSES, SKIPPED))
    assert (result.outcome, result.detail) == (Outcome.PASSED, "1 passed, 0 failed, 1 skipped")


def test_a_folder_without_tests_fails(make_tier: MakeTier) -> None:
    result = run_tiers.run_tier(make_tier("empty"))
    assert (result.outcome, result.detail) == (
        Outcome.FAILED,
        "no test passed: 0 passed, 0 failed, pytest exited with 5",
    )


def test_a_folder_of_skipped_tests_fails(make_tier: MakeTier) -> None:
    assert run_tiers.run_tier(make_tier("a", SKIPPED)).outcome is Outcome.FAILED


def test_thorough_tests_are_left_out_unless_asked_for_and_that_is_reported(
    make_tier: MakeTier,
) -> None:
    tier = make_tier("a", PASSES, THOROUGH)
    quick, everything = run_tiers.run_tier(tier, WITHOUT_THOROUGH), run_tiers.run_tier(tier)
    assert (quick.counts, everything.counts) == (Counts(1, deselected=1), Counts(2))
    assert "!!! NOT TESTED, left to `make test-all`: 1 !!!" in closing_table([quick])
    assert "NOT TESTED" not in closing_table([everything])


def test_a_tier_of_thorough_tests_alone_fails_when_they_are_left_out(make_tier: MakeTier) -> None:
    result = run_tiers.run_tier(make_tier("a", THOROUGH), WITHOUT_THOROUGH)
    assert result.outcome is Outcome.FAILED


def test_the_table_shows_each_tier_with_its_time_and_ends_with_the_sum() -> None:
    results = [
        Result("unit", Outcome.PASSED, "7 passed, 0 failed, 2 skipped", Counts(7, 0, 2), 4.21),
        Result("cluster", Outcome.FAILED, "5 passed, 1 failed", Counts(5, 1), 192.4),
        Result("live", Outcome.LEFT_OUT, f"by {SKIP_VARIABLE}"),
    ]
    assert closing_table(results).splitlines()[2:] == [
        "unit     passed           4.2 s  7 passed, 0 failed, 2 skipped",
        "cluster  FAILED      3 min 12 s  5 passed, 1 failed",
        f"live     LEFT OUT                by {SKIP_VARIABLE}",
        f"!!! NOT TESTED, left out by {SKIP_VARIABLE}: live !!!",
        "!!! NOT TESTED, skipped: 2 !!!",
        "total: 12 passed, 1 failed",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (725, "12 min 05 s")]
)
def test_durations_are_said_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["clutser"], {}), ([], {SKIP_VARIABLE: "live,clutser"})]
)
def test_a_misspelt_tier_runs_nothing_and_exits_with_2(
    arguments: list[str], environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments, environment)
    assert end.value.code == 2
    assert "no such tier: clutser (one of lint, unit, " in capsys.readouterr().err


def test_leaving_out_the_only_tier_asked_for_exits_with_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["unit"], {SKIP_VARIABLE: "unit, live"}) == 1
    assert "NOT TESTED" in capsys.readouterr().out


def test_named_tiers_run_in_their_order_and_the_exit_code_is_that_of_all(
    make_tier: MakeTier, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiers = tuple(make_tier(name, PASSES) for name in ("one", "two", "three"))
    monkeypatch.setattr(run_tiers, "TIERS", tiers)
    assert main(["three", "one"], {}) == 0
    printed = capfd.readouterr().out
    assert re.findall(r"^=+ (\w+) =+$", printed, re.MULTILINE) == ["one", "three", "tiers"]
    assert printed.splitlines()[-1] == "total: 2 passed, 0 failed"
