"""The status as a document: its size, and the patch to the one in the API server."""

from __future__ import annotations

import json
import marshal
import zlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from latencyprobe.domain.waits import TOTALS
from latencyprobe_operator.api.conditions import ConditionType

# The API server takes 1.5 MiB at most, and every reader of the list gets all of it.
MAX_BYTES = 240 * 1024
_LONGEST_MESSAGE = 400
Document = dict[str, Any]
WORST_POD_IS = "the worst is "
"""Precedes a pod's name in a message. Another name is no news, since the order of pods is none."""
HEAVY = ("pods", "omittedPods", "omittedForSize", "nodeContext")
"""The parts with the figures of single pods and nodes, which take most bytes."""

# The parts that grow with the cluster, and that few readers need.
_ROWS = ("pods", "nodeContext")
_NODES = ("nodes",)
# A quarter of the size, in 0.2 ms.
_LEVEL = 1


class KeptDocument:
    """A status document for a long time: the rows of its pods and nodes as one string of bytes.

    The rows of 20 pods take 300 KB as Python objects, and 14 KB as bytes. marshal reads and writes
    them several times as fast as json; the bytes never leave this process.
    """

    __slots__ = ("_nodes", "_rows", "outline", "worst")

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.outline: Document = {
            key: value for key, value in document.items() if key not in _ROWS + _NODES
        }
        """The document without those rows."""
        self.worst = worst_of(document)
        self._rows, self._nodes = _packed(document, _ROWS), _packed(document, _NODES)

    def whole(self) -> Document:
        """Return the document as it was."""
        return {**self.without_pods(), **_unpacked(self._rows)}

    def without_pods(self) -> Document:
        """Return the document without the rows of pods, and of the figures of nodes."""
        return {**self.outline, **_unpacked(self._nodes)}


class WorstPod(NamedTuple):
    """The pod in a status that people read of first, its verdict, and the p99 of its slower total.

    Without samples, `p99_ns` is 0.
    """

    node: object
    name: object
    bottleneck: object
    p99_ns: int


def worst_of(document: Mapping[str, Any]) -> WorstPod | None:
    """Return the first pod of a document; None without one, or if its row is corrupt."""
    try:
        row = document["pods"][0]
        totals = (int(each["p99Ns"]) for each in row["stages"] if each["name"] in TOTALS)
        bottleneck = row["verdict"]["bottleneck"]
        return WorstPod(row["node"], row["name"], bottleneck, max(totals, default=0))
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _packed(document: Mapping[str, Any], keys: Collection[str]) -> bytes:
    rows = {key: document[key] for key in keys if key in document}
    return zlib.compress(marshal.dumps(rows), level=_LEVEL)


def _unpacked(packed: bytes) -> Document:
    rows: Document = marshal.loads(zlib.decompress(packed))  # noqa: S302 - our own
    return rows


def shorten(text: str) -> str:
    """Cut a message to the length that a status has room for."""
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


def size_bytes(document: Mapping[str, Any]) -> int:
    """Return the length of the document as the API server's JSON."""
    return len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    """Return the JSON merge patch (RFC 7386) from `before` to `after`; empty if they are equal.

    Values that are None have no place in `after`: a merge patch cannot express them.
    """
    patch: Document = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif key not in before or old != value:
            patch[key] = value
    return patch


def turning_points(document: Mapping[str, Any]) -> Document:
    """Return the parts that people wait for: their change is written without delay."""
    return {
        "observedGeneration": document.get("observedGeneration"),
        "phase": document.get("phase"),
        "ready": [
            (each.get("status"), each.get("reason"))
            for each in document.get("conditions") or ()
            if each.get("type") == ConditionType.READY
        ],
    }
