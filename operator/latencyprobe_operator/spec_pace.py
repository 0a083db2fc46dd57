"""The pace of changes of LatencyProbes: a few specs of each at once, then one now and then.

Another spec costs each node of the probe some readings of all its targets, and a state for each
agent. So a spec that changes all the time is taken in now and then, as it is at that time.

Another probe costs as much. So the pace of a probe that ends is *left* to the next one of its
namespace, under any name. The end counts as a change. Probes that are deleted and created in a loop
have the pace of as many probes that change. New probes beside the others do not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from latencyprobe_operator.api.spec import generation_of, probe_key
from latencyprobe_operator.pace import Pace

# That many specs of a probe at once, and one more in each of these times.
BURST = 5
PACE_S = 10.0

Body = Mapping[str, Any]


@dataclass(slots=True)
class _SpecPace:
    """The pace of one probe."""

    namespace: str
    generation: int
    """That which was passed on last."""
    pace: Pace
    held: Body | None = None
    """The newest object, without its status, if its spec is still to be passed on."""
    later: asyncio.TimerHandle | None = None
    is_served: bool = False
    """It measures, or will from `start` on."""
    start: asyncio.TimerHandle | None = None

    def drop(self) -> None:
        if self.later:
            self.later.cancel()
        self.held = self.later = None


class PacedSpecs:
    """Objects of known probes: each is passed on at once, and its spec perhaps later.

    `start`: is called with the UID of a probe that had to wait until it measures.
    """

    def __init__(
        self, pass_on: Callable[[Body], None], start: Callable[[str], None] = lambda _: None
    ) -> None:
        self._pass_on = pass_on
        self._start = start
        self._paces: dict[str, _SpecPace] = {}
        # By namespace: `full_at` of the paces that probes left, a heap.
        self._left: dict[str, list[float]] = {}

    def begin(self, body: Body) -> None:
        """Note that a probe begins, perhaps again, with this object."""
        key, generation = probe_key(body), generation_of(body)
        new = _SpecPace(key.namespace, generation, Pace(BURST, PACE_S))
        pace = self._paces.setdefault(key.uid, new)
        pace.drop()
        pace.generation = generation

    def serve(self, uid: str) -> float:
        """Note that a probe that has begun is to measure; return the time until it may.

        It takes over the pace of one that ended before it in its namespace, if one did lately.
        """
        pace, loop = self._paces.get(uid), asyncio.get_running_loop()
        if pace is None:  # closed
            return 0.0
        if not pace.is_served:
            pace.is_served = True
            self._forget_full(pace.namespace, loop.time())
            if left := self._left.get(pace.namespace):
                pace.pace = Pace(BURST, PACE_S, heappop(left))
            wait_s = pace.pace.wait_s(loop.time())
            if wait_s > 0:
                pace.start = loop.call_later(wait_s, self._start_now, uid)
        return max(pace.start.when() - loop.time(), 0.0) if pace.start else 0.0

    def refuse(self, uid: str) -> None:
        """Note that a probe is not to measure, if it was: the next one has its pace."""
        pace = self._paces.get(uid)
        if pace is None or not pace.is_served:
            return
        if pace.start:
            pace.start.cancel()
        heappush(self._left.setdefault(pace.namespace, []), pace.pace.full_at)
        pace.pace, pace.is_served, pace.start = Pace(BURST, PACE_S), False, None
        # Of one other namespace in turn, too: else nothing would forget those of the last one.
        oldest = next(iter(self._left))
        self._left[oldest] = self._left.pop(oldest)
        self._forget_full(oldest, asyncio.get_running_loop().time())

    def offer(self, body: Body) -> None:
        """Pass on the object of a probe.

        Beyond the pace it has the generation of before, so that only its version and status count.
        """
        pace = self._paces.get(probe_key(body).uid)
        if pace and generation_of(body) != pace.generation:
            loop = asyncio.get_running_loop()
            wait_s = pace.pace.wait_s(loop.time())
            if wait_s > 0:
                pace.held = {key: value for key, value in body.items() if key != "status"}
                pace.later = pace.later or loop.call_later(wait_s, self._pass_on_held, pace)
                body = {**body, "metadata": {**body["metadata"], "generation": pace.generation}}
            else:
                pace.drop()
                self._count(pace, body)
        self._pass_on(body)

    def forget(self, uid: str) -> None:
        """Pass on nothing more of a probe, if it is known: it is gone."""
        if pace := self._paces.get(uid):
            if pace.is_served and not pace.start:
                pace.pace.count(asyncio.get_running_loop().time())
            self.refuse(uid)
            pace.drop()
            del self._paces[uid]

    def close(self) -> None:
        """Pass on nothing more."""
        for uid in list(self._paces):
            self.forget(uid)

    def _start_now(self, uid: str) -> None:
        self._paces[uid].start = None
        self._start(uid)

    def _pass_on_held(self, pace: _SpecPace) -> None:
        body = pace.held
        pace.drop()
        if body is not None:
            self._count(pace, body)
            self._pass_on(body)

    def _count(self, pace: _SpecPace, body: Body) -> None:
        pace.generation = generation_of(body)
        pace.pace.count(asyncio.get_running_loop().time())

    def _forget_full(self, namespace: str, now: float) -> None:
        """Forget what probes of a namespace left, as far as new probes have as much."""
        left = self._left.get(namespace, [])
        while left and left[0] <= now:
            heappop(left)
        if not left:
            self._left.pop(namespace, None)
