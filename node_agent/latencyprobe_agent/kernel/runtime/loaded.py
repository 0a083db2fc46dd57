"""A loaded object: the descriptors of its programs, links and maps, and their use.

As long as the descriptors are open the programs run; when they close, by `close` or with the
process, the kernel detaches and frees everything.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
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
    HOST_DEVICES,
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
    ON_CGROUPS,
    PROCESS_EVENTS,
    PROCESS_FUNCTIONS,
    QUEUE,
    READ_LISTENERS,
    READ_PENDING,
    READ_PENDING_STATES,
    RECEIVE,
    SEGMENT,
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
from latencyprobe_agent.kernel.runtime.cgroup_links import CgroupLinks, CgroupProgram
from latencyprobe_agent.kernel.runtime.cgroup_waits import CgroupWaits
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory, ProgramSettings, TimeSlice
from latencyprobe_agent.kernel.runtime.device_links import DeviceLinks
from latencyprobe_agent.kernel.runtime.drop_places import DropPlaces
from latencyprobe_agent.kernel.runtime.grace_period import wait_for_running_programs
from latencyprobe_agent.kernel.runtime.halves import Halves
from latencyprobe_agent.kernel.runtime.listeners import ListenerReadings, Pause
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps
from latencyprobe_agent.kernel.runtime.node_statistics import NodeStatisticsMemory
from latencyprobe_agent.kernel.runtime.pending import PendingMemory
from latencyprobe_agent.kernel.runtime.ring import PacketRing
from latencyprobe_agent.kernel.runtime.statistics import StatisticsMemory

_CGROUP_ATTACH_TYPES: Mapping[str, int] = {
    "tcp_set_state": libbpf.ATTACH_TYPE_SOCK_OPS,
    "ingress": libbpf.ATTACH_TYPE_CGROUP_INGRESS,
    "getpeername4": libbpf.ATTACH_TYPE_GETPEERNAME4,
    "getpeername6": libbpf.ATTACH_TYPE_GETPEERNAME6,
}
_ON_DEVICES = frozenset({HookKind.DEVICE})


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
        self._cgroups = CgroupLinks(
            [
                CgroupProgram(
                    self._owned.cgroup_programs[hook.function], _CGROUP_ATTACH_TYPES[hook.symbol]
                )
                for each in self._scoped(ON_CGROUPS)
                for hook in (each.hook, *each.hook.also)
            ]
        )
        self._attachments = Attachments(self._owned)
        self._is_scoped = False
        self._is_scope_lost = False
        self._devices: DeviceLinks | None = None
        self._not_on_devices = ""
        self.detaching: Future[None] | None = None
        self._is_on_devices = False
        self.follows_processes = True
        self.follows_drivers = DRIVER_FREE in self._owned.attached
        self.sees_steering = True
        self.refused: Mapping[str, str] = self._owned.refused
        self.origin = provided.origin
        self.diagnostics = provided.diagnostics
        self._visited_generation = 0
        self._stopped: frozenset[Module] = frozenset()
        self.listeners = ListenerReadings()
        try:
            self._map(provided.drop_reasons)
        except BaseException:
            self._owned.close()
            raise

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
                sees_completions=self.follows_drivers,
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
            if (self._is_on_devices if _is_of_device(each) else self._is_scoped)
        }
        unused = frozenset() if self.follows_processes else PROCESS_EVENTS
        unused |= frozenset() if self.sees_steering else STEERING_EVENTS
        attached = {**self._owned.attached, **names}
        return {event: hook for event, hook in attached.items() if event not in unused}

    @property
    def remarks(self) -> Mapping[str, str]:
        """Event to the reason why its program for cgroups or devices is not in use."""
        on_cgroup = next(iter(self._cgroups.refused.values()), "")
        on_device = self._not_on_devices
        refused = {}
        for event, each in self._owned.scoped.items():
            name = each.hook.name(typed=True)
            if on_cgroup and not _is_of_device(each):
                refused[event] = f"{name} is not used on a target's cgroup: {on_cgroup}"
            if on_device and _is_of_device(each):
                refused[event] = f"{name} is not used: {on_device}"
        return {**self._owned.remarks, **refused}

    def follow_processes(self, wanted: bool) -> None:
        """Have the kernel follow the forks and exits of targets' processes, or spare it that.

        Returns once no program follows any more. Raises EngineError if a program cannot be attached
        again.
        """
        if wanted == self.follows_processes:
            return
        self._keep_off(OffReason.NO_PROCESSES, () if wanted else self._loaded(PROCESS_FUNCTIONS))
        if not wanted:
            wait_for_running_programs()
        self.follows_processes = wanted

    def see_steering(self, wanted: bool) -> None:
        """Have programs see packets on their first CPU, or spare them that.

        Raises EngineError if a program cannot be attached again.
        """
        if wanted != self.sees_steering:
            self._keep_off(
                OffReason.NO_STEERING, () if wanted else self._loaded(STEERING_FUNCTIONS)
            )
            self.sees_steering = wanted

    def take_driver_use(self) -> bool:
        """Return True if a target's packet was given to a driver since the last call."""
        return self.configuration.take_driver_use()

    def follow_drivers(self, wanted: bool) -> None:
        """Have programs see drivers free packets, or spare all other buffers that.

        Raises EngineError if a program cannot be attached again.
        """
        if wanted == self.follows_drivers or DRIVER_FREE not in self._owned.attached:
            return
        if wanted:
            self._keep_off(OffReason.NO_DRIVERS, ())
        self.follows_drivers = wanted
        self._write_config()
        if not wanted:
            self._keep_off(OffReason.NO_DRIVERS, self._loaded(DRIVER_FUNCTIONS))

    def follow_cgroups(self, directories: Collection[str] | None) -> None:
        """Have programs run for these cgroups only, where there are such programs.

        None: some targets are no cgroups. Then, and where a cgroup is refused, the programs for all
        sockets are attached. They stay: a socket that they saw first has no flag for the others.
        Raises EngineError if they cannot be attached again; the cgroups then keep their programs.
        """
        if not self._owned.cgroup_programs or self._is_scope_lost:
            return
        if directories is not None:
            self._cgroups.follow(directories)
        if directories is None or self._cgroups.refused:
            self._keep_off(OffReason.ON_CGROUPS, ())
            self._is_scoped, self._is_scope_lost = False, True
            self._write_config()
            self._cgroups.close()
            return
        if not self._is_scoped:
            self._is_scoped = True
            self._write_config()
            self._keep_off(OffReason.ON_CGROUPS, self._instead_of(ON_CGROUPS))

    def follow_devices(
        self, namespaces: Mapping[int, frozenset[str]] | None, host_path: str | None
    ) -> None:
        """Begin to have programs run for the devices of these namespaces and for the host's.

        `namespaces`: with the cgroups whose processes lead there. None: programs on devices do not
        see all targets. Then, and until all devices have theirs, the tracepoints' programs are
        attached. Raises EngineError if they cannot be attached again.
        """
        if not self._owned.device_programs:
            return
        if namespaces is None:
            self._return_to_tracepoints()
            self._end_devices()
            return
        if self._devices is None:
            self._devices = DeviceLinks(
                self._owned.device_programs, host=self._request.host_netns, host_path=host_path
            )
        if self._devices.outcome.wanted != namespaces.keys():
            self._return_to_tracepoints()
        self._devices.follow(namespaces)

    def adopt_devices(self, other: LoadedObject) -> None:
        """Take over the links of another object to devices, if this one has such programs.

        The programs in them are replaced with the next `follow_devices`.
        """
        if other._devices is None or not self._owned.device_programs:
            return
        self._devices, other._devices = other._devices, None
        self._devices.replace_programs(self._owned.device_programs)

    def check_devices(self) -> bool:
        """Use the programs on devices once all are attached.

        Return True if the hooks have changed, or the reason why these are not in use.

        Raises EngineError if the others cannot be attached again.
        """
        if self._devices is None or self._devices.is_busy:
            return False
        before = self._is_on_devices, self._not_on_devices
        outcome = self._devices.outcome
        if self._devices.is_attached:
            self._use_devices(outcome.host_devices)
        else:
            self._return_to_tracepoints()
        self._devices.check()
        self._not_on_devices = outcome.refused
        return before != (self._is_on_devices, self._not_on_devices)

    def _use_devices(self, host_devices: Collection[int]) -> None:
        if HOST_DEVICES.name in self.maps.descriptors:
            wanted = {HOST_DEVICES.key.pack(index) for index in host_devices}
            present = self.maps.keys(HOST_DEVICES.name, HOST_DEVICES.key.size)
            known = HOST_DEVICES.value.pack(1)
            self.maps.write(HOST_DEVICES.name, dict.fromkeys(wanted - present, known))
            self.maps.erase(HOST_DEVICES.name, present - wanted)
        if self._is_on_devices:
            return
        self._is_on_devices = True
        self._write_config()
        self._keep_off(OffReason.ON_DEVICES, self._instead_of(_ON_DEVICES))

    def _return_to_tracepoints(self) -> None:
        if not self._is_on_devices:
            return
        self._keep_off(OffReason.ON_DEVICES, ())
        self._is_on_devices = False
        self._write_config()

    def _end_devices(self) -> None:
        if self._devices is not None:
            self.detaching = self._devices.end()
            self._devices, self._not_on_devices = None, ""

    def _scoped(self, kinds: Collection[HookKind]) -> Iterator[ScopedHook]:
        return (each for each in self._owned.scoped.values() if each.hook.kind in kinds)

    def _instead_of(self, kinds: Collection[HookKind]) -> tuple[str, ...]:
        return tuple(each.instead_of for each in self._scoped(kinds) if each.instead_of)

    def _keep_off(self, reason: OffReason, functions: Iterable[str]) -> None:
        try:
            self._attachments.keep_off(reason, functions)
        except OSError as error:
            raise EngineError(f"cannot attach the eBPF programs: {explained(error)}") from error

    def stop(self, modules: frozenset[Module]) -> None:
        """Detach what only these modules need, and attach what else was detached for that.

        Raises EngineError.
        """
        functions = functions_without(
            self._modules, modules, self._owned.attached, typed=self._owned.typed
        )
        self._keep_off(OffReason.STOPPED, self._loaded(functions))
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
        self._keep_off(OffReason.BETWEEN_SLICES, ())

    def measure_packets(self, wanted: bool) -> None:
        """Measure packets that begin from now on, or only those that have begun."""
        self._use_slice(replace(self.configuration.settings.time_slice, is_open=wanted))

    def end_slice(self) -> None:
        """Detach the programs of packets. Those on devices stay, and do nothing."""
        self._keep_off(OffReason.BETWEEN_SLICES, self.functions_of_packets)
        self._use_slice(replace(self.configuration.settings.time_slice, is_over=True))

    def end_slices(self) -> None:
        """Measure packets all the time again. Raises EngineError."""
        self._keep_off(OffReason.BETWEEN_SLICES, ())
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
        if fast is not None and not (is_changed or self.follows_processes):
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

    def _write_config(self) -> None:
        self.configuration.configure(
            replace(
                self.configuration.settings,
                sees_arrivals=self._is_on_devices and RECEIVE in self._owned.scoped,
                sees_departures=self._is_on_devices and QUEUE in self._owned.scoped,
                sees_completions=self.follows_drivers,
                sees_segments=self._is_scoped and SEGMENT in self._owned.scoped,
            )
        )

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

        Programs on devices are detached later, by a thread: `detaching` is done then.
        """
        if not self._owned.maps:
            return
        self._cgroups.close()
        self._end_devices()
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
