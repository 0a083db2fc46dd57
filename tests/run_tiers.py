"""Runs the tiers of tests and closes with a table: what ran, how it went, how long it took.

    python -m tests.run_tiers [TIER...]

A *tier* is a set of checks with the same needs: `lint` and `unit` need nothing, `chart` a Helm or a
Go that compiles one, `live` a kernel that runs eBPF, `cluster` a machine that can start a
Kubernetes, `kernels` one that emulates another with a kernel of Debian's. Every tier runs, whatever
became of the one before. A tier that this machine cannot run has failed: a result is never green
because nothing was looked at. Whoever wants less says so (LATENCYPROBE_SKIP=cluster,live), and the
table repeats it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
SKIP_VARIABLE = "LATENCYPROBE_SKIP"

# Says what is missing, or None where the need is met.
Need = Callable[[], str | None]


class UnknownTierError(ValueError):
    """A name that is no tier's."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        super().__init__(f"{name!r} is no tier of tests (there are: {', '.join(known)})")


class Outcome(Enum):
    """What became of a tier."""

    PASSED = "passed"
    FAILED = "FAILED"
    LEFT_OUT = "LEFT OUT"


@dataclass(frozen=True)
class TestCounts:
    """Of one run of pytest, or of several."""

    __test__ = False  # pytest: its name begins like a test's

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: TestCounts) -> TestCounts:
        return TestCounts(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


@dataclass(frozen=True)
class Verdict:
    """How a tier's checks went, in the words of the closing table."""

    succeeded: bool
    detail: str
    counts: TestCounts = TestCounts()


class Checks(Protocol):
    """What a tier runs."""

    def run(self) -> Verdict:
        """Run all of it, its output going where ours goes."""


@dataclass(frozen=True)
class Programs:
    """Checks that are programs of their own; each succeeds or fails as a whole."""

    commands: Mapping[str, Sequence[str | Path]]

    def run(self) -> Verdict:
        failed = [name for name, command in self.commands.items() if _run(name, command) != 0]
        if failed:
            return Verdict(False, f"{', '.join(failed)} failed")
        return Verdict(True, ", ".join(self.commands))


@dataclass(frozen=True)
class Pytest:
    """Checks that are the tests of one folder."""

    folder: Path

    def run(self) -> Verdict:
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch, "report.xml")
            command = (sys.executable, "-m", "pytest", self.folder, f"--junitxml={report}")
            exit_code = _run("pytest", command)
            counts = counts_in(report.read_text()) if report.exists() else TestCounts()
        return judge_pytest(exit_code, counts)


def counts_in(junit_report: str) -> TestCounts:
    """The counts of pytest's --junitxml; errors of set-up and tear-down are failures."""
    total = TestCounts()
    for suite in ElementTree.fromstring(junit_report).iter("testsuite"):
        tests, failures, errors, skipped = (
            int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
        )
        passed = max(0, tests - failures - errors - skipped)
        total += TestCounts(passed, failures + errors, skipped)
    return total


def judge_pytest(exit_code: int, counts: TestCounts) -> Verdict:
    """A run in which no test passed has failed, also where pytest sees nothing wrong with it."""
    if exit_code == 0 and counts.passed:
        return Verdict(True, str(counts), counts)
    if counts.passed or counts.failed:
        detail = str(counts) if counts.failed else f"{counts}, pytest exited with {exit_code}"
    elif counts.skipped:
        detail = f"no test ran: all {counts.skipped} were skipped"
    else:
        detail = f"no test ran: pytest exited with {exit_code}"
    return Verdict(False, detail, counts)


@dataclass(frozen=True)
class Tier:
    """A set of checks and what they need of the machine."""

    name: str
    checks: Checks
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True)
class Result:
    """A row of the closing table."""

    name: str
    outcome: Outcome
    detail: str
    seconds: float = 0.0
    counts: TestCounts = TestCounts()


def need_root() -> str | None:
    """Root, with which eBPF programs are loaded and namespaces made."""
    return None if os.geteuid() == 0 else "root is needed: run it with sudo"


def need_bcc() -> str | None:
    """bcc for this interpreter."""
    if importlib.util.find_spec("bcc"):
        return None
    return f"{sys.executable} cannot import bcc: install python3-bpfcc and make .venv again"


def need_kernel_types() -> str | None:
    """Something that says what the kernel's structs look like."""
    release = platform.release()
    if Path("/sys/kernel/btf/vmlinux").exists() or Path("/lib/modules", release, "build").exists():
        return None
    return f"no /sys/kernel/btf/vmlinux and no headers of the running kernel ({release})"


def need_programs(*names: str) -> Need:
    """Programs on the PATH."""

    def missing() -> str | None:
        absent = [name for name in names if shutil.which(name) is None]
        return f"not on the PATH: {', '.join(absent)}" if absent else None

    return missing


TIERS = (
    Tier(
        "lint",
        Programs(
            {
                "ruff check": [PROGRAMS / "ruff", "check"],
                "ruff format": [PROGRAMS / "ruff", "format", "--check"],
                "mypy": [PROGRAMS / "mypy"],
                "import-linter": [PROGRAMS / "lint-imports", "--no-logo"],
            }
        ),
    ),
    Tier("unit", Pytest(ROOT / "tests" / "unit")),
    Tier("chart", Pytest(ROOT / "tests" / "chart")),
    Tier(
        "live",
        Pytest(ROOT / "tests" / "live"),
        (need_root, need_bcc, need_kernel_types, need_programs("ip", "tc")),
    ),
    Tier(
        "cluster",
        Pytest(ROOT / "tests" / "cluster"),
        (need_root, need_bcc, need_kernel_types, need_programs("ip", "nft", "unshare")),
    ),
    Tier(
        "kernels",
        Pytest(ROOT / "tests" / "kernels"),
        (need_bcc, need_programs("qemu-system-x86_64", "apt-get", "depmod", "busybox", "file")),
    ),
)


def run_tiers(tiers: Iterable[Tier], left_out: Collection[str] = ()) -> list[Result]:
    """Run them all, one after the other; an interruption (Ctrl-C) ends the last one."""
    results: list[Result] = []
    for tier in tiers:
        if tier.name in left_out:
            results.append(Result(tier.name, Outcome.LEFT_OUT, f"by {SKIP_VARIABLE}"))
            continue
        started = time.monotonic()
        try:
            verdict = _verdict_of(tier)
        except KeyboardInterrupt:
            results.append(
                Result(tier.name, Outcome.FAILED, "interrupted", time.monotonic() - started)
            )
            break
        outcome = Outcome.PASSED if verdict.succeeded else Outcome.FAILED
        seconds = time.monotonic() - started
        results.append(Result(tier.name, outcome, verdict.detail, seconds, verdict.counts))
    return results


def _verdict_of(tier: Tier) -> Verdict:
    missing = [problem for need in tier.needs if (problem := need()) is not None]
    if missing:
        return Verdict(False, f"cannot run here: {'; '.join(missing)}")
    _say(f"\n===== {tier.name} =====")
    return tier.checks.run()


def _run(name: str, command: Sequence[str | Path]) -> int:
    _say(f"--- {name}")
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode


def succeeded(results: Sequence[Result]) -> bool:
    """Something was looked at, and nothing failed."""
    outcomes = [result.outcome for result in results]
    return Outcome.PASSED in outcomes and Outcome.FAILED not in outcomes


def closing_table(results: Sequence[Result]) -> str:
    """The table, a loud line for what was left out, and the sum of all tests as the last line."""
    name_width = max((len(result.name) for result in results), default=0)
    lines = ["", "===== tiers ====="]
    for result in results:
        spent = "" if result.outcome is Outcome.LEFT_OUT else duration(result.seconds)
        row = f"{result.name:<{name_width}}  {result.outcome.value:<8}  {spent:>12}"
        lines.append(f"{row}  {result.detail}")
    left_out = [result.name for result in results if result.outcome is Outcome.LEFT_OUT]
    if left_out:
        lines.append(f"!!! NOT TESTED, left out by {SKIP_VARIABLE}: {', '.join(left_out)} !!!")
    total = sum((result.counts for result in results), TestCounts())
    return "\n".join([*lines, f"total: {total}"])


def duration(seconds: float) -> str:
    """As a person says it: `4.2 s`, `3 min 12 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def tiers_named(names: Iterable[str], tiers: Sequence[Tier] = TIERS) -> list[Tier]:
    """The tiers of those names, in the order in which they run; raises UnknownTierError."""
    wanted = set(names)
    known = [tier.name for tier in tiers]
    for name in sorted(wanted.difference(known)):
        raise UnknownTierError(name, known)
    return [tier for tier in tiers if tier.name in wanted]


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run what the arguments name (nothing: all) but for what the environment leaves out."""
    skipped = environment.get(SKIP_VARIABLE, "").replace(",", " ").split()
    try:
        left_out = [tier.name for tier in tiers_named(skipped)]
        chosen = tiers_named(arguments) if arguments else TIERS
    except UnknownTierError as error:
        _say(str(error))
        return 2
    results = run_tiers(chosen, left_out)
    _say(closing_table(results))
    return 0 if succeeded(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
