"""The programs that this node used last, loaded while the agent starts.

An agent that starts again gets its probes within seconds, and the verifier needs a third of a
second for their programs. So they are loaded at once, and not attached. Without a probe they are
freed after a minute, since their maps take 16 MiB.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future

from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.load.loading import begin, close_when_loaded
from latencyprobe_agent.kernel.load.object_file import CorruptObjectError
from latencyprobe_agent.kernel.load.provision import Prepared, prepare
from latencyprobe_agent.kernel.request import Request

log = logging.getLogger(__name__)

HOLD_S = 60.0


class WarmStart:
    """Prepared programs, from the making to `take` or `end`. Needs a running event loop."""

    def __init__(self, like: Request, cache: ObjectCache) -> None:
        """Begin to prepare the programs of the last request that was like this one."""
        self._preparing: Future[Prepared] | None = begin(lambda: prepare(like, cache))
        self._ends = asyncio.get_running_loop().call_later(HOLD_S, self.end)

    async def take(self) -> Prepared | None:
        """Return the prepared programs for their new owner, if there are any, and end."""
        preparing = self._released()
        if preparing is None:
            return None
        try:
            return await asyncio.wrap_future(preparing)
        except asyncio.CancelledError:
            close_when_loaded(preparing)
            raise
        except (LookupError, CorruptObjectError, OSError) as error:
            log.debug("no programs were loaded at the start: %s", error)
            return None

    def end(self) -> None:
        """Free the programs. Idempotent."""
        preparing = self._released()
        if preparing is not None:
            close_when_loaded(preparing)

    def _released(self) -> Future[Prepared] | None:
        self._ends.cancel()
        preparing, self._preparing = self._preparing, None
        return preparing
