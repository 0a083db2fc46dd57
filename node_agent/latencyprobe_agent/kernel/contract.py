"""The contract between those who decide what to measure and the engine that measures it.

A *slot* is a row of the kernel's histograms: one per thing measured. Two probes that want the same
target with the same filter share a slot.
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
MAX_FILTER_PORTS = abi.MAX_FILTER_PORTS


@dataclass(frozen=True, slots=True)
class SocketFilter:
    """Which sockets of a target count. Empty means all; a port matches local or remote."""

    ports: frozenset[int] = frozenset()
    protocols: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """Whose sockets one slot measures.

    `cgroup_ids`: inode numbers of directories in the v2 hierarchy, each taken alone (list the
    descendants too). `tgids`: process ids in the initial PID namespace; the kernel side follows
    their forks by itself. `netns_wide`: inode numbers of network namespaces every socket of which
    is a target. `netns`: inode numbers of the network namespaces that the target's sockets live in
    (packets elsewhere are left at the first test), those of `netns_wide` included.
    """

    cgroup_ids: frozenset[int] = frozenset()
    tgids: frozenset[int] = frozenset()
    netns_wide: frozenset[int] = frozenset()
    netns: frozenset[int] = frozenset()
    socket_filter: SocketFilter = SocketFilter()


@dataclass(frozen=True, slots=True)
class Overhead:
    """Run time of our eBPF programs.

    `cpu_percent`: of one core; None where it is not known (yet). `figure`: a number that changes
    with each new figure, since one may be read many times.
    """

    cpu_percent: float | None
    figure: int = 0


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """Which packets are told of one by one.

    `limits_ns`: stage to least duration; a packet of one of the `slots` that reaches one of them is
    told of. `per_second`: at most so many, 0 for all.
    """

    limits_ns: Mapping[str, int]
    slots: frozenset[int]
    per_second: int = 0


class Engine(Protocol):
    """The kernel side, as the rest of the agent sees it. All methods run in one event loop."""

    async def use(self, modules: frozenset[Module], *, tracing: bool = False) -> None:
        """Have just these modules attached: compile, attach, swap or detach as needed.

        `tracing`: with what tells of packets one by one, which costs every packet something.

        Raises EngineError if none of them can be attached; a missing stage is no error, it is in
        `coverage`. With the empty set nothing of ours is left in the kernel.
        """

    def assign(self, slots: Mapping[int, SlotSpec]) -> None:
        """Replace who is measured, wholly: slot number (below MAX_SLOTS) to its spec.

        A slot whose spec is new starts from zero only if its number was not assigned before.
        What a dropped slot had measured is part of the next reading. Remembered over `use`, so that
        a change of modules keeps the slots.
        """

    def read(self) -> Mapping[int, Measurement]:
        """What was measured since the last reading, by slot; slots without news are left out."""

    def read_node(self) -> NodeMeasurement:
        """What the node's own stages (irq.hard …) had since this was last called."""

    @property
    def coverage(self) -> tuple[StageCoverage, ...]:
        """Every stage of the vocabulary, in its order."""

    def overhead(self) -> Overhead:
        """CPU time of our programs, as last measured."""

    def sample(self, shift: int) -> None:
        """Measure one packet in 2**shift from now on; remembered over `use`."""

    def trace(self, spec: TraceSpec | None) -> None:
        """Tell of these packets from now on, while `use` has tracing; remembered over `use`.

        With the first spec after None the counts begin anew. None ends the trace.
        """

    async def traced(self) -> Sequence[TracedPacket]:
        """The next packets, as soon as there are some; none once the trace was ended.

        For one caller at a time. Who does not call has the ring in the kernel fill, and lose.
        """

    @property
    def trace_counts(self) -> TraceCounts:
        """What became of the slow packets since the trace began; exact once it was ended."""

    async def close(self) -> None:
        """Detach everything. Idempotent."""


class EngineError(RuntimeError):
    """The kernel refused what is indispensable; the message says what it answered."""
