"""The size of the rows of pods in a status, known before they are built.

To build and to encode them takes most of a status's time. The budget of bytes allows it once in
some intervals only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latencyprobe.domain.packed_figures import PackedFigures
from latencyprobe.domain.report import StageReport
from latencyprobe_operator.probes.document import MAX_BYTES
from latencyprobe_operator.probes.facts import PodFacts

# The digits of figures vary from status to status.
_LEAST_PART = 0.9


class RowBytes:
    """The bytes of a row's stage in the last patch with rows, and the rows that were written."""

    def __init__(self) -> None:
        self._of_stage = 0.0
        self._asked: int | None = None
        self._written: int | None = None

    def are_written(self, pods: Sequence[PodFacts]) -> bool:
        """Decide whether the rows of these pods may be those that were written."""
        self._asked = hash(tuple((each.name, _fingerprint(each.report.stages)) for each in pods))
        return self._written in (None, self._asked)

    def least_bytes(self, pods: Sequence[PodFacts]) -> float:
        """Return about the fewest bytes of a patch with the rows of these pods; 0 if unknown."""
        stages = sum(len(each.report.stages) for each in pods)
        least = _LEAST_PART * self._of_stage * stages
        # Larger ones may be made to fit.
        return least if least < MAX_BYTES / 2 else 0.0

    def weigh(self, patch: Mapping[str, Any], size: int) -> None:
        """Take the size of a patch, if it has rows."""
        stages = sum(len(each.get("stages", ())) for each in patch.get("pods") or ())
        if stages:
            self._of_stage = size / stages

    @property
    def written(self) -> int | None:
        """The rows that the API server has; None if they are not known."""
        return self._written

    def mark_written(self, patch: Mapping[str, Any], before: int | None) -> None:
        """Note that a patch was written. `before`: the rows that the API server had until then."""
        self._written = self._asked if "pods" in patch else before

    def forget(self) -> None:
        """Note that another client may have changed the rows."""
        self._written = None


def _fingerprint(stages: Sequence[StageReport]) -> int:
    return stages.fingerprint if isinstance(stages, PackedFigures) else hash(tuple(stages))
