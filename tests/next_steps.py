"""The commands of next steps: they stand between backquotes."""

from __future__ import annotations

import re
import shlex

from latencyprobe.domain.verdict import NEXT_STEPS

_COMMAND = re.compile(r"`([^`]+)`")


def commands() -> tuple[tuple[str, ...], ...]:
    """Each command of any next step once, by its words."""
    lines = {line for text in NEXT_STEPS for line in _COMMAND.findall(text)}
    return tuple(tuple(shlex.split(line)) for line in sorted(lines))
