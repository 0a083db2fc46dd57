"""The pace of loading: the programs to have loaded now, and the time to decide again.

A change of the loaded programs costs a compilation, seconds of a core on the node. Any namespace
can cause changes: by the modules of a probe, or by probes and pods that come and go. So the pace
belongs to the node:

- Loaded programs change at most once per interval. Wanted programs wait until then.
- Programs that are not wanted any more stay loaded for one interval. Then the next change drops
  them. If nothing is wanted any more, they are detached without a compilation.
- On a node without any, programs are loaded at once while a reserve of starts lasts. The reserve
  grows by one start per interval. So a crash loop's back-off does not exhaust it.

Only the modules, UDP and the reporting of single packets are compiled in. Targets, filters,
sampling and the limits of a trace are entries of tables, and need no pace. UDP is both: filters
select it, and its programs are loaded only if a filter does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from latencyprobe.domain.stages import Module

CHANGE_INTERVAL_S = 60.0
RESERVED_STARTS = 5

_TRACING, _UDP = "tracing", "UDP"


@dataclass(frozen=True, slots=True)
class Programs:
    """The inputs of a compilation that a client can change.

    `tracing`: with the reporting of single packets. `udp`: with the programs for datagrams.
    """

    modules: frozenset[Module] = frozenset()
    tracing: bool = False
    udp: bool = False

    @property
    def parts(self) -> frozenset[str]:
        """The names of the modules, of tracing and of UDP."""
        extras = {_TRACING: self.tracing, _UDP: self.udp}
        return frozenset(self.modules) | {name for name, is_there in extras.items() if is_there}


NO_PROGRAMS = Programs()


def _programs(parts: frozenset[str]) -> Programs:
    modules = frozenset(module for module in Module if module in parts)
    return Programs(modules, _TRACING in parts, _UDP in parts)


@dataclass(frozen=True, slots=True)
class Decision:
    """The programs to have loaded now, and when to decide again; None: when the wish changes."""

    programs: Programs
    next_at: float | None = None


class Pacer:
    """The loaded programs of a node, and its history of changes. Times are the caller's.

    `interval_s`: 0 for no limit, as a single client on its own machine wants.
    """

    def __init__(self, interval_s: float = 0.0, starts: int = RESERVED_STARTS) -> None:
        self._interval_s = interval_s
        self._starts = starts
        self._loaded = NO_PROGRAMS
        self._wanted: frozenset[str] = frozenset()
        # When each loaded part was last wanted.
        self._wanted_at: dict[str, float] = {}
        self._change_from = -math.inf
        self._reserve_full_at = -math.inf
        self._held_until = -math.inf

    @property
    def loaded(self) -> Programs:
        """The programs that were loaded last."""
        return self._loaded

    def decide(self, now: float, wanted: Programs, *, linger: bool = True) -> Decision:
        """Return the programs to have loaded now, if these are wanted.

        `linger`: False where a client wants everything detached at once.
        """
        parts, loaded = wanted.parts, self._loaded.parts
        for part in loaded & (parts | self._wanted):
            self._wanted_at[part] = now
        self._wanted = parts
        if not self._interval_s:
            return Decision(wanted)
        ends = {part: self._wanted_at[part] + self._interval_s for part in loaded - parts}
        lingering = {part: end for part, end in ends.items() if linger and end > now}
        if not parts:
            if lingering:
                return Decision(self._loaded, max(lingering.values()))
            return Decision(NO_PROGRAMS)
        return self._toward(parts | lingering.keys(), now, min(lingering.values(), default=None))

    def begin(self, now: float) -> None:
        """Note that a compilation begins, whether it will succeed or not."""
        self._change_from = now + self._interval_s
        full_at = max(self._reserve_full_at, now) + self._interval_s
        self._reserve_full_at = min(full_at, now + self._starts * self._interval_s)

    def finish(self, programs: Programs) -> None:
        """Note that these programs, and no others, are loaded."""
        if programs != self._loaded:
            self._held_until = -math.inf
        self._loaded = programs
        self._wanted_at = {part: self._wanted_at.get(part, -math.inf) for part in programs.parts}

    def hold(self, until: float) -> None:
        """Allow no change before this time, since the last one failed."""
        self._held_until = until

    def _toward(self, target: frozenset[str], now: float, linger_end: float | None) -> Decision:
        if target == self._loaded.parts:
            if linger_end is None:
                return Decision(self._loaded)
            return Decision(self._loaded, max(linger_end, self._allowed_from()))
        allowed_from = self._allowed_from()
        if now < allowed_from:
            return Decision(self._loaded, allowed_from)
        later = None if linger_end is None else max(linger_end, now + self._interval_s)
        return Decision(_programs(target), later)

    def _allowed_from(self) -> float:
        """Return when the next compilation may begin."""
        if self._loaded.modules:
            return max(self._change_from, self._held_until)
        return max(self._reserve_full_at - (self._starts - 1) * self._interval_s, self._held_until)
