"""PromQL of the kind that several panels use."""

from __future__ import annotations

from collections.abc import Iterable

from latencyprobe.domain.stages import STAGES, Module

STAGE_TIMES = "latencyprobe_stage_seconds"
RECENT = "$__rate_interval"
WHOLE = "$__range"
# Verdicts that accuse no cause.
NO_BOTTLENECK = "None|InsufficientData"


def rate_of(selector: str, *labels: str, over: str = RECENT) -> str:
    """Return the histograms of a selection, one for each combination of these labels."""
    histograms = f"rate({STAGE_TIMES}{{{selector}}}[{over}])"
    return f"sum by ({', '.join(labels)}) ({histograms})" if labels else f"sum({histograms})"


def quantile(percentile: float, histograms: str) -> str:
    """Return a percentile of histograms."""
    return f"histogram_quantile({percentile / 100:g}, {histograms})"


def mean_by_stage(selector: str, total: str) -> str:
    """Return the mean seconds that a packet spends in each part of a total."""
    parts = rate_of(f'{selector},stage=~"{parts_of(total)}"', "stage")
    packets = rate_of(f'{selector},stage="{total}"')
    return f"histogram_sum({parts}) / scalar(histogram_count({packets}))"


def named(names: Iterable[str]) -> str:
    """Return a pattern of these names."""
    return "|".join(name.replace(".", "[.]") for name in names)


def parts_of(total: str) -> str:
    """Return a pattern of the stages that add up to a total."""
    return named(stage.name for stage in STAGES if stage.total == total)


def durations() -> str:
    """Return a pattern of the stages that are no part of a total, and no total: of connections."""
    totals = {stage.total for stage in STAGES}
    return named(
        stage.name
        for stage in STAGES
        if not stage.total
        and not stage.within
        and stage.name not in totals
        and stage.module is not Module.IRQ
    )
