"""The hooks that see the targets' packets, and the coverage that they give.

Hooks on cgroups and devices serve only where they see all targets. Others are left out while no
target needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import STAGES, Module
from latencyprobe_agent.kernel.abi import NETNS_WATCHED, Obstacle
from latencyprobe_agent.kernel.contract import EngineError, SlotSpec
from latencyprobe_agent.kernel.hooks import QUEUE, RECEIVE, coverage_of, unavailable
from latencyprobe_agent.kernel.runtime.cgroup_hooks import CHECK_S
from latencyprobe_agent.kernel.runtime.grace_period import wait_for_running_programs
from latencyprobe_agent.kernel.runtime.listeners import Pause
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject
from latencyprobe_agent.kernel.runtime.slot_scopes import (
    begins_anywhere,
    cgroup_directories,
    is_by_process,
    pod_namespaces,
)
from latencyprobe_agent.kernel.runtime.target_tables import entries_of, namespaces_of
from latencyprobe_agent.kernel.typeinfo import kernel_types_kind, missing_types_message

log = logging.getLogger(__name__)


class TargetHooks:
    """The hooks of one object after the other, each from `follow` to `leave`.

    `host_netns`, `host_path`: the host's network namespace, see `KernelEngine`. `coverage`: of all
    stages, without remarks on obstacles. `stopped`: modules whose programs are detached.
    """

    def __init__(self, *, host_netns: int, host_path: str | None) -> None:
        self._host_netns = host_netns
        self._host_path = host_path
        self._object: LoadedObject | None = None
        self._modules: frozenset[Module] = frozenset()
        self._udp = False
        self._is_steered = False
        self.stopped: frozenset[Module] = frozenset()
        self.coverage = _idle_coverage()

    def follow(self, loaded: LoadedObject, modules: frozenset[Module], *, udp: bool) -> None:
        """Use the hooks of an object for these modules, but for the stopped ones."""
        self._object, self._modules, self._udp = loaded, modules, udp
        self._find_coverage(loaded)
        loaded.modules.stop(self.stopped)

    def leave(self) -> None:
        """Forget the present object, which ends. The coverage stands until the next one."""
        self._object = None

    def idle(self) -> None:
        """Cover no stage: no module is in use."""
        self.coverage = _idle_coverage()

    def stop(self, modules: frozenset[Module]) -> None:
        """See `contract.Engine.stop`."""
        self.stopped = modules
        if self._object is not None:
            self._object.modules.stop(modules)
            self._find_coverage(self._object)

    def write_targets(self, slots: Mapping[int, SlotSpec]) -> None:
        """Make the kernel's tables equal to these slots, and use the best hooks that see all.

        Raises EngineError for a full map, too many filters, programs that are refused, and if there
        is no object to measure with.
        """
        loaded = self._object
        if loaded is None:
            raise EngineError("cannot measure targets: no eBPF programs are in use")
        wanted = entries_of(slots)
        # First: a program has to see a connection that it measures from the beginning, and each
        # fork of a process from the moment when the table has it.
        if is_by_process(slots):
            loaded.processes.see(True)
        self._follow_cgroups(loaded, slots)
        loaded.tables.write(wanted)
        configuration = loaded.memories.configuration
        configuration.write_namespaces(
            namespaces_of(slots, self._host_netns),
            others=NETNS_WATCHED if begins_anywhere(slots) else 0,
        )
        if slots and not is_by_process(slots):
            if loaded.processes.see(False):
                wait_for_running_programs()
            self._find_coverage(loaded)
        if not self._is_steered:
            loaded.steering.see(False)
        self._follow_devices(loaded, slots)
        configuration.forget_obstacles()
        configuration.bump_generation()
        loaded.read_listeners(Pause.BEFORE_CHANGE)

    def check(self, slots: Mapping[int, SlotSpec]) -> None:
        """Use what hooks became better or worse since the last call. `slots`: the present ones."""
        if self._object is not None:
            self.check_devices()
            self._check_drivers(self._object)
            self._check_steering(self._object)
            self._check_cgroups(self._object, slots)

    def check_devices(self) -> None:
        """Use the programs on devices if they are all attached by now."""
        loaded = self._object
        if loaded is None:
            return
        try:
            has_changed = loaded.devices.check()
        except EngineError as error:
            log.warning("%s; trying again with the next reading", error)
            return
        if has_changed:
            hooks = [loaded.attached.get(event, "none") for event in (RECEIVE, QUEUE)]
            log.info("the hooks of arrivals and departures are %s", ", ".join(hooks))
            self._find_coverage(loaded)

    def _check_drivers(self, loaded: LoadedObject) -> None:
        """See drivers free packets only while targets' packets get to a driver."""
        try:
            loaded.drivers.check()
        except EngineError as error:
            log.warning("%s; trying again with the next reading", error)

    def _check_steering(self, loaded: LoadedObject) -> None:
        """See packets on their first CPU too, once a device is seen to steer them to another."""
        if self._is_steered or Obstacle.STEERING not in loaded.memories.configuration.obstacles():
            return
        self._is_steered = True
        try:
            loaded.steering.see(True)
        except EngineError as error:
            log.warning("%s; the wait for the CPU that RPS chooses is not measured", error)
        self._find_coverage(loaded)

    def _check_cgroups(self, loaded: LoadedObject, slots: Mapping[int, SlotSpec]) -> None:
        """Make room for programs of others that came since the last check."""
        if not loaded.cgroups.is_check_due:
            return
        try:
            self._follow_cgroups(loaded, slots)
        except EngineError as error:
            log.warning("%s; trying again in %.0f s", error, CHECK_S)

    def _follow_cgroups(self, loaded: LoadedObject, slots: Mapping[int, SlotSpec]) -> None:
        """Attach programs to the targets' cgroups, or check those that are attached."""
        if slots:
            loaded.cgroups.follow(cgroup_directories(slots))
            self._find_coverage(loaded)

    def _follow_devices(self, loaded: LoadedObject, slots: Mapping[int, SlotSpec]) -> None:
        """Begin to attach programs to the targets' devices."""
        if slots:
            loaded.devices.follow(pod_namespaces(slots, self._host_netns), self._host_path)
            self._find_coverage(loaded)

    def _find_coverage(self, loaded: LoadedObject) -> None:
        self.coverage = coverage_of(
            self._modules,
            loaded.attached,
            loaded.refused,
            udp=self._udp,
            processes=loaded.processes.are_seen,
            steering=loaded.steering.are_seen,
            remarks=loaded.remarks,
            stopped=self.stopped,
        )


def _idle_coverage() -> tuple[StageCoverage, ...]:
    if kernel_types_kind() == "none":
        return unavailable(missing_types_message())
    return tuple(
        StageCoverage(stage.name, CoverageState.IDLE, reason="no probe asks for its module")
        for stage in STAGES
    )
