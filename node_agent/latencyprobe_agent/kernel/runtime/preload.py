"""Programs that are loaded ahead, while modules are in use and no target exists.

What was attached is closed, since times in its maps would be paired with packets of much later. The
verifier takes half a second for all programs. So the next object is loaded at once, in a thread,
and attached with the next target.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future

from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.load.loading import begin, close_when_loaded
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject

log = logging.getLogger(__name__)


class Preload:
    """The successor of one object, from the making to `attached` or `end`."""

    def __init__(self, before: LoadedObject) -> None:
        """Begin to load the successor of an object."""
        self._before = before
        self._loading: Future[LoadedObject] | None = begin(before.spare)

    def attached(self) -> LoadedObject:
        """Attach the loaded programs, and end. Raises EngineError; call it again then, or `end`.

        Waits for the programs, if they are not loaded yet: the targets wait, too.
        """
        spare = self._take()
        try:
            spare.attach()
        except EngineError:
            spare.close()
            raise
        return spare

    async def end(self) -> None:
        """End without an object; return when the kernel has none."""
        loading, self._loading = self._loading, None
        if loading is not None:
            close_when_loaded(loading)
            wrapped = asyncio.wrap_future(loading)
            await asyncio.wait({wrapped})
            wrapped.exception()  # is of no interest

    def _take(self) -> LoadedObject:
        loading, self._loading = self._loading, None
        if loading is not None:
            try:
                return loading.result()
            except EngineError as error:
                log.warning("cannot load programs ahead: %s; trying again", error)
        return self._before.spare()
