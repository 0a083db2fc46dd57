"""A loaded object: the descriptors of its programs, links and maps, and their use.

As long as the descriptors are open the programs run; when they close, by `close` or with the
process, the kernel detaches and frees everything.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.stages import Module
from latencyprobe.process.os_errors import explained
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import (
    CONFIGURATION,
    DROP_PLACES,
    HANDLER_NAMES,
    NODE_STATS,
    PEERS,
    PENDING_OF_SLOTS,
    PENDING_READINGS,
    SOCKET_MEMORIES,
    SOCKET_MEMORY,
    SOCKET_MEMORY_PLACES,
    STATS,
    THREAD_SHARE,
    THREAD_SHARE_PLACES,
    THREAD_SHARES,
    TRACE_CONTROLS,
    TRACE_RING,
    WAITS_FOR_CGROUPS,
)
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.hooks import (
    COUNT_SOCKETS,
    DRIVER_FREE,
    DRIVER_FUNCTIONS,
    NAME_DROP_PLACES,
    PROCESS_EVENTS,
    PROCESS_FUNCTIONS,
    READ_LISTENERS,
    READ_PENDING,
    READ_PENDING_STATES,
    SEND,
    STEERING_EVENTS,
    STEERING_FUNCTIONS,
    HookKind,
    functions_of_packets,
    functions_without,
)
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.load.handover import request_object
from latencyprobe_agent.kernel.load.loader import ScopedHook
from latencyprobe_agent.kernel.load.provision import Prepared, Provided, provide, provide_spare
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason
from latencyprobe_agent.kernel.runtime.cgroup_hooks import CgroupHooks
from latencyprobe_agent.kernel.runtime.cgroup_waits import CgroupWaits
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory, ProgramSettings, TimeSlice
from latencyprobe_agent.kernel.runtime.device_hooks import DeviceHooks
from latencyprobe_agent.kernel.runtime.driver_events import DriverEvents
from latencyprobe_agent.kernel.runtime.drop_places import DropPlaces
from latencyprobe_agent.kernel.runtime.halves import Halves
from latencyprobe_agent.kernel.runtime.listeners import ListenerReadings, Pause
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps
from latencyprobe_agent.kernel.runtime.node_statistics import NodeStatisticsMemory
from latencyprobe_agent.kernel.runtime.optional_events import OptionalEvents
from latencyprobe_agent.kernel.runtime.pending import PendingMemory
from latencyprobe_agent.kernel.runtime.ring import PacketRing
from latencyprobe_agent.kernel.runtime.statistics import StatisticsMemory


async def build(
    request: Request, cache: ObjectCache | None = None, prepared: Prepared | None = None
) -> LoadedObject:
    """Have programs loaded and attached: prepared ones, or from the cache, or compiled.

    Raises EngineError with its message if that fails or takes too long.
    """
    try:
        return LoadedObject(request, await provide(request, request_object, cache, prepared))
    except OSError as error:
        raise EngineError(f"cannot build the eBPF programs: {explained(error)}") from error


class Runs(NamedTuple):
    """The runs of programs: their number, and the time of all."""

    number: int
    time_ns: int

    def __sub__(self, before: Runs) -> Runs:
        """Return the runs since then."""
        return Runs(self.number - before.number, self.time_ns - before.time_ns)


class LoadedObject:
    """Programs, links and maps in the kernel, by their descriptors.

    Large, because each memory that is shared with the kernel is an attribute.
    """

    def __init__(self, request: Request, provided: Provided) -> None:
        """Use these programs; close them if their maps cannot be mapped."""
        self._request = request
        self._provided = provided
        self._owned = provided.programs
        self.maps = NamedMaps(self._owned.maps)
        self._programs = {
            **self._owned.programs,
            **self._owned.cgroup_programs,
            **self._owned.device_programs,
        }
        self._scoped_names = {
            hook.function: hook.name(typed=True)
            for each in self._owned.scoped.values()
            for hook in (each.hook, *each.hook.also)
        }
        self._attachments = Attachments(self._owned)
        self.refused: Mapping[str, str] = self._owned.refused
        self.origin = provided.origin
        self.diagnostics = provided.diagnostics
        self._visited_generation = 0
        self._stopped: frozenset[Module] = frozenset()
        self.listeners = ListenerReadings()
        try:
            self._map(provided.drop_reasons)
            self._find_hooks()
        except BaseException:
            self._owned.close()
            raise

    def _find_hooks(self) -> None:
        scoped = self._owned.scoped
        self.cgroups = CgroupHooks(
            {event: each for event, each in scoped.items() if not _is_of_device(each)},
            self._owned.cgroup_programs,
            self._attachments,
            self.configuration,
        )
        self.devices = DeviceHooks(
            {event: each for event, each in scoped.items() if _is_of_device(each)},
            self._owned.device_programs,
            self.maps,
            self._attachments,
            self.configuration,
            host=self._request.host_netns,
        )
        self.processes = OptionalEvents(
            OffReason.NO_PROCESSES, self._loaded(PROCESS_FUNCTIONS), self._attachments
        )
        self.steering = OptionalEvents(
            OffReason.NO_STEERING, self._loaded(STEERING_FUNCTIONS), self._attachments
        )
        self.drivers = DriverEvents(
            self._loaded(DRIVER_FUNCTIONS) if DRIVER_FREE in self._owned.attached else (),
            self._attachments,
            self.configuration,
        )

    def _map(self, drop_reasons: Sequence[str]) -> None:
        maps = self.maps.descriptors
        places = (
            DropPlaces(maps[DROP_PLACES.name], lambda: self._owned.link(NAME_DROP_PLACES))
            if DROP_PLACES.name in maps
            else None
        )
        self.statistics = StatisticsMemory(maps[STATS.name], list(drop_reasons), places)
        self.configuration = ConfigMemory(maps[CONFIGURATION.name])
        self.ring = (
            PacketRing(maps[TRACE_CONTROLS.name], maps[TRACE_RING]) if TRACE_RING in maps else None
        )
        self.node_statistics = (
            NodeStatisticsMemory(maps[NODE_STATS.name], maps[HANDLER_NAMES.name])
            if NODE_STATS.name in maps
            else None
        )
        self.socket_memory = MappedArray.of_map(
            maps[SOCKET_MEMORIES.name], SOCKET_MEMORY, SOCKET_MEMORY_PLACES
        )
        self.thread_shares = (
            MappedArray.of_map(maps[THREAD_SHARES.name], THREAD_SHARE, THREAD_SHARE_PLACES)
            if THREAD_SHARES.name in maps
            else None
        )
        self.cgroup_waits = CgroupWaits(self.maps) if WAITS_FOR_CGROUPS.name in maps else None
        self._pending = (
            PendingMemory(
                maps[PENDING_OF_SLOTS.name],
                maps[PENDING_READINGS.name],
                maps.get(PEERS.name),
            )
            if PENDING_OF_SLOTS.name in maps
            else None
        )
        self.halves = Halves(self.configuration)
        self.configuration.configure(
            ProgramSettings(
                sees_sends=SEND in self._owned.attached,
                reads_listeners=READ_LISTENERS in self._owned.hooks,
            )
        )

    def spare(self) -> LoadedObject:
        """Load the same programs once more, with new maps, and do not attach them.

        Takes as long as the verifier, half a second. Raises EngineError.
        """
        try:
            return LoadedObject(self._request, provide_spare(self._request, self._provided))
        except OSError as error:
            raise EngineError(f"cannot load the eBPF programs: {explained(error)}") from error

    def attach(self) -> None:
        """Attach the programs of a spare object, or none: then raise EngineError."""
        try:
            self._owned.attach()
        except OSError as error:
            raise EngineError(f"cannot attach the eBPF programs: {explained(error)}") from error

    @property
    def attached(self) -> Mapping[str, str]:
        """Event to the hook in use."""
        names = {
            event: each.hook.name(typed=True)
            for event, each in self._owned.scoped.items()
            if (self.devices if _is_of_device(each) else self.cgroups).are_used
        }
        unused = frozenset() if self.processes.are_seen else PROCESS_EVENTS
        unused |= frozenset() if self.steering.are_seen else STEERING_EVENTS
        attached = {**self._owned.attached, **names}
        return {event: hook for event, hook in attached.items() if event not in unused}

    @property
    def remarks(self) -> Mapping[str, str]:
        """Event to the reason why its program for cgroups or devices is not in use."""
        on_cgroup, on_device = self.cgroups.refused, self.devices.refused
        refused = {}
        for event, each in self._owned.scoped.items():
            name = each.hook.name(typed=True)
            if on_cgroup and not _is_of_device(each):
                refused[event] = f"{name} is not used on a target's cgroup: {on_cgroup}"
            if on_device and _is_of_device(each):
                refused[event] = f"{name} is not used: {on_device}"
        return {**self._owned.remarks, **refused}

    def stop(self, modules: frozenset[Module]) -> None:
        """Detach what only these modules need, and attach what else was detached for that.

        Raises EngineError.
        """
        functions = functions_without(
            self._modules, modules, self._owned.attached, typed=self._owned.typed
        )
        self._attachments.keep_off(OffReason.STOPPED, self._loaded(functions))
        self._stopped = modules

    def _loaded(self, functions: Iterable[str]) -> tuple[str, ...]:
        """Return those of these that are programs here, not variables of the kernel."""
        return tuple(function for function in functions if function in self._owned.hooks)

    @property
    def _modules(self) -> frozenset[Module]:
        return frozenset(Module(name) for name in self._request.modules)

    @property
    def functions_of_packets(self) -> tuple[str, ...]:
        """The programs that are attached in time slices only, if there are any."""
        modules = self._modules - self._stopped
        found = functions_of_packets(modules, self._owned.attached, typed=self._owned.typed)
        return self._loaded(found)

    def begin_slice(self) -> None:
        """Attach the programs of packets for another time slice; measure none yet.

        Raises EngineError; the programs may then be attached in part.
        """
        number = self.configuration.settings.time_slice.number + 1
        self._use_slice(TimeSlice(number, time.monotonic_ns(), is_open=False))
        self._attachments.keep_off(OffReason.BETWEEN_SLICES, ())

    def measure_packets(self, wanted: bool) -> None:
        """Measure packets that begin from now on, or only those that have begun."""
        self._use_slice(replace(self.configuration.settings.time_slice, is_open=wanted))

    def end_slice(self) -> None:
        """Detach the programs of packets. Those on devices stay, and do nothing."""
        self._attachments.keep_off(OffReason.BETWEEN_SLICES, self.functions_of_packets)
        self._use_slice(replace(self.configuration.settings.time_slice, is_over=True))

    def end_slices(self) -> None:
        """Measure packets all the time again. Raises EngineError."""
        self._attachments.keep_off(OffReason.BETWEEN_SLICES, ())
        self._use_slice(TimeSlice())

    def _use_slice(self, time_slice: TimeSlice) -> None:
        self.configuration.configure(replace(self.configuration.settings, time_slice=time_slice))

    def read_listeners(self, pause: Pause = Pause.USUAL) -> None:
        """Have connections counted that listeners turned away, unless that was done just before.

        Where the kernel allows no reading, events show these connections.
        """
        link = self._owned.link(READ_LISTENERS)
        if link is not None:
            self.listeners.read(link, pause)

    def read_pending(self, slots: Collection[int]) -> Mapping[int, Mapping[str, Pending]]:
        """Return what is pending in the sockets of these slots; nothing where none can be read.

        Sockets of processes are found by their open files. So are those without a state, which were
        open before the targets changed.
        """
        is_changed = self._visited_generation != self.configuration.settings.generation
        link = self._owned.link(READ_PENDING)
        fast = self._owned.link(READ_PENDING_STATES)
        if fast is not None and not (is_changed or self.processes.are_seen):
            link = fast
        if self._pending is None or link is None:
            return {}
        found = self._pending.read(link, slots)
        if self._pending.has_read:
            self._visited_generation = self.configuration.settings.generation
        return found

    @property
    def pending_problem(self) -> str:
        """The reason why pending waits are unknown; empty if they are known."""
        return self._pending.problem if self._pending else ""

    @property
    def peers(self) -> Mapping[int, Sequence[Peer]]:
        """The peers that requests of each slot wait for, as of the last such reading."""
        return self._pending.peers if self._pending else {}

    def forget_pending(self, slots: Collection[int]) -> None:
        """Forget what was pending in these slots: they are another target's from now on."""
        if self._pending:
            self._pending.forget(slots)

    @property
    def crowded_peers(self) -> int:
        """The number of sockets that were not compared with others, since there was no room."""
        return self._pending.crowded if self._pending else 0

    def count_sockets(self) -> bool:
        """Have the sockets counted whose end nothing reports; return False if that is impossible.

        Raises OSError.
        """
        links = map(self._owned.link, COUNT_SOCKETS)
        link = next((link for link in links if link is not None), None)
        if link is None:
            return False
        libbpf.run_iterator(link)
        return True

    def runs(self) -> Mapping[str, Runs]:
        """Return the runs of the programs, by function; they do not grow without the statistics."""
        infos = {name: libbpf.program_info(program) for name, program in self._programs.items()}
        return {name: Runs(info.run_cnt, info.run_time_ns) for name, info in infos.items()}

    def hook_of(self, function: str) -> str:
        """Return the name of a program's hook."""
        hook = self._owned.hooks.get(function)
        return (
            hook.name(typed=self._owned.typed) if hook is not None else self._scoped_names[function]
        )

    def missed_runs(self) -> int:
        """Return the number of runs that the kernel left out, of all programs.

        A program does not run while it already runs on that CPU. The kernel counts that in
        `recursion_misses` of struct bpf_prog_info, since 5.12.
        """
        infos = map(libbpf.program_info, self._programs.values())
        return sum(info.recursion_misses for info in infos)

    def close(self) -> None:
        """Detach and free everything. Idempotent.

        Programs on devices are detached later, by a thread: `devices.detaching` is done then.
        """
        if not self._owned.maps:
            return
        self.cgroups.close()
        self.devices.end()
        self.statistics.close()
        if self.node_statistics is not None:
            self.node_statistics.close()
        self.configuration.close()
        self.socket_memory.close()
        if self.thread_shares is not None:
            self.thread_shares.close()
        if self._pending is not None:
            self._pending.close()
        if self.ring is not None:
            self.ring.close()
        self._owned.close()


def _is_of_device(scoped: ScopedHook) -> bool:
    return scoped.hook.kind is HookKind.DEVICE
