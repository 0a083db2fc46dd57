"""States of a target: found, awaited, or lost."""

from __future__ import annotations

from enum import StrEnum


class TargetState(StrEnum):
    """The state of a target on its agent."""

    ATTACHED = "Attached"
    PENDING = "Pending"
    GONE = "Gone"
    FAILED = "Failed"
