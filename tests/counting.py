"""A plug-in of pytest that leaves a run's counts in the file that --counts-file names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Counts:
    """Tests of one run of pytest, or of several."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    deselected: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.deselected + other.deselected,
        )

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed"

    def left(self) -> str:
        """The tests that did not run, with a comma before each kind; empty if all ran."""
        kinds = (("skipped", self.skipped), ("deselected", self.deselected))
        return "".join(f", {number} {kind}" for kind, number in kinds if number)


def counts_in(path: Path) -> Counts:
    """The counts that a run left; none if it ended before it could."""
    return Counts(**json.loads(path.read_text())) if path.exists() else Counts()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--counts-file", type=Path, help="where to leave the counts, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--counts-file"):
        config.pluginmanager.register(Counter(path))


class Counter:
    """The counts of this run of pytest. Each subtest counts as a test of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts = Counts()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:  # also in set-up and tear-down
            self._counts += Counts(failed=1)
        elif report.skipped:
            self._counts += Counts(skipped=1)
        elif report.when == "call":
            self._counts += Counts(passed=1)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._counts += Counts(failed=1)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._counts += Counts(deselected=len(items))

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(asdict(self._counts)))
