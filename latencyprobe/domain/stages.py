"""The public vocabulary: modules, stages and counters, in one table each.

A *stage* is a section of the path of a packet (or a connection) with a kernel event at both ends. A
*module* is a set of stages that are enabled together. A *counter* counts events without a duration.
The order of the tables is the order of every report. The position of a stage or counter is its
index in the kernel's maps. The C sources receive it as a macro (`STAGE_RX_SOCKET`), so a new row
here needs no second list.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Module(StrEnum):
    """A set of stages that are measured together."""

    RX = "rx"
    TX = "tx"
    TCP = "tcp"
    IRQ = "irq"
    SCHED = "sched"


DEFAULT_MODULES: tuple[Module, ...] = (Module.RX, Module.TX, Module.TCP)
SOCKET_MODULES = frozenset({Module.RX, Module.TX, Module.TCP})
"""The modules that measure sockets."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the vocabulary.

    `total` names the total of this stage: its parts add up to it, packet by packet. A stage without
    a `total` is a total itself, or a connection's duration. `within` names the part that holds this
    sub-part, if the rest of the part has no name. Sub-parts do not count towards the total.
    `beside`: a module that is needed in addition to its own.
    """

    name: str
    module: Module
    begins: str
    ends: str
    total: str | None = None
    within: str | None = None
    beside: Module | None = None

    def is_measured_by(self, modules: Container[Module]) -> bool:
        """Return True if these modules together measure it."""
        return all(module in modules for module in self.modules)

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that it needs."""
        return (self.module,) if self.beside is None else (self.module, self.beside)

    @property
    def needs(self) -> str:
        """The modules that it needs, as text."""
        return " with ".join(self.modules)

    @property
    def whole(self) -> str | None:
        """The total that its share is of: as one of its parts, or within one."""
        return BY_NAME[self.within].total if self.within else self.total

    @property
    def macro(self) -> str:
        """The name of the stage's index in the C sources."""
        return "STAGE_" + self.name.replace(".", "_").upper()


@dataclass(frozen=True, slots=True)
class Counter:
    """A count of events that have no duration, or a sum of times (`…Ns`, in nanoseconds)."""

    name: str
    module: Module
    meaning: str

    @property
    def macro(self) -> str:
        """The name of the counter's index in the C sources."""
        snake = "".join("_" + c if c.isupper() else c for c in self.name)
        return "COUNTER_" + snake.upper()


STAGES: tuple[Stage, ...] = (
    Stage(
        "rx.irq",
        Module.RX,
        "entry of the hard IRQ that scheduled this NAPI poll",
        "NET_RX softirq entry",
        "rx.total",
    ),
    Stage(
        "rx.softirq",
        Module.RX,
        "NET_RX softirq entry",
        "first netif_receive_skb of this packet",
        "rx.total",
    ),
    Stage(
        "rx.host",
        Module.RX,
        "first netif_receive_skb (host side)",
        "netif_receive_skb on the pod device",
        "rx.total",
    ),
    Stage(
        "rx.stack",
        Module.RX,
        "netif_receive_skb (pod device)",
        "the TCP segment reaches its socket",
        "rx.total",
    ),
    Stage(
        "rx.socket",
        Module.RX,
        "the end of rx.stack",
        "copied to the application",
        "rx.total",
    ),
    Stage(
        "rx.wakeup",
        Module.RX,
        "the reader is woken, or loses its CPU, with data in the socket",
        "it runs",
        within="rx.socket",
        beside=Module.SCHED,
    ),
    Stage("rx.total", Module.RX, "the first rx stage begins", "the last one ends"),
    Stage(
        "tx.socket",
        Module.TX,
        "sendmsg hands the bytes to TCP",
        "first transmission of those bytes",
        "tx.total",
    ),
    Stage(
        "tx.stack",
        Module.TX,
        "TCP stamps the segment",
        "net_dev_queue on the pod device",
        "tx.total",
    ),
    Stage(
        "tx.host",
        Module.TX,
        "net_dev_queue on the pod device",
        "net_dev_queue on the last device",
        "tx.total",
    ),
    Stage(
        "tx.qdisc",
        Module.TX,
        "net_dev_queue on the last device",
        "net_dev_start_xmit on the same device",
        "tx.total",
    ),
    Stage(
        "tx.driver",
        Module.TX,
        "net_dev_start_xmit on the last device",
        "its driver frees the packet",
        "tx.total",
    ),
    Stage("tx.total", Module.TX, "the first tx stage begins", "the last one ends"),
    Stage("tcp.connect", Module.TCP, "SYN_SENT", "ESTABLISHED"),
    Stage("tcp.handshake", Module.TCP, "SYN-ACK sent", "ESTABLISHED"),
    Stage("tcp.accept", Module.TCP, "ESTABLISHED", "accept() returns the connection"),
    Stage("tcp.rtt", Module.TCP, "data sent", "its ACK received (as the kernel times it)"),
    Stage(
        "tcp.recovery",
        Module.TCP,
        "first transmission of bytes, or of a SYN or SYN-ACK, that are sent again",
        "they are acknowledged, or the connection gives up",
    ),
    Stage(
        "tcp.queueing",
        Module.TCP,
        "a segment that answers or asks would arrive by an empty path",
        "it arrives",
    ),
    Stage(
        "app.response",
        Module.TCP,
        "the application reads the last byte of a request",
        "it hands TCP the first byte of its answer",
    ),
    Stage(
        "peer.response",
        Module.TCP,
        "the application hands TCP the first byte of a request",
        "the first byte of the reply reaches the socket",
    ),
    Stage(
        "app.transfer",
        Module.TCP,
        "the application hands TCP the first byte of its answer",
        "the last byte of the answer is sent",
    ),
    Stage(
        "peer.transfer",
        Module.TCP,
        "the first byte of a reply reaches the socket",
        "its last byte does",
    ),
    Stage(
        "udp.response",
        Module.RX,
        "a client's datagram leaves, and none waits for a reply from there",
        "the reply reaches the socket",
        beside=Module.TX,
    ),
    Stage("sched.runqueue", Module.SCHED, "a thread can run", "it runs"),
    Stage("irq.hard", Module.IRQ, "entry of a hard IRQ's handler", "its exit"),
    Stage("irq.softwait", Module.IRQ, "a softirq is raised", "its entry"),
    Stage("irq.softrun", Module.IRQ, "a softirq's entry", "its exit"),
)

COUNTERS: tuple[Counter, ...] = (
    Counter("headOfLineSegments", Module.RX, "segments that waited behind a missing earlier one"),
    Counter(
        "readerDelayNs",
        Module.RX,
        "nanoseconds of rx.socket in which the thread that reads waited for a CPU",
    ),
    Counter("dnsResponseNs", Module.RX, "nanoseconds of udp.response for replies from port 53"),
    Counter("dnsQueries", Module.RX, "queries to port 53; one that is sent again is the same"),
    Counter(
        "dnsQueriesRepeated",
        Module.RX,
        "queries to port 53 that their socket sent again, half a second later or more",
    ),
    Counter(
        "dnsQueriesRepeatedNs",
        Module.RX,
        "nanoseconds until these were sent again, the last time",
    ),
    Counter(
        "dnsQueriesEnded",
        Module.RX,
        "of these, queries that had a reply, or of which that is not known",
    ),
    Counter(
        "spareReplies",
        Module.RX,
        "second and late replies to a client, which did not wait for them when it read them",
    ),
    Counter(
        "sendsBehindWindow",
        Module.TX,
        "segments that waited over 1 ms in the socket because the receive window was full",
    ),
    Counter(
        "sendsBehindCongestion",
        Module.TX,
        "segments that waited over 1 ms for the congestion window or the device's queue",
    ),
    Counter(
        "sendsPaced",
        Module.TX,
        "segments that waited over 1 ms for their turn at the pacing rate",
    ),
    Counter(
        "sendsHeldBack",
        Module.TX,
        "segments that waited over 1 ms with both windows open: Nagle's algorithm or a cork",
    ),
    Counter("behindWindowNs", Module.TX, "nanoseconds that sendsBehindWindow waited"),
    Counter("behindCongestionNs", Module.TX, "nanoseconds that sendsBehindCongestion waited"),
    Counter("pacedNs", Module.TX, "nanoseconds that sendsPaced waited"),
    Counter("heldBackNs", Module.TX, "nanoseconds that sendsHeldBack waited"),
    Counter(
        "fragmentedPackets",
        Module.RX,
        "packets that arrived in fragments, which are unmatched",
    ),
    Counter(
        "mptcpSegments",
        Module.RX,
        "segments of MPTCP, whose data no hook sees an application read or write",
    ),
    Counter("retransmits", Module.TCP, "retransmitted segments"),
    Counter("rtos", Module.TCP, "expiries of the retransmission timer"),
    Counter(
        "spuriousRetransmits",
        Module.TCP,
        "segments that the peer received twice (DSACK): the first one had arrived",
    ),
    Counter(
        "droppedAndResent",
        Module.TCP,
        "drops on this node of segments that the target has sent, and then sent again",
    ),
    Counter(
        "droppedAndResentNs",
        Module.TCP,
        "nanoseconds of the tcp.recovery in which these were sent again",
    ),
    Counter("droppedAcks", Module.TCP, "bare ACKs of the target that this node dropped"),
    Counter("connectRetransmits", Module.TCP, "connects whose SYN was sent again"),
    Counter("resetsSent", Module.TCP, "resets that a socket sent"),
    Counter("resetsReceived", Module.TCP, "resets that a socket received"),
    Counter("zeroWindowsSent", Module.TCP, "times that a socket's receive window closed"),
    Counter("zeroWindowsReceived", Module.TCP, "times that a peer's receive window closed"),
    Counter(
        "acceptQueueOverflows",
        Module.TCP,
        "SYNs and handshakes that found a listening socket's accept queue full",
    ),
    Counter(
        "receiveQueueOverflows",
        Module.TCP,
        "datagrams and segments dropped because a socket's receive queue was full",
    ),
    Counter(
        "rttLeastNs",
        Module.TCP,
        "nanoseconds: the connection's least round trip, added for each sample of tcp.rtt",
    ),
    Counter(
        "rttGrowthSamples",
        Module.TCP,
        "samples of tcp.rtt whose ACK no peer delays: of two full segments and more",
    ),
    Counter(
        "rttGrowthNs",
        Module.TCP,
        "nanoseconds by which these were longer than the connection's least round trip",
    ),
    Counter(
        "delayedAcks",
        Module.TCP,
        "ACKs of at most one segment that the peer delayed: until its reply, or by TCP's timer",
    ),
    Counter(
        "delayedAckNs",
        Module.TCP,
        "nanoseconds by which these were later than the connection's least round trip",
    ),
    Counter(
        "heldBackByPeer",
        Module.TCP,
        "messages that a peer sent in pieces, the next one only when TCP's delayed ACK came",
    ),
    Counter("heldBackByPeerNs", Module.TCP, "nanoseconds between these pieces"),
    Counter(
        "ownWindowFull",
        Module.TCP,
        "round trips in which a peer sent all that this side's receive window allowed",
    ),
    Counter("ownWindowFullNs", Module.TCP, "nanoseconds of these round trips"),
    Counter(
        "requestsAbandoned",
        Module.TCP,
        "requests whose connection this side closed, late by the connection's own past",
    ),
    Counter("requestsAbandonedNs", Module.TCP, "nanoseconds for which these had waited"),
    Counter(
        "requestsUnanswered",
        Module.TCP,
        "requests whose connection ended before an answer, which may not have been due",
    ),
    Counter("requestsUnansweredNs", Module.TCP, "nanoseconds for which these had waited"),
    Counter(
        "slowConnects",
        Module.TCP,
        "connects that took twice the least round trip of their connection, without a repeated SYN",
    ),
    Counter("slowConnectsNs", Module.TCP, "nanoseconds by which these took longer than it"),
    Counter(
        "lateGreetings",
        Module.TCP,
        "connections on which the server spoke first, 100 ms or more after the handshake",
    ),
    Counter("lateGreetingsNs", Module.TCP, "nanoseconds for which these had no byte"),
    Counter(
        "lateEnds",
        Module.TCP,
        "connections that the server ended 100 ms to 1 s after the last byte",
    ),
    Counter("lateEndsNs", Module.TCP, "nanoseconds between that byte and the end"),
    Counter(
        "connectionsWithoutData",
        Module.TCP,
        "connections that this side opened, and closed after 1 s or more without a byte",
    ),
    Counter("connectionsWithoutDataNs", Module.TCP, "nanoseconds for which these were open"),
    Counter("connectCalls", Module.TCP, "calls of connect(), or connects that ended"),
    Counter("connectsSent", Module.TCP, "those of connectCalls whose SYN was sent"),
    Counter("connectRefused", Module.TCP, "connects answered by a reset (ECONNREFUSED)"),
    Counter("connectRejected", Module.TCP, "connects answered by an error of ICMP (ECONNREFUSED)"),
    Counter("connectTimedOut", Module.TCP, "connects without an answer (ETIMEDOUT)"),
    Counter(
        "connectUnreachable", Module.TCP, "connects without a route (EHOSTUNREACH, ENETUNREACH)"
    ),
    Counter("connectAborted", Module.TCP, "connects that the application aborted"),
    Counter("connectAbortedNs", Module.TCP, "nanoseconds for which these had no answer"),
    Counter("connectFailedOther", Module.TCP, "connects that failed with any other error"),
    Counter(
        "handshakeRetransmits",
        Module.TCP,
        "passive opens with a retransmitted SYN-ACK, hence without a tcp.handshake sample",
    ),
    Counter(
        "waitedThrottledNs",
        Module.SCHED,
        "of sched.runqueue, the time without quota: the cgroup's CPU limit was used up",
    ),
    Counter(
        "waitedForOwnNs",
        Module.SCHED,
        "of sched.runqueue, the time in which threads of the target itself had the CPU",
    ),
    Counter(
        "waitedForOthersNs",
        Module.SCHED,
        "of sched.runqueue, the time in which threads of other cgroups had the CPU",
    ),
)

# Of the target's cgroups, from the kernel's files: reported with any modules.
THROTTLING: tuple[str, ...] = ("cpuThrottledNs", "cpuThrottledPeriods", "cpuPeriods")
CPU_PRESSURE = "cpuPressureNs"
CGROUP_COUNTERS: Mapping[str, str] = {
    "cpuThrottledNs": "time in which the CPU quota of the target's cgroup kept a CPU from it",
    "cpuThrottledPeriods": "periods of the CPU quota in which that happened",
    "cpuPeriods": "periods of the CPU quota in which the cgroup ran",
    CPU_PRESSURE: "time in which some thread of the target's cgroup waited for a CPU",
}

# The others are the node's, with a handler or a vector as detail: they come last.
TARGET_STAGES: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage.module != Module.IRQ)

# The stages that a trace reports per packet: the totals, their parts and sub-parts.
_TOTALS = frozenset(stage.total for stage in STAGES if stage.total is not None)
PACKET_STAGES: tuple[Stage, ...] = tuple(
    stage
    for stage in STAGES
    if stage.name in _TOTALS or stage.total in _TOTALS or stage.within is not None
)

# Packets of a target that were dropped, counted by the kernel's reasons: `drops.SOCKET_RCVBUFF`.
DROPS = "drops"
DROP_PREFIX = f"{DROPS}."
# The same packets by the kernel functions that dropped them: `dropsIn.nf_hook_slow`.
DROPS_IN = "dropsIn"
DROPS_IN_PREFIX = f"{DROPS_IN}."
# Those whose function has no name, and those of the rarest functions.
OTHER_PLACES = f"{DROPS_IN_PREFIX}OTHER"
_FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,55}")
# Of waitedForOthersNs, the part of one cgroup, by its id: `waitedForCgroup.4711`. In nanoseconds.
WAITED_FOR_CGROUP = "waitedForCgroup"
WAITED_FOR_CGROUP_PREFIX = f"{WAITED_FOR_CGROUP}."
# Waiting that has not ended, all kinds together: see the module `pending`.
PENDING = "pending"
_COUNTER_MODULES = {counter.name: counter.module for counter in COUNTERS}

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
INDEX: dict[str, int] = {stage.name: index for index, stage in enumerate(STAGES)}


class UnknownNameError(ValueError):
    """A module or stage that does not exist. `kind`, `name` and `known` hold the facts."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"unknown {kind} {name!r}; choose one of {', '.join(self.known)}")


def parse_modules(names: Iterable[str]) -> tuple[Module, ...]:
    """Return the modules of these names, each once and in the table's order.

    Raise UnknownNameError for an unknown name, ValueError if there are no names.
    """
    wanted = {_module(name) for name in names}
    if not wanted:
        raise ValueError(f"no module given; choose from {', '.join(Module)}")
    return tuple(module for module in Module if module in wanted)


def _module(name: str) -> Module:
    try:
        return Module(name)
    except ValueError:
        raise UnknownNameError("module", name, Module) from None


def check_filter(modules: Iterable[Module], protocols: Iterable[str]) -> None:
    """Raise ValueError if the filter excludes all that these modules measure."""
    if set(protocols) == {"UDP"} and set(modules) == {Module.TCP}:
        raise ValueError(
            "module tcp measures connections, but the filter allows only UDP; add module rx or tx, "
            "or protocol TCP"
        )


def stage(name: str) -> Stage:
    """Return the stage of this name; raise UnknownNameError."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise UnknownNameError("stage", name, BY_NAME) from None


def stages_of(modules: Iterable[Module]) -> tuple[Stage, ...]:
    """Return the stages that these modules measure, in the table's order."""
    return _stages_of(frozenset(modules))


@functools.cache
def _stages_of(modules: frozenset[Module]) -> tuple[Stage, ...]:
    return tuple(stage for stage in STAGES if stage.is_measured_by(modules))


def counters_of(modules: Iterable[Module]) -> tuple[str, ...]:
    """Return the names that coverage has for the counters of these modules.

    Drop counters have one name together, by reason and by function. So have waits for cgroups, and
    all pending waits.
    """
    return _counters_of(frozenset(modules))


@functools.cache
def listed_counters(modules: frozenset[Module]) -> tuple[str, ...]:
    """Return the counters of these modules that have a name of their own each."""
    return tuple(counter.name for counter in COUNTERS if counter.module in modules)


@functools.cache
def _counters_of(modules: frozenset[Module]) -> tuple[str, ...]:
    listed = listed_counters(modules)
    drops = (DROPS, DROPS_IN) if Module.TCP in modules else ()
    cgroups = (WAITED_FOR_CGROUP,) if Module.SCHED in modules else ()
    pending = (PENDING,) if modules & SOCKET_MODULES else ()
    return (*listed, *drops, *cgroups, *pending)


def parts_of(total: str) -> tuple[Stage, ...]:
    """Return the stages that add up to this total, in the packet's order."""
    return tuple(stage for stage in STAGES if stage.total == total)


def drop_counter(reason: str) -> str:
    """Return the name of the counter of packets dropped for this reason of the kernel."""
    return DROP_PREFIX + reason


def drop_place_counter(function: str) -> str:
    """Return the name of the counter of packets that this kernel function dropped.

    What the compiler appends (`.isra.0`) is omitted. OTHER_PLACES if it is no function's name.
    """
    name = function.partition(".")[0]
    return DROPS_IN_PREFIX + name if _FUNCTION_NAME.fullmatch(name) else OTHER_PLACES


def cgroup_counter(cgroup_id: int) -> str:
    """Return the name of the counter of waits for threads of this cgroup."""
    return WAITED_FOR_CGROUP_PREFIX + str(cgroup_id)


def waits_for_cgroups(counters: Mapping[str, int]) -> dict[int, int]:
    """Return the times in the counters of a target that it waited for each cgroup, by its id."""
    return {
        int(name.removeprefix(WAITED_FOR_CGROUP_PREFIX)): ns
        for name, ns in counters.items()
        if name.startswith(WAITED_FOR_CGROUP_PREFIX) and ns
    }


def counter_module(name: str) -> Module | None:
    """Return the module of a counter; None for an unknown name."""
    if known := _COUNTER_MODULES.get(name):
        return known
    if name.startswith(DROPS_IN_PREFIX):
        function = name.removeprefix(DROPS_IN_PREFIX)
        return Module.TCP if _FUNCTION_NAME.fullmatch(function) else None
    if name.startswith(DROP_PREFIX) and name != DROP_PREFIX:
        return Module.TCP
    if name.startswith(WAITED_FOR_CGROUP_PREFIX):
        digits = name.removeprefix(WAITED_FOR_CGROUP_PREFIX)
        return Module.SCHED if digits.isascii() and digits.isdecimal() else None
    return None


def is_duration(name: str) -> bool:
    """Return True for a counter of nanoseconds: its size says nothing beside one of events."""
    return name.endswith("Ns") or name.startswith(WAITED_FOR_CGROUP_PREFIX)


def is_counter(name: str) -> bool:
    """Return True for a counter of a target."""
    return name in CGROUP_COUNTERS or counter_module(name) is not None


def is_counter_of(name: str, modules: Container[Module]) -> bool:
    """Return True for a counter of a target that is reported to a probe of these modules."""
    return name in CGROUP_COUNTERS or counter_module(name) in modules
