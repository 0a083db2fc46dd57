"""How much longer than usual tests wait: emulated machines are some ten times slower."""

from __future__ import annotations

import os

VARIABLE = "LATENCYPROBE_TEST_PATIENCE"


def patient(seconds: float) -> float:
    """A time limit that holds on a usual machine, as long as this one needs."""
    return seconds * float(os.environ.get(VARIABLE, "1"))
