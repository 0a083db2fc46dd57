"""Run the tiers of tests and close with a table: what ran, how it went, how long it took.

    python -m tests.run_tiers [--all] [TIER...]

A tier is a folder of tests with the same needs. Every tier runs, also after one that failed. Tiers
aside run one after another, on the core that the others leave free. A tier that this machine
cannot run has failed, and so has one in which no test passed. What is left out is reported at the
end: tiers (LATENCYPROBE_SKIP=cluster,live) and, without --all, `thorough` tests.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

from tests import needs
from tests.counting import Counts, counts_in

ROOT = Path(__file__).parent.parent
SKIP_VARIABLE = "LATENCYPROBE_SKIP"
NO_TESTS = Counts()
WITHOUT_THOROUGH = ("-m", "not thorough")
# What to look at first when a tier takes too long.
SLOWEST = ("--durations=12", "--durations-min=5")


@dataclass(frozen=True, slots=True)
class Tier:
    """A folder of tests, and what they need of the machine.

    `is_aside`: it takes one core at the lowest priority; its output is shown when it has ended.
    `is_alone`: nothing runs aside.
    """

    folder: Path
    needs: tuple[needs.Need, ...] = ()
    is_aside: bool = False
    is_alone: bool = False

    @property
    def name(self) -> str:
        return self.folder.name


_EBPF = (needs.root, needs.bcc, needs.kernel_types)
_QEMU = needs.programs("qemu-system-x86_64", "apt-get", "depmod", "busybox", "file")
TIERS = (  # from the cheapest to the dearest, but the one last that waits for the guests
    Tier(ROOT / "tests" / "lint"),
    Tier(ROOT / "tests" / "unit"),
    Tier(ROOT / "tests" / "chart", is_aside=True),
    Tier(ROOT / "tests" / "cluster", (*_EBPF, needs.programs("ip", "nft", "unshare"))),
    Tier(ROOT / "tests" / "kernels", (needs.bcc, _QEMU), is_aside=True),
    Tier(ROOT / "tests" / "live", (*_EBPF, needs.programs("ip", "tc")), is_alone=True),
)


class Outcome(Enum):
    """What became of a tier."""

    PASSED = "passed"
    FAILED = "FAILED"
    LEFT_OUT = "LEFT OUT"


@dataclass(frozen=True, slots=True)
class Result:
    """A row of the closing table."""

    name: str
    outcome: Outcome
    detail: str
    counts: Counts = NO_TESTS
    seconds: float = 0.0


def run_tier(tier: Tier, arguments: Sequence[str] = (), output: IO[bytes] | None = None) -> Result:
    """Run a tier's tests, with their output where ours goes or in the file `output`."""
    missing = [problem for need in tier.needs if (problem := need()) is not None]
    if missing:
        return Result(tier.name, Outcome.FAILED, f"cannot run here: {'; '.join(missing)}")
    if output is None:
        _announce(tier)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "counts.json")
        plugin = ("-p", "tests.counting", f"--counts-file={file}")
        command = [sys.executable, "-m", "pytest", str(tier.folder), *plugin, *SLOWEST, *arguments]
        try:
            ran = subprocess.run(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                check=False,
            )
        except KeyboardInterrupt:
            seconds = time.monotonic() - started
            return Result(tier.name, Outcome.FAILED, "interrupted", seconds=seconds)
        counts = counts_in(file)
    outcome, detail = judge(ran.returncode, counts)
    return Result(tier.name, outcome, detail, counts, time.monotonic() - started)


def judge(exit_code: int, counts: Counts) -> tuple[Outcome, str]:
    """A run in which no test passed has failed, even where pytest reports success."""
    shown = f"{counts}{counts.left()}"
    if exit_code == 0 and counts.passed:
        return Outcome.PASSED, shown
    if counts.failed:
        return Outcome.FAILED, shown
    problem = "" if counts.passed else "no test passed: "
    return Outcome.FAILED, f"{problem}{shown}, pytest exited with {exit_code}"


def _announce(tier: Tier) -> None:
    print(f"\n===== {tier.name} =====", flush=True)


@dataclass(frozen=True, slots=True)
class _Aside:
    """A tier that runs while others do, and the file of its output."""

    tier: Tier
    output: IO[bytes]
    running: Future[Result]

    def result(self) -> Result:
        """Wait for its end, and show what it printed."""
        result = self.running.result()
        _announce(self.tier)
        self.output.seek(0)
        shutil.copyfileobj(self.output, sys.stdout.buffer)
        sys.stdout.flush()
        return result


def run_tiers(
    tiers: Iterable[Tier], left_out: Collection[str] = (), arguments: Sequence[str] = ()
) -> list[Result]:
    """Run them one after the other, but for those aside; return the results in this order.

    An interruption (Ctrl-C) ends the last one.
    """
    chosen = list(tiers)
    results: dict[str, Result] = {
        tier.name: Result(tier.name, Outcome.LEFT_OUT, f"by {SKIP_VARIABLE}")
        for tier in chosen
        if tier.name in left_out
    }
    with ThreadPoolExecutor(max_workers=1) as pool, contextlib.ExitStack() as files:
        aside: dict[str, _Aside] = {}
        for tier in chosen:
            if tier.is_aside and tier.name not in results:
                output = files.enter_context(tempfile.TemporaryFile())
                aside[tier.name] = _Aside(
                    tier, output, pool.submit(run_tier, tier, arguments, output)
                )
        for tier in chosen:
            if tier.name in results or tier.is_aside:
                continue
            if tier.is_alone:
                results |= _ended(aside)
            results[tier.name] = run_tier(tier, arguments)
            if results[tier.name].detail == "interrupted":
                break
        results |= _ended(aside)
    return [results[tier.name] for tier in chosen if tier.name in results]


def _ended(aside: dict[str, _Aside]) -> dict[str, Result]:
    """Return the results of all that run aside, once they have ended."""
    results = {}
    while aside:
        name, running = aside.popitem()
        results[name] = running.result()
    return results


def succeeded(results: Sequence[Result]) -> bool:
    """Whether a tier passed and none failed."""
    outcomes = [result.outcome for result in results]
    return Outcome.PASSED in outcomes and Outcome.FAILED not in outcomes


def closing_table(results: Sequence[Result]) -> str:
    """The table, a line for each kind of what was left out, and the sum of all tests at last."""
    width = max((len(result.name) for result in results), default=0)
    lines = ["", "===== tiers ====="]
    for result in results:
        spent = "" if result.outcome is Outcome.LEFT_OUT else duration(result.seconds)
        row = f"{result.name:<{width}}  {result.outcome.value:<8}  {spent:>12}"
        lines.append(f"{row}  {result.detail}")
    left_out = [result.name for result in results if result.outcome is Outcome.LEFT_OUT]
    if left_out:
        lines.append(f"!!! NOT TESTED, left out by {SKIP_VARIABLE}: {', '.join(left_out)} !!!")
    total = sum((result.counts for result in results), NO_TESTS)
    if total.skipped:
        lines.append(f"!!! NOT TESTED, skipped: {total.skipped} !!!")
    if total.deselected:
        lines.append(f"!!! NOT TESTED, left to `make test-all`: {total.deselected} !!!")
    return "\n".join([*lines, f"total: {total}"])


def duration(seconds: float) -> str:
    """As a person says it: `4.2 s`, `3 min 12 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the named tiers (all, if there is no name) without those that the environment skips."""
    skipped = environment.get(SKIP_VARIABLE, "").replace(",", " ").split()
    names = [tier.name for tier in TIERS]
    parser = argparse.ArgumentParser("python -m tests.run_tiers", description=__doc__)
    parser.add_argument("--all", action="store_true", help="the thorough tests too")
    parser.add_argument("tiers", nargs="*", metavar="TIER", help=", ".join(names))
    chosen = parser.parse_args(arguments)
    if unknown := {*chosen.tiers, *skipped}.difference(names):
        parser.error(f"no such tier: {', '.join(sorted(unknown))} (one of {', '.join(names)})")
    tiers = [tier for tier in TIERS if tier.name in (chosen.tiers or names)]
    results = run_tiers(tiers, skipped, () if chosen.all else WITHOUT_THOROUGH)
    print(closing_table(results), flush=True)
    return 0 if succeeded(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
