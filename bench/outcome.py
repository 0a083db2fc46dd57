"""The outcome of a benchmark, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tables and remarks to print, and the same figures as a document."""

    shown: tuple[RenderableType, ...]
    document: dict[str, Any]


class CannotMeasureError(RuntimeError):
    """A benchmark that this machine cannot run. The message says why and what to do."""
