"""The nesting of the API's objects: anyone who may write one may nest it.

An API server takes up to 10,000 levels (maxNestingDepth of Go's encoding/json). Python's decoder
refuses about 1,000 by default, so one such object would end a list for all.
"""

from __future__ import annotations

import sys

# A level takes some 300 bytes of the stack, which has 8 MiB.
_MOST_LEVELS = 12_000


def allow_nested_objects() -> None:
    """Have this process decode all objects that an API server may have."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _MOST_LEVELS))
