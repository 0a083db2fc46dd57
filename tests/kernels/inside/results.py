"""What a guest hands to the machine outside, besides pytest's reports."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latencyprobe.domain.coverage import CoverageState, StageCoverage

RESULTS_VARIABLE = "LATENCYPROBE_GUEST_RESULTS"
_SUFFIX = ".coverage.json"


@dataclass(frozen=True, slots=True)
class KernelCoverage:
    """A column of the matrix. `types`: where the kernel's types came from."""

    kernel: str
    types: str
    stages: Mapping[str, StageCoverage]


def write_coverage(types: str, stages: Iterable[StageCoverage]) -> None:
    """Keep a guest's coverage for the matrix."""
    rows = [(stage.name, stage.state, stage.hook, stage.reason) for stage in stages]
    content = {"kernel": platform.release(), "types": types, "stages": rows}
    path = Path(os.environ[RESULTS_VARIABLE]) / f"{types}{_SUFFIX}"
    path.write_text(json.dumps(content))


def read_coverage(results: Path) -> list[KernelCoverage]:
    """What was kept in this folder."""
    columns = []
    for path in sorted(results.glob(f"*{_SUFFIX}")):
        content = json.loads(path.read_text())
        stages = {
            name: StageCoverage(name, CoverageState(state), hook, reason)
            for name, state, hook, reason in content["stages"]
        }
        columns.append(KernelCoverage(content["kernel"], content["types"], stages))
    return columns
