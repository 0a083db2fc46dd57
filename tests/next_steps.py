"""The commands of next steps: they stand between backquotes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from latencyprobe.domain import verdict
from latencyprobe.domain.causes import CAUSES, GROWN_NETWORK

_COMMAND = re.compile(r"`([^`]+)`")


def commands() -> tuple[tuple[str, ...], ...]:
    """Each command once, by its words."""
    found = (_COMMAND.findall(text) for text in _next_steps())
    lines = dict.fromkeys(line for each in found for line in each)
    return tuple(tuple(shlex.split(line)) for line in lines)


def _next_steps() -> Iterator[str]:
    for cause in (*CAUSES.values(), GROWN_NETWORK):
        yield cause.next_step
    for name, text in vars(verdict).items():
        if name.isupper() and isinstance(text, str):
            yield text
