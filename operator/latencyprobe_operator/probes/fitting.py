"""Fitting a status into its size: the least important rows are left out first, and counted."""

from __future__ import annotations

import marshal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from latencyprobe.domain.waits import TOTALS
from latencyprobe_operator.probes.document import MAX_BYTES, Document, size_bytes

# For the counts of what is left out.
_ROOM = 200
# A version of marshal that writes equal texts as often as they occur.
_WITHOUT_REFERENCES = 2


class _Removal(NamedTuple):
    kind: str
    rows: int
    taken_bytes: int


def fit(document: Document) -> Document:
    """Leave out as much as it takes to stay within MAX_BYTES.

    The order is: stages that are no part of a total, stages of nodes, pods from the best up, nodes.
    Peers that the document was built without are counted already.
    """
    if _fits(document):
        return document
    size = size_bytes(document)
    if size <= MAX_BYTES:
        return document
    size += _ROOM
    omitted: Counter[str] = Counter(document.get("omittedForSize", {}))
    for removals in _STEPS:
        for removal in removals(document):
            omitted[removal.kind] += removal.rows
            size -= removal.taken_bytes
            if size <= MAX_BYTES:
                break
        if size <= MAX_BYTES:
            break
    document["omittedPods"] += omitted.pop("pods", 0)
    document["omittedNodes"] += omitted.pop("nodes", 0)
    if omitted:
        document["omittedForSize"] = dict(omitted)
    return document


def _fits(document: Document) -> bool:
    """Return True for most documents that are small enough, in a fourth of the time of JSON.

    marshal takes five bytes for most numbers, and more for texts than JSON without escapes. So with
    the names of its fields, a document in JSON is at most twice as large.
    """
    return 2 * len(marshal.dumps(document, _WITHOUT_REFERENCES)) <= MAX_BYTES


def _stages_without_share(document: Document) -> Iterator[_Removal]:
    for row in reversed(document["pods"]):
        kept = [each for each in row["stages"] if "sharePercent" in each or each["name"] in TOTALS]
        gone = [each for each in row["stages"] if each not in kept]
        if gone:
            row["stages"] = kept
            yield _removal("stages", gone)


def _stages_of_nodes(document: Document) -> Iterator[_Removal]:
    for rows in ("nodeContext", "nodes"):
        for row in reversed(document.get(rows, [])):
            if gone := row.get("stages"):
                row["stages"] = []
                yield _removal("nodeStages", gone)


def _rows(name: str) -> Callable[[Document], Iterator[_Removal]]:
    def remove(document: Document) -> Iterator[_Removal]:
        while len(document[name]) > 1:
            yield _removal(name, [document[name].pop()])

    return remove


def _removal(kind: str, gone: Sequence[Any]) -> _Removal:
    # Each with its comma.
    return _Removal(kind, len(gone), sum(size_bytes(each) + 1 for each in gone))


_STEPS = (_stages_without_share, _stages_of_nodes, _rows("pods"), _rows("nodes"))
