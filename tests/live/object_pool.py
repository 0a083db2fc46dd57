"""One loaded object that serves engine after engine.

Engines get programs of the same compiled code: with the default modules if they do for what is
asked, else with all, and with what traces. What an engine closes is kept for the next that asks for
the same, and emptied. Programs without some hook are one test's alone, and have the modules that it
asks for.
"""

from __future__ import annotations

from dataclasses import replace

from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel.abi import TRACE_CONTROL
from latencyprobe_agent.kernel.contract import MAX_SLOTS
from latencyprobe_agent.kernel.hooks import SCOPED_HOOKS
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime.listeners import ListenerReadings
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject
from latencyprobe_agent.kernel.runtime.target_tables import TargetTables
from tests.live import packet_tables
from tests.live.compiled_once import compiled_once

_KEY_BYTES = {"cgroups": 8, "processes": 4, "filter_ports": 4}


class ObjectPool:
    """The loaded object that was used last, if nobody uses it now.

    `traces`: objects of all modules trace, whether that is asked for or not.
    """

    def __init__(self, *, traces: bool = True) -> None:
        self._traces = traces
        self._unused: tuple[Request, LoadedObject] | None = None

    async def build(
        self, request: Request, cache: ObjectCache | None = None, prepared: object = None
    ) -> LoadedObject:
        """As `loaded.build` does, or lend what was used last."""
        wanted = self._wanted(request)
        if self._unused is None or self._unused[0] != wanted:
            self.close()
            built = await compiled_once().build(wanted)
        else:
            (_, built), self._unused = self._unused, None
        _empty(built)
        return _Lent(self, wanted, built)  # type: ignore[return-value]

    def _wanted(self, request: Request) -> Request:
        if not set(request.without).issubset(SCOPED_HOOKS):
            return replace(request, udp=True)
        does = not request.trace and set(DEFAULT_MODULES).issuperset(map(Module, request.modules))
        if does:
            return replace(request, modules=tuple(map(str, DEFAULT_MODULES)), udp=True)
        trace = request.trace or self._traces
        return replace(request, modules=tuple(map(str, Module)), udp=True, trace=trace)

    def take_back(self, request: Request, built: LoadedObject) -> None:
        """Keep it, without targets, for the next that asks for the same."""
        self.close()
        _forget_targets(built)
        self._unused = request, built

    def close(self) -> None:
        """Close what is not used now."""
        if self._unused is not None:
            self._unused[1].close()
            self._unused = None


class _Lent:
    """A loaded object whose end is its return to the pool."""

    def __init__(self, pool: ObjectPool, request: Request, built: LoadedObject) -> None:
        self._pool, self._request, self._built = pool, request, built
        self._is_lent = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._built, name)

    def close(self) -> None:
        if self._is_lent:
            self._is_lent = False
            self._pool.take_back(self._request, self._built)


def _forget_targets(built: LoadedObject) -> None:
    """From now on it measures nothing, but of the node."""
    built.memories.configuration.sample(0)
    built.cgroups._are_lost = False
    built.listeners = ListenerReadings()  # else the first reading may be due much later
    built.memories.configuration.write_namespaces({})
    built.tables = TargetTables(built.maps)
    for name, key_bytes in _KEY_BYTES.items():
        built.maps.erase(name, built.maps.keys(name, key_bytes))
    built.memories.configuration.bump_generation()


def _empty(built: LoadedObject) -> None:
    """As it was when it was new."""
    _forget_targets(built)
    packet_tables.clear(built.run_statistics.programs.values())
    for _ in range(2):
        inactive = built.halves.flip({})
        for element in range(MAX_SLOTS):
            built.memories.statistics._take_element(inactive.epoch * MAX_SLOTS + element)
        if built.memories.node_statistics is not None:
            built.memories.node_statistics.take(inactive.epoch)
    if built.memories.ring is not None:
        counts = slice(TRACE_CONTROL.offset("second"), TRACE_CONTROL.size)
        built.memories.ring._control[counts] = bytes(counts.stop - counts.start)
