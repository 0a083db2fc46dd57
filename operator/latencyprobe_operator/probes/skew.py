"""Version skew: the parts of an agent's reports that this operator cannot use, in one sentence."""

from __future__ import annotations

from collections.abc import Collection

from latencyprobe.domain.score import SCORE_VERSION

_MOST_NAMES = 3


def skew_of_scores(version: int) -> str:
    """Describe scores of another version; empty if they can be compared."""
    if version == SCORE_VERSION:
        return ""
    return (
        f"makes scores of version {version}, this operator compares those of version "
        f"{SCORE_VERSION}: only its pods in full are listed; bring both to one version"
    )


def skew_of_names(unknown: Collection[str]) -> str:
    """Describe figures and causes of a newer agent; empty without any."""
    if not unknown:
        return ""
    shown = sorted(unknown)[:_MOST_NAMES]
    more = len(unknown) - len(shown)
    names = ", ".join(shown) + (f" and {more} more" if more else "")
    return f"measures {names}, which this operator does not know; upgrade the operator"
