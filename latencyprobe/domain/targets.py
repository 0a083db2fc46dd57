"""States of a target: found, awaited, or lost."""

from __future__ import annotations

from enum import StrEnum


class TargetState(StrEnum):
    """How far an agent has found a target."""

    ATTACHED = "Attached"
    PENDING = "Pending"
    GONE = "Gone"
    FAILED = "Failed"
