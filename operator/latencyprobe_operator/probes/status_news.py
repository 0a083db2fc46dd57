"""News: the differences between two statuses that are worth a write.

Measured figures change with each report. A change within a bucket of a histogram is noise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from latencyprobe.domain.durations import parse_ns
from latencyprobe.domain.histogram import BUCKETS_PER_OCTAVE
from latencyprobe.domain.measurement import CONNTRACK_FULL_PERCENT
from latencyprobe.domain.processors import is_noted
from latencyprobe_operator.probes.document import HEAVY, WORST_POD_IS, Document

_ROWS_OF_NODES = ("nodes", "omittedNodes")
# The numbers of rows that are left out change with the other rows.
_VOLATILE = ("lastReportTime", "measuredSeconds", "omittedForSize")
_BUCKET_RATIO: float = 2.0 ** (1 / BUCKETS_PER_OCTAVE)
# Of a share in percent: parts of a total have noise in common.
_SHARE_STEP = 1.0
# Parts that are compared as they are, their figures and their order included.
_EXACT = frozenset({"targets", "nodes", "omittedPods", "omittedNodes", "containers"})
_PROSE = frozenset({"message", "evidence", "nextStep"})
_DURATIONS = frozenset({"p50", "p99"})
_PENDING = "pending"
# What is pending is news from this age on.
_LONG_PENDING_NS = 10**9
# A digit within a name is part of the name.
_FIGURE = re.compile(r"(?<![\w.-])[\d.,]+")
_WORST_POD = re.compile(rf"(?<={WORST_POD_IS})\S+")
_IDENTITY = ("type", "name", "node", "detail", "address", "kind")


def differs(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Decide whether a status has news.

    News is another verdict, condition, pod, node or target, and a figure that has changed by more
    than a bucket. Figures within a sentence, the order of pods, and the name of the worst one are
    no news. Nor are waits of under a second in `pending`: a busy pod always has some. Nor are the
    lines that stand beside a verdict from a threshold on: figures pass it again and again.
    """
    return _differ(_lasting(before), _lasting(after), "")


def light(before: Mapping[str, Any], after: Document) -> Document:
    """Return the document with the pods and nodes' figures of before: those take most bytes."""
    return _with_parts_of(before, after, HEAVY)


def without_nodes(before: Mapping[str, Any], after: Document) -> Document:
    """Return the document with the rows of nodes of before."""
    return _with_parts_of(before, after, _ROWS_OF_NODES)


def _with_parts_of(before: Mapping[str, Any], after: Document, keys: Collection[str]) -> Document:
    kept = {key: before[key] for key in keys if key in before}
    return {key: value for key, value in after.items() if key not in keys} | kept


def _lasting(document: Mapping[str, Any]) -> Document:
    return {key: value for key, value in document.items() if key not in _VOLATILE}


def _differ(old: Any, new: Any, key: str) -> bool:
    if old == new:
        return False
    if key in _EXACT:
        return True
    if key in _PROSE:
        return bool(_without_figures(old) != _without_figures(new))
    if key == _PENDING:
        old, new = _long_pending(old), _long_pending(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return any(_fields_differ(old, new, each) for each in {**old, **new})
    if isinstance(old, list) and isinstance(new, list):
        return _rows_differ(old, new)
    return _figures_differ(old, new, key)


def _fields_differ(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
    # A counter without events is absent.
    absent = 0 if _is_figure(old.get(key, 0)) and _is_figure(new.get(key, 0)) else None
    return _differ(old.get(key, absent), new.get(key, absent), key)


def _long_pending(pending: Any) -> Mapping[str, Any]:
    """Return the kinds that have waited for long."""
    return {
        kind: figures
        for kind, figures in (pending or {}).items()
        if figures.get("oldestNs", 0) >= _LONG_PENDING_NS
    }


def _rows_differ(old: Sequence[Any], new: Sequence[Any]) -> bool:
    rows, others = _by_identity(old), _by_identity(new)
    if rows is None or others is None or rows.keys() != others.keys():
        return True
    return any(_differ(rows[each], others[each], "") for each in rows)


def _by_identity(rows: Sequence[Any]) -> dict[tuple[Any, ...], Any] | None:
    """Return rows by their identity; None for other lists, or if it is ambiguous."""
    if not all(isinstance(row, Mapping) for row in rows):
        return None
    found = {tuple(row.get(key) for key in _IDENTITY): row for row in rows}
    return found if len(found) == len(rows) else None


def _figures_differ(old: Any, new: Any, key: str) -> bool:
    if key in _DURATIONS and isinstance(old, str) and isinstance(new, str):
        old, new = parse_ns(old), parse_ns(new)
    if not _is_figure(old) or not _is_figure(new):
        return True
    if key == "sharePercent" and abs(old - new) <= _SHARE_STEP:
        return False
    low, high = sorted((old, new))
    return bool(low <= 0 or high / low > _BUCKET_RATIO)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_figures(text: Any) -> Any:
    if isinstance(text, list):
        return [_without_figures(each) for each in text if not _is_beside(each)]
    if not isinstance(text, str):
        return text
    lasting = "; ".join(each for each in text.split("; ") if not _is_beside(each))
    return _FIGURE.sub("0", _WORST_POD.sub("", lasting))


def _is_beside(line: Any) -> bool:
    """Return True for a line of evidence that decides nothing, and is there from a threshold on."""
    if not isinstance(line, str):
        return False
    return is_noted(line) or line.endswith(f"({CONNTRACK_FULL_PERCENT})")
