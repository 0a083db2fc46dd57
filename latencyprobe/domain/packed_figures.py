"""The stages of a pod in full in little memory: most of them are never shown.

As Python objects, 19 stages take 8 KB. Here they are one string of bytes, of 1.7 KB. It still is a
sequence of reports.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from latencyprobe.domain.report import StageReport
from latencyprobe.domain.stages import STAGES

# The index of the stage; count, mean, p50, p90, p99, max, lost, unmatched and clamped; the share,
# not a number without one; and the sampling ratio.
_FIGURES = struct.Struct("<BQQQQQQQQQdd")
_KEYS = (
    *("count", "meanNs", "p50Ns", "p90Ns", "p99Ns", "maxNs", "lost", "unmatched", "clamped"),
    *("sharePercent", "samplingRatio"),
)
"""Of the document of a `StageReport`, in the order of the figures."""
Figures = tuple[int, int, int, int, int, int, int, int, int]
"""Count, mean, p50, p90, p99 and maximum; lost, unmatched and clamped samples."""


class PackedFigures(Sequence[StageReport]):
    """Reports on stages of a target, made from their figures on each access."""

    __slots__ = ("_packed",)

    def __init__(self, packed: Iterable[bytes] = ()) -> None:
        """Join stages that `pack_figures` has packed."""
        self._packed = b"".join(packed)

    def __iter__(self) -> Iterator[StageReport]:
        for figures in _FIGURES.iter_unpack(self._packed):
            yield _report(*figures)

    def __len__(self) -> int:
        return len(self._packed) // _FIGURES.size

    @overload
    def __getitem__(self, index: int) -> StageReport: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StageReport]: ...
    def __getitem__(self, index: int | slice) -> StageReport | Sequence[StageReport]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedFigures):
            return self._packed == other._packed
        return tuple(self) == other

    __hash__ = None  # type: ignore[assignment]

    def document(self) -> list[dict[str, Any]]:
        """Return the documents of the reports, which are not made: see `SelfWritten`."""
        return [_document(*figures) for figures in _FIGURES.iter_unpack(self._packed)]

    @property
    def fingerprint(self) -> int:
        """A number that differs between different figures, but for rare cases."""
        return hash(self._packed)


def pack_figures(
    stage: int, figures: Figures, share_percent: float | None, sampling_ratio: float
) -> bytes:
    """Pack the report on one stage. `stage` is its index in STAGES."""
    share = math.nan if share_percent is None else share_percent
    return _FIGURES.pack(stage, *figures, share, sampling_ratio)


def _report(stage: int, *figures: float) -> StageReport:
    *counts, share_percent, sampling_ratio = figures
    count, mean_ns, p50_ns, p90_ns, p99_ns, max_ns, lost, unmatched, clamped = map(int, counts)
    return StageReport(
        name=STAGES[stage].name,
        count=count,
        mean_ns=mean_ns,
        p50_ns=p50_ns,
        p90_ns=p90_ns,
        p99_ns=p99_ns,
        max_ns=max_ns,
        share_percent=None if math.isnan(share_percent) else share_percent,
        lost=lost,
        unmatched=unmatched,
        clamped=clamped,
        sampling_ratio=sampling_ratio,
    )


def _document(stage: int, *figures: float) -> dict[str, Any]:
    document = dict(zip(_KEYS, figures, strict=True))
    if math.isnan(document["sharePercent"]):
        del document["sharePercent"]
    return {"name": STAGES[stage].name, **document}
