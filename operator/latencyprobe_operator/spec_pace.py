"""The pace of changes of LatencyProbes: a few specs of each at once, then one now and then.

Another spec costs each node of the probe some readings of all its targets, and a state for each
agent. So a spec that changes all the time is taken in now and then, as it is at that time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latencyprobe_operator.api.spec import generation_of, probe_key

# That many specs of a probe at once, and one more in each of these times.
BURST = 5
PACE_S = 10.0

Body = Mapping[str, Any]


@dataclass(slots=True)
class _SpecPace:
    """The pace of one probe."""

    generation: int
    """That which was passed on last."""
    full_at: float = 0.0
    """The time when BURST specs can be passed on at once again."""
    held: Body | None = None
    """The newest object, without its status, if its spec is still to be passed on."""
    later: asyncio.TimerHandle | None = None

    def wait_s(self, now: float) -> float:
        return self.full_at - now - (BURST - 1) * PACE_S

    def count(self, generation: int, now: float) -> None:
        self.generation = generation
        self.full_at = max(self.full_at, now) + PACE_S

    def drop(self) -> None:
        if self.later:
            self.later.cancel()
        self.held = self.later = None


class PacedSpecs:
    """Objects of known probes: each is passed on at once, and its spec perhaps later."""

    def __init__(self, pass_on: Callable[[Body], None]) -> None:
        self._pass_on = pass_on
        self._paces: dict[str, _SpecPace] = {}

    def begin(self, body: Body) -> None:
        """Note that a probe begins, perhaps again, with this object."""
        generation = generation_of(body)
        pace = self._paces.setdefault(probe_key(body).uid, _SpecPace(generation))
        pace.drop()
        pace.generation = generation

    def offer(self, body: Body) -> None:
        """Pass on the object of a probe.

        Beyond the pace it has the generation of before, so that only its version and status count.
        """
        pace = self._paces.get(probe_key(body).uid)
        if pace and generation_of(body) != pace.generation:
            loop = asyncio.get_running_loop()
            wait_s = pace.wait_s(loop.time())
            if wait_s > 0:
                pace.held = {key: value for key, value in body.items() if key != "status"}
                pace.later = pace.later or loop.call_later(wait_s, self._pass_on_held, pace)
                body = {**body, "metadata": {**body["metadata"], "generation": pace.generation}}
            else:
                pace.drop()
                pace.count(generation_of(body), loop.time())
        self._pass_on(body)

    def forget(self, uid: str) -> None:
        """Pass on nothing more of a probe, if it is known: it is gone."""
        if pace := self._paces.pop(uid, None):
            pace.drop()

    def close(self) -> None:
        """Pass on nothing more."""
        for uid in list(self._paces):
            self.forget(uid)

    def _pass_on_held(self, pace: _SpecPace) -> None:
        body = pace.held
        pace.drop()
        if body is not None:
            pace.count(generation_of(body), asyncio.get_running_loop().time())
            self._pass_on(body)
