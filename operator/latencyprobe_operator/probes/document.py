"""The status as a document: its size, and the patch to the one in the API server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from latencyprobe_operator.api.conditions import ConditionType

# The API server takes 1.5 MiB at most, and every reader of the list gets all of it.
MAX_BYTES = 240 * 1024
_LONGEST_MESSAGE = 400
Document = dict[str, Any]


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
