"""Statuses without the rows that the API server refuses.

No row should be refused: reports are checked on arrival. If one is, because of a fault or of an
older CRD, the others are written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from latencyprobe_operator.probes.document import Document

# The lists of rows, and the field that counts the rows that a list lacks.
_LISTS = {"pods": "omittedPods", "nodes": "omittedNodes", "nodeContext": None}
# kube-openapi, pkg/validation/validate/slice_validator.go; older versions write `pods.0`.
_ROW = re.compile(r"status\.(\w+)(?:\[(\d+)\]|\.(\d+)\b)")


def without_refused(document: Document, fields: Collection[str]) -> Document:
    """Return the document without the rows of these fields, which the API server has named.

    Without all rows, if it has named none.
    """
    refused = set(_rows_of(fields))
    return _without(document, refused) if refused else without_rows(document)


def without_rows(document: Document, _: Collection[str] = ()) -> Document:
    """Return the document without all rows."""
    return _without(
        document,
        {(name, index) for name in _LISTS for index in range(len(document.get(name) or ()))},
    )


def _rows_of(fields: Collection[str]) -> Iterator[tuple[str, int]]:
    for field in fields:
        if found := _ROW.match(field):
            yield found[1], int(found[2] or found[3])


def _without(document: Document, refused: Collection[tuple[str, int]]) -> Document:
    rest = dict(document)
    for name, count in _LISTS.items():
        rows = document.get(name)
        if not rows:
            continue
        rest[name] = [row for index, row in enumerate(rows) if (name, index) not in refused]
        if count:
            rest[count] = document.get(count, 0) + len(rows) - len(rest[name])
    return rest
