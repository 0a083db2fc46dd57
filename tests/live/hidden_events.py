"""Events that a timer drives, and how many of them a count may lack.

On the machine that tests run on, up to one in a hundred of them is seen by no BPF program at all,
though the kernel counts it and `recursion_misses` stays 0. Emulated guests hide none.
"""

from __future__ import annotations

import os

from tests.kernels.inside.results import RESULTS_VARIABLE

_IS_GUEST = RESULTS_VARIABLE in os.environ
# Of a few events. Two of them are hidden once in ten thousand runs.
MOST_HIDDEN = 0 if _IS_GUEST else 1


# As often is something done until no event of it was hidden.
TRIES = range(1 + 2 * MOST_HIDDEN)


def counts_of(events: int) -> range:
    """Return the counts that are right for so many events of a timer."""
    return range(events - MOST_HIDDEN, events + 1)
