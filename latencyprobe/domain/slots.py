"""Slots: the parts in which figures leave a window.

A slot leaves once its end is older than the window. So a window has figures that are older than its
length, by less than a slot.
"""

from __future__ import annotations

import math

SLOTS = 12
"""The most slots of a window."""


def slot_length_s(window_s: float, interval_s: float) -> float:
    """Return the length of each slot of a window: some whole intervals."""
    return math.ceil(window_s / SLOTS / interval_s) * interval_s
