"""The hooks on network devices, which serve instead of the tracepoints for packets.

Until all devices have their programs, the tracepoints serve.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import replace

from latencyprobe_agent.kernel.abi import HOST_DEVICES
from latencyprobe_agent.kernel.hooks import QUEUE, RECEIVE
from latencyprobe_agent.kernel.load.loader import ScopedHook
from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory
from latencyprobe_agent.kernel.runtime.device_links import DeviceLinks
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps


class DeviceHooks:
    """These hooks of one object.

    `scoped`: event to its hook. `programs`: those of these hooks, by function. `host`: the inode
    number of the host's network namespace. `are_used`: they serve now; `refused`: the reason why
    not. `links`: None before the first namespaces, and after the last ones. `detaching`: is done
    once the programs are detached, if that has begun.
    """

    def __init__(
        self,
        scoped: Mapping[str, ScopedHook],
        programs: Mapping[str, int],
        maps: NamedMaps,
        attachments: Attachments,
        configuration: ConfigMemory,
        *,
        host: int,
    ) -> None:
        self._scoped = scoped
        self._programs = programs
        self._maps = maps
        self._attachments = attachments
        self._configuration = configuration
        self._host = host
        self.links: DeviceLinks | None = None
        self.detaching: Future[None] | None = None
        self.are_used = False
        self.refused = ""

    def follow(
        self, namespaces: Mapping[int, frozenset[str]] | None, host_path: str | None
    ) -> None:
        """Begin to have programs run for the devices of these namespaces and for the host's.

        `namespaces`: with the cgroups whose processes lead there. None: programs on devices do not
        see all targets. Then, and until all devices have theirs, the tracepoints' programs are
        attached. Raises EngineError if they cannot be attached again.
        """
        if not self._programs:
            return
        if namespaces is None:
            self._return_to_tracepoints()
            self.end()
            return
        if self.links is None:
            self.links = DeviceLinks(self._programs, host=self._host, host_path=host_path)
        if self.links.outcome.wanted != namespaces.keys():
            self._return_to_tracepoints()
        self.links.follow(namespaces)

    def adopt(self, other: DeviceHooks) -> None:
        """Take over the links of another object to devices, if this one has such programs.

        The programs in them are replaced with the next `follow`.
        """
        if other.links is None or not self._programs:
            return
        self.links, other.links = other.links, None
        self.links.replace_programs(self._programs)

    def check(self) -> bool:
        """Use the programs on devices once all are attached.

        Return True if the hooks have changed, or the reason why these are not in use.

        Raises EngineError if the others cannot be attached again.
        """
        if self.links is None or self.links.is_busy:
            return False
        before = self.are_used, self.refused
        outcome = self.links.outcome
        if self.links.is_attached:
            self._write_host_devices(outcome.host_devices)
            self._leave_tracepoints()
        else:
            self._return_to_tracepoints()
        self.links.check()
        self.refused = outcome.refused
        return before != (self.are_used, self.refused)

    def end(self) -> None:
        """Begin to detach everything. Idempotent."""
        if self.links is not None:
            self.detaching = self.links.end()
            self.links, self.refused = None, ""

    def close(self) -> None:
        """Begin to detach everything, and use the programs no more: they end. Idempotent."""
        self.end()
        self._programs = {}

    def _write_host_devices(self, host_devices: Collection[int]) -> None:
        if HOST_DEVICES.name not in self._maps.descriptors:
            return
        wanted = {HOST_DEVICES.key.pack(index) for index in host_devices}
        present = self._maps.keys(HOST_DEVICES.name, HOST_DEVICES.key.size)
        known = HOST_DEVICES.value.pack(1)
        self._maps.write(HOST_DEVICES.name, dict.fromkeys(wanted - present, known))
        self._maps.erase(HOST_DEVICES.name, present - wanted)

    def _leave_tracepoints(self) -> None:
        if self.are_used:
            return
        self._use(True)
        others = tuple(each.instead_of for each in self._scoped.values() if each.instead_of)
        self._attachments.keep_off(OffReason.ON_DEVICES, others)

    def _return_to_tracepoints(self) -> None:
        if not self.are_used:
            return
        self._attachments.keep_off(OffReason.ON_DEVICES, ())
        self._use(False)

    def _use(self, wanted: bool) -> None:
        self.are_used = wanted
        self._configuration.configure(
            replace(
                self._configuration.settings,
                sees_arrivals=wanted and RECEIVE in self._scoped,
                sees_departures=wanted and QUEUE in self._scoped,
            )
        )
