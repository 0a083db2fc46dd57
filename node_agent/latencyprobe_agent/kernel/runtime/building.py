"""The building of objects: attached from programs of the start, from the cache, or compiled."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable

from latencyprobe.domain.coverage import MEASURED
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.hooks import FAST_PENDING, coverage_of
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject, build
from latencyprobe_agent.kernel.runtime.warm_start import WarmStart

log = logging.getLogger(__name__)


class Builder:
    """The builder of one engine's objects.

    `cache`: None for none. `typed`: False omits programs typed by BTF. `without`: hooks to exclude,
    by their names in `coverage`.
    """

    def __init__(
        self, *, host_netns: int, cache: ObjectCache | None, typed: bool, without: Iterable[str]
    ) -> None:
        self._host_netns = host_netns
        self._cache = cache
        self._typed = typed
        self._without = tuple(without)
        self._warm_start: WarmStart | None = None

    def prepare(self, *, tracing: bool) -> None:
        """Begin to load the programs that this node used last, for the first object.

        Needs a running loop. `tracing`: the first object may be with tracing.
        """
        if self._cache is not None:
            self._warm_start = WarmStart(self.request((), tracing=tracing, udp=True), self._cache)

    async def build(self, modules: Collection[Module], *, tracing: bool, udp: bool) -> LoadedObject:
        """Return an attached object of these modules. Raises EngineError."""
        wanted = tuple(str(module) for module in Module if module in modules)
        request = self.request(wanted, tracing=tracing, udp=udp)
        warm_start, self._warm_start = self._warm_start, None
        began = time.monotonic()
        prepared = await warm_start.take() if warm_start is not None else None
        built = await build(request, self._cache, prepared)
        log.info(
            "attached in %.2f s, programs %s: %s",
            time.monotonic() - began,
            built.provided.origin,
            ", ".join(built.attached.values()),
        )
        for event, reason in built.refused.items():
            level = logging.INFO if event == FAST_PENDING else logging.WARNING
            log.log(level, "no hook for %s: %s", event, reason)
        if built.provided.diagnostics and built.refused:
            log.debug("messages of the kernel and the compiler:\n%s", built.provided.diagnostics)
        _check_coverage(modules, built, udp=udp)
        return built

    def request(self, modules: tuple[str, ...], *, tracing: bool, udp: bool) -> Request:
        """Return the request for an object."""
        return Request(
            modules,
            self._host_netns,
            self._typed,
            without=self._without,
            trace=tracing,
            udp=udp,
        )

    def close(self) -> None:
        """Free the programs that were loaded for the first object. Idempotent."""
        warm_start, self._warm_start = self._warm_start, None
        if warm_start is not None:
            warm_start.end()


def _check_coverage(modules: Collection[Module], loaded: LoadedObject, *, udp: bool) -> None:
    """Close it and raise EngineError if no stage can be measured with it."""
    coverage = coverage_of(frozenset(modules), loaded.attached, loaded.refused, udp=udp)
    if not any(stage.state in MEASURED for stage in coverage):
        loaded.close()
        raise EngineError(
            "the kernel refused every hook: " + "; ".join(dict.fromkeys(loaded.refused.values()))
        )
