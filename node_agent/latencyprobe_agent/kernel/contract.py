"""The contract between the agent, which selects targets, and the engine, which measures them.

A *slot* is a row of the kernel's histograms. Two probes with the same target and the same filter
share a slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.measurement import Measurement, NodeMeasurement
from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel import abi

MAX_SLOTS = abi.MAX_SLOTS
# Slots that can share one identity: a cgroup, a process or a network namespace.
MAX_SHARING = abi.MAX_OWNERS
# Identities and ports in filters. Half of the processes are left to children that the kernel
# follows by itself, one namespace to the host.
MAX_CGROUPS = abi.MAX_CGROUPS
MAX_PROCESSES = abi.MAX_PROCESSES // 2
MAX_NAMESPACES = abi.MAX_NETNS - 2
# Network namespaces whose inode numbers leave the same remainder, besides the host's.
NAMESPACE_REMAINDERS = abi.NETNS_FIRST
MAX_ALIKE_NAMESPACES = abi.NETNS_HOPS - 1
MAX_FILTER_PORTS = abi.MAX_FILTER_PORTS
# The memory of the states of sockets, of a target and of a node; a socket takes 1 KiB.
SOCKET_KIB_OF_TARGET = abi.SOCKET_KIB_OF_TARGET
SOCKET_KIB_OF_NODE = abi.SOCKET_KIB_OF_NODE
# The threads that are followed, of a target and of a node.
THREADS_OF_TARGET = abi.THREADS_OF_TARGET
THREADS_OF_NODE = abi.MAX_THREADS
# A protocol that filters name, and that has programs of its own.
UDP = "UDP"


@dataclass(frozen=True, slots=True)
class SocketFilter:
    """The filter on a target's sockets. Empty means all; a port matches local or remote."""

    ports: frozenset[int] = frozenset()
    protocols: frozenset[str] = frozenset()

    def admits(self, protocol: str) -> bool:
        """Return True if sockets of this protocol may pass."""
        return not self.protocols or protocol in self.protocols


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """The sockets that one slot measures.

    `cgroup_ids`: inode numbers of directories in the v2 hierarchy, each taken alone (list the
    descendants too). `tgids`: process ids in the initial PID namespace; the kernel side follows
    their forks by itself. `netns_wide`: inode numbers of network namespaces every socket of which
    is a target. `netns`: inode numbers of all network namespaces of the target's sockets, those of
    `netns_wide` included. The first test skips packets in other namespaces. `cgroup_directories`:
    those of all `cgroup_ids`, or none if they are not known. `any_netns`: sockets may be made in
    any namespace, and those of `netns` are not all. Then packets of all namespaces of the node are
    looked up. `tenant`: slots of one tenant have one share of the node's memory for sockets, and
    one of its threads; "" if there are no tenants.
    """

    cgroup_ids: frozenset[int] = frozenset()
    cgroup_directories: frozenset[str] = frozenset()
    tgids: frozenset[int] = frozenset()
    netns_wide: frozenset[int] = frozenset()
    netns: frozenset[int] = frozenset()
    any_netns: bool = False
    socket_filter: SocketFilter = SocketFilter()
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class SocketMemoryLimits:
    """The most memory that the states of sockets take, in KiB.

    Beyond it what sockets would have measured is counted as lost. Half of the node's is divided
    equally between the tenants, and the other half is free for all.
    """

    of_target: int = SOCKET_KIB_OF_TARGET
    of_node: int = SOCKET_KIB_OF_NODE


@dataclass(frozen=True, slots=True)
class ThreadLimits:
    """The most threads that are followed, with the module sched.

    What others wait is counted as lost. Half of the node's are divided equally between the tenants,
    and the other half is free for all. `of_node`: at most THREADS_OF_NODE.
    """

    of_target: int = THREADS_OF_TARGET
    of_node: int = THREADS_OF_NODE


@dataclass(frozen=True, slots=True)
class LostPart:
    """A part of a slot's measurement that is missing: memory was full, or no hook shows it.

    `modules`: those that it is missing from.
    """

    modules: frozenset[Module]
    reason: str


# The cost of calling a program where it cannot be measured.
ASSUMED_DISPATCH_NS = 110.0


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The cost of calling a program, without its run time.

    `reason`: the reason why it is assumed, not measured; empty if it was measured.
    """

    ns: float = ASSUMED_DISPATCH_NS
    reason: str = ""


DISPATCH_NOT_MEASURED = Dispatch(reason="it was not measured")


@dataclass(frozen=True, slots=True)
class HookCost:
    """The cost of the programs at one hook, in percent of one core.

    `run_percent`: their run time; `call_percent`: runs times dispatch. `is_permanent`: they stay
    attached while those of packets are attached in time slices only.
    """

    hook: str
    run_percent: float
    call_percent: float
    is_permanent: bool = False

    @property
    def cpu_percent(self) -> float:
        """The sum of both."""
        return self.run_percent + self.call_percent


@dataclass(frozen=True, slots=True)
class Overhead:
    """The cost of our eBPF programs: run time, plus runs times dispatch.

    `cpu_percent`: percent of one core; None if it is not known (yet). `figure`: a number that
    changes with each new figure, since one may be read many times. `missed_runs`: events since the
    start that the kernel kept from our programs, since one of them was running on that CPU.
    `dispatch`: the one that the figure was made with. `hooks`: the parts of `cpu_percent`, the most
    expensive first. `slice_shift`: the one of the time slices while it was made.
    """

    cpu_percent: float | None
    figure: int = 0
    missed_runs: int = 0
    dispatch: Dispatch = DISPATCH_NOT_MEASURED
    hooks: tuple[HookCost, ...] = ()
    slice_shift: int = 0


# Time slices: the shortest period and the shortest slice.
LEAST_PERIOD_S = 2.0
LEAST_SLICE_S = 0.125
# With the kernel's statistics each program takes longer, and so do the stages of a packet, by a
# bucket or two. Most packets of a slice come without them.
LEAST_COST_SAMPLE_S = 0.03
# The programs are attached before a slice and after it: most packets that began before it have
# ended, and so have those that began in it.
SLICE_BEGIN_S = 0.01
SLICE_END_S = 0.05


def slice_s(shift: int) -> float:
    """Return the time in which packets are measured, in one period."""
    return max(LEAST_PERIOD_S * 2.0**-shift, LEAST_SLICE_S)


def cost_sample_s(measured_s: float) -> float:
    """Return the part of a slice's time in which the cost of programs is sampled.

    It is an eighth, as without time slices.
    """
    return min(max(measured_s / 8, LEAST_COST_SAMPLE_S), measured_s)


def period_s(shift: int) -> float:
    """Return the time from one slice to the next."""
    return slice_s(shift) * 2.0**shift


def attached_share(shift: int) -> float:
    """Return the part of the time in which the programs of packets are attached."""
    if not shift:
        return 1.0
    return (SLICE_BEGIN_S + slice_s(shift) + SLICE_END_S) / period_s(shift)


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """The packets that are reported one by one.

    `limits_ns`: minimum duration by stage. A packet of one of the `slots` is reported if it reaches
    one of them. `per_second`: the maximum number of packets per second, 0 for all.
    """

    limits_ns: Mapping[str, int]
    slots: frozenset[int]
    per_second: int = 0


class Engine(Protocol):
    """The kernel side, for the rest of the agent. All methods run in one event loop."""

    async def use(
        self, modules: frozenset[Module], *, tracing: bool = False, udp: bool = True
    ) -> None:
        """Attach just these modules: compile, load, swap or detach as needed.

        They stay attached until the next `assign` without any slot.

        `tracing`: attach the reporting of single packets too, which adds a cost to every packet.
        `udp`: measure datagrams too, which adds a cost to every packet and UNIX message.

        Raises EngineError if no module can be attached. A missing stage is no error; `coverage`
        reports it. With the empty set nothing of ours remains in the kernel.
        """

    def assign(self, slots: Mapping[int, SlotSpec]) -> None:
        """Replace all slots: slot number (below MAX_SLOTS) to its spec.

        A slot with a new spec starts from zero only if its number was not assigned before. The next
        reading includes the measurement of a dropped slot. Remembered over `use`, so that a change
        of modules keeps the slots.

        Without any slot nothing is attached, and with the first one the modules are attached again.
        Raises EngineError if that fails, or if the slots do not fit.
        """

    def read(self) -> Mapping[int, Measurement]:
        """Return the measurements since the last reading, by slot; omit slots without any.

        What is pending is as of now. A slot without anything pending has no such figures, unless it
        had some in the last reading: then they are empty. If it cannot be read now, the figures
        stand for a few readings; after that, the coverage of `pending` has the reason.
        """

    def read_node(self) -> NodeMeasurement:
        """Return the measurement of the node's own stages (irq.hard …) since the last call."""

    @property
    def coverage(self) -> tuple[StageCoverage, ...]:
        """Every stage of the vocabulary, in its order."""

    @property
    def lost_parts(self) -> Mapping[int, Sequence[LostPart]]:
        """The parts of slots that were lost in the last reading, by slot."""

    def overhead(self) -> Overhead:
        """Return the cost of our programs, as last measured."""

    def sample(self, shift: int, slice_shift: int = 0) -> None:
        """Measure one packet in 2**shift, in one part of the time in 2**slice_shift.

        Remembered over `use`. `shift` holds from now on, `slice_shift` from the end of the present
        time slice. Programs of packets are attached during time slices only. All figures have the
        ratio that holds for them.
        """

    def stop(self, modules: frozenset[Module]) -> None:
        """Do without these modules, even if `use` asks for them; remembered over `use`.

        Their stages become unavailable. Raises EngineError if programs cannot be attached again.
        """

    def trace(self, spec: TraceSpec | None) -> None:
        """Report these packets from now on, while `use` has tracing; remembered over `use`.

        The first spec after None resets the counts. None ends the trace.
        """

    async def traced(self) -> Sequence[TracedPacket]:
        """Wait for the next packets and return them; return none once the trace was ended.

        For one caller at a time. Without calls the ring in the kernel becomes full, and drops.
        """

    @property
    def trace_counts(self) -> TraceCounts:
        """The counts of slow packets since the trace began; exact once it was ended."""

    async def close(self) -> None:
        """Detach everything. Idempotent."""


class EngineError(RuntimeError):
    """A refusal of the kernel that makes measuring impossible. The message quotes its answer."""
