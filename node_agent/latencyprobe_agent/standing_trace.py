"""The agent's own trace, which goes on whenever no client's does: the source of exemplars."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

from latencyprobe.domain.stages import Module
from latencyprobe_agent.desired import EVERY_PROBE, Desired
from latencyprobe_agent.kernel.contract import EngineError, TraceSpec
from latencyprobe_agent.plan import SlotKey
from latencyprobe_agent.tracing import Trace, TraceWish

log = logging.getLogger(__name__)

TOTALS = ("rx.total", "tx.total")
# Of all pods of the node together.
MAX_PER_SECOND = 100


class StandingTrace(Trace):
    """A trace of all targets, those that come later too, until it yields or the kernel refuses."""

    yields = True

    def __init__(self, limits_ns: Mapping[str, int], per_second: int) -> None:
        super().__init__(TraceWish(EVERY_PROBE, limits_ns, per_second))

    def goes_on(self, desired: Desired) -> bool:  # noqa: ARG002  (it is of no single probe)
        """Return True until it was ended: without a target it reports no packets."""
        return not self._is_over

    def needs_code(self, modules: Collection[Module]) -> bool:
        """Return True if one of its stages is measured by these modules."""
        return any(stage.is_measured_by(modules) for stage in self._stages)

    def spec(self, desired: Desired, numbers: Mapping[SlotKey, int]) -> TraceSpec:  # noqa: ARG002
        """Return the engine's spec, with all slots."""
        return TraceSpec(self.wish.limits_ns, frozenset(numbers.values()), self.wish.per_second)


class OwnTrace:
    """Traces one after the other, each from a client's trace to the next, with their reader."""

    def __init__(
        self,
        limit_ns: int | None,
        read: Callable[[Trace], Awaitable[None]],
        remove: Callable[[], None],
    ) -> None:
        """Trace packets whose total takes at least `limit_ns`; None: no packets.

        `read`: takes the packets of a trace until its end. `remove`: has the kernel end one whose
        reader has failed.
        """
        self._limit_ns = limit_ns
        self._read = read
        self._remove = remove
        self._reading: asyncio.Task[None] | None = None

    @property
    def is_wanted(self) -> bool:
        """True if there is to be a trace whenever no client's goes on."""
        return self._limit_ns is not None

    def begin(self) -> StandingTrace | None:
        """Return the next trace, which is read from now on; None if there is none to begin."""
        if self._limit_ns is None:
            return None
        trace = StandingTrace(dict.fromkeys(TOTALS, self._limit_ns), MAX_PER_SECOND)
        self._reading = asyncio.create_task(self._follow(trace))
        return trace

    async def pause(self) -> None:
        """Read no packets any more, until the next trace. Idempotent."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})

    async def _follow(self, trace: StandingTrace) -> None:
        """Read the trace; begin no further one if the kernel refuses it."""
        try:
            with contextlib.suppress(EngineError):  # It is the trace's failure.
                await self._read(trace)
        except Exception:
            self._limit_ns = None
            trace.end()
            self._remove()
            log.exception("unexpected error; no exemplars until the agent starts again")
        if trace.failure is not None:
            self._limit_ns = None
            log.warning(
                "cannot trace packets; no exemplars until the agent starts again: %s", trace.failure
            )
