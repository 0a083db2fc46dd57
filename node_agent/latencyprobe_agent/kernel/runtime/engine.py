"""The engine: the targets, the loaded modules and the measurements. See `contract.Engine`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import NamedTuple

from latencyprobe.domain.coverage import MEASURED, StageCoverage
from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
)
from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import MAX_SLOTS
from latencyprobe_agent.kernel.contract import (
    EngineError,
    LostPart,
    Overhead,
    SlotSpec,
    SocketMemoryLimits,
    ThreadLimits,
    TraceSpec,
)
from latencyprobe_agent.kernel.hooks import PACKET_HOOKS
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime.bounds import TargetBounds
from latencyprobe_agent.kernel.runtime.building import Builder
from latencyprobe_agent.kernel.runtime.dispatch import DispatchMeasurement
from latencyprobe_agent.kernel.runtime.listeners import Pause
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject
from latencyprobe_agent.kernel.runtime.obstacles import mention
from latencyprobe_agent.kernel.runtime.overhead import OverheadClock
from latencyprobe_agent.kernel.runtime.pending import unread
from latencyprobe_agent.kernel.runtime.preload import Preload
from latencyprobe_agent.kernel.runtime.sampler import SampledPrograms, Sampler
from latencyprobe_agent.kernel.runtime.shards import Shards, share_out
from latencyprobe_agent.kernel.runtime.slot_scopes import is_by_process
from latencyprobe_agent.kernel.runtime.target_hooks import TargetHooks
from latencyprobe_agent.kernel.runtime.tracer import Tracer

log = logging.getLogger(__name__)


class _InUse(NamedTuple):
    """The modules in use, with tracing or not, and with datagrams or not."""

    modules: frozenset[Module]
    tracing: bool
    udp: bool


class KernelEngine:
    """The `contract.Engine` of the running kernel.

    `host_netns`: inode number of the node's own network namespace, which pods' packets pass.
    `host_path`: a path to it, if it is neither the agent's own nor that of PID 1. `on_devices`: see
    packets by programs on the targets' cgroups and devices, where all targets have such. `cache`:
    the cache of compiled objects; None for none. `socket_memory`: the bounds for the states of
    sockets. `threads`: those of followed threads. For tests of the alternatives: `typed`: False
    omits programs typed by BTF; `without`: hooks to exclude, by their names in `coverage`.
    Large, because it is the whole of the contract, whose calls share the loaded object.
    """

    def __init__(
        self,
        *,
        host_netns: int,
        host_path: str | None = None,
        on_devices: bool = False,
        cache: ObjectCache | None = None,
        typed: bool = True,
        without: Iterable[str] = (),
        socket_memory: SocketMemoryLimits | None = None,
        threads: ThreadLimits | None = None,
    ) -> None:
        self._hooks = TargetHooks(host_netns=host_netns, host_path=host_path)
        self._builder = Builder(
            host_netns=host_netns,
            cache=cache,
            typed=typed,
            without=(*without, *(() if on_devices else PACKET_HOOKS)),
        )
        self._bounds = TargetBounds(
            socket_memory or SocketMemoryLimits(), threads or ThreadLimits()
        )
        self._object: LoadedObject | None = None
        self._preload: Preload | None = None
        self._in_use = _InUse(frozenset(), tracing=False, udp=False)
        self._tracer = Tracer()
        self._slots: dict[int, SlotSpec] = {}
        self._carry: dict[int, Measurement] = {}
        self._node_carry = NOTHING_OF_THE_NODE
        self._dispatch = DispatchMeasurement()
        self._clock = OverheadClock(self._dispatch)
        self._sampler = Sampler(self._clock, self._keep)
        self._detaching: list[Future[None]] = []
        self._changing = asyncio.Lock()

    def prepare(self, *, tracing: bool = False) -> None:
        """Begin what takes time, in other threads: needs a running loop.

        That is to load what this node used last, for the first `use`, and to measure the dispatch.
        `tracing`: the first `use` may be with tracing.
        """
        self._dispatch.begin()
        self._builder.prepare(tracing=tracing)

    async def use(
        self, modules: frozenset[Module], *, tracing: bool = False, udp: bool = True
    ) -> None:
        """See `contract.Engine.use`. Calls at the same time take effect in their order."""
        async with self._changing:
            await self._change(_InUse(modules, tracing, udp and Module.RX in modules))

    async def _change(self, wanted: _InUse) -> None:
        if wanted == self._in_use:
            return
        modules, tracing, udp = wanted
        replacement = (
            await self._builder.build(modules, tracing=tracing, udp=udp) if modules else None
        )
        if replacement is not None and self._object is not None:
            replacement.devices.adopt(self._object.devices)
        self._retire()
        preload, self._preload = self._preload, None
        self._report_change(modules)
        self._in_use = wanted
        try:
            if replacement is None:
                self._hooks.idle()
                detaching, self._detaching = self._detaching, []
                for each in detaching:
                    # A caller that is cancelled leaves them to their threads.
                    await asyncio.shield(asyncio.wrap_future(each))
            else:
                self._follow(replacement)
        finally:
            if preload is not None:
                await preload.end()

    def assign(self, slots: Mapping[int, SlotSpec]) -> None:
        """See `contract.Engine.assign`. Raises EngineError for a full map or too many filters."""
        if any(not 0 <= slot < MAX_SLOTS for slot in slots):
            raise EngineError(f"slots are numbered 0 to {MAX_SLOTS - 1}")
        dropped = self._slots.keys() - slots.keys()
        before = self._slots
        forget_children = any(before[slot].tgids for slot in dropped)
        forget_children |= is_by_process(before) and not is_by_process(slots)
        if not slots:
            self._detach()
        elif self._object is not None and slots.keys() != before.keys():
            self._keep(slots)
        self._slots = dict(slots)
        if not slots:
            return
        if self._preload is not None:
            self._resume(self._preload)
        elif self._object is not None:
            self._admit(slots.keys() - before.keys())
            self._hooks.write_targets(self._slots)
            self._bounds.forget_gone_threads()
            if forget_children:
                self._object.tables.forget_children()

    def read(self) -> Mapping[int, Measurement]:
        """See `contract.Engine.read`."""
        news, self._carry = self._carry, {}
        if self._object is None:
            return news
        self._hooks.check(self._slots)
        for slot, measurement in self._take(self._object, self._slots, self._slots).items():
            news[slot] = news.get(slot, NOTHING) + measurement
        crowded: Collection[int] = ()
        if self._object.pending is not None:
            for slot, pending in self._object.pending.read(self._slots).items():
                peers = self._object.pending.memory.peers.get(slot, ())
                news[slot] = news.get(slot, NOTHING) + Measurement(pending=pending, peers=peers)
            crowded = self._object.pending.memory.crowded
        self._bounds.read(self._slots, news, crowded)
        return news

    def read_node(self) -> NodeMeasurement:
        """See `contract.Engine.read_node`: until the last reading of the slots."""
        news, self._node_carry = self._node_carry, NOTHING_OF_THE_NODE
        return news

    @property
    def coverage(self) -> tuple[StageCoverage, ...]:
        """See `contract.Engine.coverage`."""
        coverage = self._hooks.coverage
        if self._object is not None:
            coverage = mention(coverage, self._object.memories.configuration.obstacles())
            pending = self._object.memories.pending
            if pending is not None and pending.problem:
                coverage = unread(coverage, pending.problem)
        return self._bounds.mention(coverage)

    @property
    def lost_parts(self) -> Mapping[int, Sequence[LostPart]]:
        """See `contract.Engine.lost_parts`."""
        return self._bounds.lost_parts

    def overhead(self) -> Overhead:
        """See `contract.Engine.overhead`."""
        return self._clock.overhead()

    def sample(self, shift: int, slice_shift: int = 0) -> None:
        """See `contract.Engine.sample`."""
        self._sampler.sample(shift, slice_shift)

    def stop(self, modules: frozenset[Module]) -> None:
        """See `contract.Engine.stop`."""
        if modules != self._hooks.stopped:
            self._keep()
            self._hooks.stop(modules)

    def trace(self, spec: TraceSpec | None) -> None:
        """See `contract.Engine.trace`."""
        self._tracer.set(spec)

    async def traced(self) -> Sequence[TracedPacket]:
        """See `contract.Engine.traced`."""
        return await self._tracer.next_packets()

    @property
    def trace_counts(self) -> TraceCounts:
        """See `contract.Engine.trace_counts`."""
        return self._tracer.counts

    async def close(self) -> None:
        """See `contract.Engine.close`."""
        self.trace(None)
        self._builder.close()
        await self.use(frozenset())

    def _follow(self, loaded: LoadedObject) -> None:
        """Measure with this object from now on."""
        self._object = loaded
        self._sampler.follow(
            SampledPrograms(loaded.memories.configuration, loaded.packets, loaded.run_statistics)
        )
        self._hooks.follow(loaded, self._in_use.modules, udp=self._in_use.udp)
        loaded.halves.begin(_shards(self._slots))
        loaded.drivers.begin()
        self._sampler.begin()
        self._bounds.follow(
            loaded.memories.socket_memory,
            loaded.count_sockets,
            loaded.memories.thread_shares,
            loaded.maps,
        )
        self._admit(self._slots.keys())
        self._hooks.write_targets(self._slots)
        if loaded.memories.ring is not None:
            self._tracer.follow(loaded.memories.ring)

    def _detach(self) -> None:
        """Detach the present object while there is nothing to measure."""
        if self._object is not None:
            self._preload = Preload(self._object)
            self._retire()
            log.info("detached: there is no target")

    def _resume(self, preload: Preload) -> None:
        """Attach again. The maps are new: no time in them is from before."""
        began = time.monotonic()
        loaded = preload.attached()
        self._preload = None
        self._follow(loaded)
        log.info("attached again in %.2f s", time.monotonic() - began)

    def _retire(self) -> None:
        """Close the present object; keep its measurements for the next reading."""
        if self._object is None:
            return
        self._object.read_listeners(Pause.NONE)
        self._keep()
        self._tracer.leave()
        self._sampler.leave()
        self._bounds.leave()
        self._hooks.leave()
        self._object.close()
        self._detaching = [each for each in self._detaching if not each.done()]
        if self._object.devices.detaching is not None:
            self._detaching.append(self._object.devices.detaching)
        self._object = None

    def _keep(self, following: Collection[int] | None = None) -> None:
        """Keep the measurements until now for the next reading.

        `following`: the slots that are measured from now on; None for the present ones.
        """
        loaded, slots = self._object, self._slots
        if loaded is None:
            return
        following = slots if following is None else following
        for slot, measurement in self._take(loaded, slots, following).items():
            self._carry[slot] = self._carry.get(slot, NOTHING) + measurement

    def _take(
        self, loaded: LoadedObject, slots: Collection[int], following: Collection[int]
    ) -> Mapping[int, Measurement]:
        """Return what `slots` measured since the last call, of covered stages only.

        `following`: the slots that are measured from now on.
        """
        loaded.read_listeners()
        inactive = loaded.halves.flip(_shards(following))
        if loaded.memories.node_statistics is not None:
            self._node_carry += loaded.memories.node_statistics.take(inactive.epoch)
        covered = {stage.name for stage in self._hooks.coverage if stage.state in MEASURED}
        taken = loaded.memories.take(inactive, slots, self._sampler.ratios)
        return {
            slot: replace(
                measurement,
                stages={name: of for name, of in measurement.stages.items() if name in covered},
            )
            for slot, measurement in taken.items()
        }

    def _admit(self, new: Collection[int]) -> None:
        """Have each one's share ready before a program counts for one of its slots."""
        if self._object is not None:
            self._object.memories.admit(new, self._slots)
        self._bounds.admit(new, self._slots)

    def _report_change(self, modules: frozenset[Module]) -> None:
        for module in Module:
            if module in modules - self._in_use.modules:
                log.info("module %s loaded", module)
            elif module in self._in_use.modules - modules:
                log.info("module %s unloaded", module)


def _shards(slots: Collection[int]) -> Mapping[int, Shards]:
    return share_out(slots, os.cpu_count() or 1)
