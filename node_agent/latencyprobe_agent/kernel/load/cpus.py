"""The numbers of the CPUs that may be there, also of those that are switched off."""

from __future__ import annotations

import re
from pathlib import Path

from latencyprobe_agent.kernel.abi import LEAST_RECEIVED_BITS, MOST_RECEIVED_BITS

# NR_CPUS of a distribution's kernel is 8192 at most.
_MOST = 8192


def cpu_numbers(possible: Path = Path("/sys/devices/system/cpu/possible")) -> int:
    """Return the highest number plus one, or that of the largest kernel if it is not known."""
    try:
        numbers = [int(number) for number in re.findall(r"\d+", possible.read_text())]
    except OSError:
        numbers = []
    return 1 + max(numbers, default=_MOST - 1)


def received_bits(cpus: int) -> int:
    """Return the size of the table of packets on their path, as a power of two.

    It has a thousand elements for each CPU, which receives packets at a rate of its own. That is
    256 KiB up to 4 CPUs, and 4 MiB from 64 on.
    """
    return min(MOST_RECEIVED_BITS, max(LEAST_RECEIVED_BITS, 10 + (cpus - 1).bit_length()))
