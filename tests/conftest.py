"""What all tiers share: each test carries its tier as a marker, and its tier's time limit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.patience import patient

TESTS = Path(__file__).parent

# Seconds for one test, with the fixtures it is the first to ask for: compiling eBPF programs, and,
# the first time on a machine, compiling Kubernetes or Helm. tests/unit keeps the default.
TIME_LIMITS = {"lint": 600, "chart": 1800, "live": 180, "cluster": 1800, "kernels": 9000}
TIERS = ("lint", "unit", "chart", "live", "cluster", "kernels")
_PROOFS = pytest.StashKey[list[str]]()

# A deadline in milliseconds says more about the machine's other work than about our code.
hypothesis.settings.register_profile("new examples", deadline=None)
hypothesis.settings.register_profile("same examples", deadline=None, derandomize=True)


def pytest_configure(config: pytest.Config) -> None:
    """Let `make test` say the same of the same code; all other runs look for new examples."""
    name = "same examples" if _is_make_test(config) else "new examples"
    hypothesis.settings.load_profile(name)


def _is_make_test(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "not thorough")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder."""
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if tier in TIERS:
            item.add_marker(tier)
        if tier in TIME_LIMITS and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(patient(TIME_LIMITS[tier])))


@pytest.fixture(autouse=True)
def process_log() -> Iterator[None]:
    """Give the log back: a command that a test runs takes it over, and would keep all lines."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def prove(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Take a line of evidence, which closes the run unless that is `make test`: it stays short."""
    return pytestconfig.stash.setdefault(_PROOFS, []).append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the evidence in runs with thorough tests, and where nothing is captured."""
    is_short = _is_make_test(config) and config.option.capture != "no"
    if (lines := config.stash.get(_PROOFS, [])) and not is_short:
        terminalreporter.section("evidence")
        for line in lines:
            terminalreporter.write_line(line)
