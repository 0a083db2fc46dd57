"""The chart, and the Helm program that renders it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "latencyprobe"
RELEASE = "latencyprobe"
NAMESPACE = "latencyprobe-system"


class HelmError(Exception):
    """An error of Helm, with Helm's own message."""


@dataclass(frozen=True)
class HelmProgram:
    """A Helm program, and the chart that it renders."""

    program: Path

    @cache  # noqa: B019 - of one instance, and the renderings of one run fit in memory
    def render(self, *arguments: str, release: str = RELEASE, namespace: str = NAMESPACE) -> str:
        """Return the manifests of an install with these arguments. Raises HelmError."""
        return self.run("template", release, str(CHART), f"--namespace={namespace}", *arguments)

    def run(self, *arguments: str) -> str:
        """Run Helm, and return its standard output. Raises HelmError."""
        answer = subprocess.run(
            [self.program, *arguments], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise HelmError(answer.stderr + answer.stdout)
        return answer.stdout
