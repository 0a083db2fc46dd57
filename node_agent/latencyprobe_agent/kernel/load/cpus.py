"""The numbers of the CPUs that may be there, also of those that are switched off."""

from __future__ import annotations

import re
from pathlib import Path

# NR_CPUS of a distribution's kernel is 8192 at most.
_MOST = 8192


def cpu_numbers(possible: Path = Path("/sys/devices/system/cpu/possible")) -> int:
    """Return the highest number plus one, or that of the largest kernel if it is not known."""
    try:
        numbers = [int(number) for number in re.findall(r"\d+", possible.read_text())]
    except OSError:
        numbers = []
    return 1 + max(numbers, default=_MOST - 1)
