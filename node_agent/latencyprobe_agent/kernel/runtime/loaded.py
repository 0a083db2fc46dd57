"""A loaded object: the descriptors of its programs, links and maps, and their use.

As long as the descriptors are open the programs run; when they close, by `close` or with the
process, the kernel detaches and frees everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from latencyprobe.process.os_errors import explained
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.hooks import (
    COUNT_SOCKETS,
    DRIVER_FREE,
    DRIVER_FUNCTIONS,
    PROCESS_EVENTS,
    PROCESS_FUNCTIONS,
    READ_LISTENERS,
    SEND,
    STEERING_EVENTS,
    STEERING_FUNCTIONS,
    HookKind,
)
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.load.handover import request_object
from latencyprobe_agent.kernel.load.loader import ScopedHook
from latencyprobe_agent.kernel.load.loading import LoadedPrograms
from latencyprobe_agent.kernel.load.provision import Prepared, Provided, provide, provide_spare
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason
from latencyprobe_agent.kernel.runtime.cgroup_hooks import CgroupHooks
from latencyprobe_agent.kernel.runtime.configuration import ProgramSettings
from latencyprobe_agent.kernel.runtime.device_hooks import DeviceHooks
from latencyprobe_agent.kernel.runtime.driver_events import DriverEvents
from latencyprobe_agent.kernel.runtime.halves import Halves
from latencyprobe_agent.kernel.runtime.listeners import ListenerReadings, Pause
from latencyprobe_agent.kernel.runtime.memories import Memories
from latencyprobe_agent.kernel.runtime.module_programs import ModulePrograms
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps
from latencyprobe_agent.kernel.runtime.optional_events import OptionalEvents
from latencyprobe_agent.kernel.runtime.packet_programs import PacketPrograms
from latencyprobe_agent.kernel.runtime.pending_readings import PendingReadings
from latencyprobe_agent.kernel.runtime.run_statistics import RunStatistics
from latencyprobe_agent.kernel.runtime.target_tables import TargetTables


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


class LoadedObject:
    """Programs, links and maps in the kernel, by their descriptors.

    Large, because each subject of the programs and maps is an attribute.
    """

    def __init__(self, request: Request, provided: Provided) -> None:
        """Use these programs; close all on an error."""
        self._request = request
        self.provided = provided
        self._owned = provided.programs
        self.listeners = ListenerReadings()
        with ExitStack() as undone:
            undone.callback(self._owned.close)
            self.maps = NamedMaps(self._owned.maps)
            self.memories = Memories(self.maps, provided.drop_reasons, self._owned.link)
            undone.callback(self.memories.close)
            self._set_up(self._owned)
            undone.pop_all()

    def _set_up(self, owned: LoadedPrograms) -> None:
        attachments = Attachments(owned)
        self.tables = TargetTables(self.maps)
        configuration = self.memories.configuration
        configuration.configure(
            ProgramSettings(
                sees_sends=SEND in owned.attached, reads_listeners=READ_LISTENERS in owned.hooks
            )
        )
        self.halves = Halves(configuration)
        self.modules = ModulePrograms(
            self._request.modules, owned.hooks, owned.attached, attachments, typed=owned.typed
        )
        self.packets = PacketPrograms(self.modules.of_packets, attachments, configuration)
        self.cgroups = CgroupHooks(
            {event: each for event, each in owned.scoped.items() if not _is_of_device(each)},
            owned.cgroup_programs,
            attachments,
            configuration,
        )
        self.devices = DeviceHooks(
            {event: each for event, each in owned.scoped.items() if _is_of_device(each)},
            owned.device_programs,
            self.maps,
            attachments,
            configuration,
            host=self._request.host_netns,
        )
        self.processes = OptionalEvents(
            OffReason.NO_PROCESSES, self.modules.among(PROCESS_FUNCTIONS), attachments
        )
        self.steering = OptionalEvents(
            OffReason.NO_STEERING, self.modules.among(STEERING_FUNCTIONS), attachments
        )
        self.drivers = DriverEvents(
            self.modules.among(DRIVER_FUNCTIONS) if DRIVER_FREE in owned.attached else (),
            attachments,
            configuration,
        )
        self.pending = (
            PendingReadings(self.memories.pending, owned.link, configuration, self.processes)
            if self.memories.pending is not None
            else None
        )
        self.run_statistics = RunStatistics(
            {**owned.programs, **owned.cgroup_programs, **owned.device_programs},
            _hooks_of(owned),
        )

    def spare(self) -> LoadedObject:
        """Load the same programs once more, with new maps, and do not attach them.

        Takes as long as the verifier, half a second. Raises EngineError.
        """
        try:
            return LoadedObject(self._request, provide_spare(self._request, self.provided))
        except OSError as error:
            raise EngineError(f"cannot load the eBPF programs: {explained(error)}") from error

    def attach(self) -> None:
        """Attach the programs of a spare object, or none: then raise EngineError."""
        try:
            self._owned.attach()
        except OSError as error:
            raise EngineError(f"cannot attach the eBPF programs: {explained(error)}") from error

    @property
    def refused(self) -> Mapping[str, str]:
        """Event to the kernel's answer."""
        return self._owned.refused

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

    def read_listeners(self, pause: Pause = Pause.USUAL) -> None:
        """Have connections counted that listeners turned away, unless that was done just before.

        Where the kernel allows no reading, events show these connections.
        """
        link = self._owned.link(READ_LISTENERS)
        if link is not None:
            self.listeners.read(link, pause)

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

    def close(self) -> None:
        """Detach and free everything. Idempotent.

        Programs on devices are detached later, by a thread: `devices.detaching` is done then.
        """
        if not self._owned.maps:
            return
        self.cgroups.close()
        self.devices.close()
        self.memories.close()
        self._owned.close()


def _is_of_device(scoped: ScopedHook) -> bool:
    return scoped.hook.kind is HookKind.DEVICE


def _hooks_of(owned: LoadedPrograms) -> Mapping[str, str]:
    """Return the names of the hooks of all programs, by function."""
    scoped = (hook for each in owned.scoped.values() for hook in (each.hook, *each.hook.also))
    names = {hook.function: hook.name(typed=True) for hook in scoped}
    return {**names, **{name: hook.name(typed=owned.typed) for name, hook in owned.hooks.items()}}
