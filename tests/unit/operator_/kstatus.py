"""The rules by which `helm --wait`, Flux and others judge an object.

After checkGenericProperties() and checkReadyCondition(), sigs.k8s.io/cli-utils,
pkg/kstatus/status/{generic,status}.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IN_PROGRESS, CURRENT, FAILED = "InProgress", "Current", "Failed"


def kstatus(generation: int, status: Mapping[str, Any]) -> str:
    """Judge an object of a kind without rules of its own, by its generation and status."""
    if status.get("observedGeneration", generation) != generation:
        return IN_PROGRESS
    conditions = status.get("conditions", ())
    for each in conditions:
        if each["type"] == "Reconciling" and each["status"] == "True":
            return IN_PROGRESS
        if each["type"] == "Stalled" and each["status"] == "True":
            return FAILED
    ready = [each["status"] for each in conditions if each["type"] == "Ready"]
    return CURRENT if not ready or ready[0] == "True" else IN_PROGRESS
