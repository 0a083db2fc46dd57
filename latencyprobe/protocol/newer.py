"""Names of a newer agent that this version does not know: some figures are kept, all are reported.

A figure of a pod needs no meaning to be shown. So it is kept if its name is a plain one. A name of
a peer must not pass for anything else: so all other names are reported, printable and cut short.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from latencyprobe.printable import bounded

_Figure = TypeVar("_Figure")

# Of one pod: so many figures of each sort, and so many names of one message.
MAX_KEPT = 8
MAX_UNKNOWN = 32
# As this project names counters and kinds.
_PLAIN = re.compile(r"[a-z][A-Za-z0-9]{0,39}")
_LONGEST_NAME = 64


def kept_figures(figures: Mapping[str, _Figure], unknown: Iterable[str]) -> dict[str, _Figure]:
    """Return the figures with unknown names that are kept: plain ones, the first by name."""
    plain = sorted(filter(_PLAIN.fullmatch, unknown))
    return {name: figures[name] for name in plain[:MAX_KEPT]}


def shown_names(unknown: Collection[str]) -> tuple[str, ...]:
    """Return unknown names as they are reported: printable, short, and not too many."""
    if not unknown:
        return ()
    return tuple(sorted({bounded(name, _LONGEST_NAME) for name in unknown if name}))[:MAX_UNKNOWN]
