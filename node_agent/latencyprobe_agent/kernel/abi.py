"""Everything that the C programs and Python share: constants, layouts and maps, each stated once.

C receives the constants as macros. The layouts and maps become `_Static_assert`s at the end of the
translation unit. If a member changes on one side alone, compiling fails.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from latencyprobe.domain.attention import LONG_WAIT_NS
from latencyprobe.domain.histogram import (
    FIRST_OCTAVE,
    HIGHEST_NS,
    LAST_OCTAVE,
    MANTISSA_THRESHOLDS,
    POSITIONS,
)
from latencyprobe.domain.packets import LONGEST_NS
from latencyprobe.domain.patience import (
    ANSWERS_OF_A_PAST,
    HELD_ANSWER_NS,
    HELD_PATIENCE_NS,
    LEAST_PATIENCE_NS,
    PATIENCE_FACTOR,
    PATIENCE_STEPS,
    Role,
)
from latencyprobe.domain.pending import KINDS_OF_SOCKETS, LONGEST_PENDING_NS
from latencyprobe.domain.stages import (
    COUNTERS,
    INDEX,
    PACKET_STAGES,
    SOCKET_MODULES,
    STAGES,
    TARGET_STAGES,
    Module,
)

MAX_SLOTS = 256
# owners_t: a slot + 1 in each 16 bits of a u64.
OWNER_BITS = 16
MAX_OWNERS = 64 // OWNER_BITS
PROTOCOLS: Mapping[str, int] = {"TCP": 1, "UDP": 2}

# Entries of the tables of targets.
MAX_CGROUPS = 4096
MAX_PROCESSES = 16384
MAX_FILTER_PORTS = 4096
# Devices of the host by which packets come to it.
MAX_HOST_DEVICES = 256
# The tables of packets on their path, with at least 2**bits elements: of those that a CPU receives.
# Half as many are of those that RPS leaves to another one.
RECEIVED, ENTERED = "received", "entered"
LEAST_RECEIVED_BITS, MOST_RECEIVED_BITS = 12, 16
# What a part of a socket's state may take: with 72 bytes of the kernel's, these fill the sizes that
# it allocates, 192, 512 and 128 bytes. While packets are traced, they take more.
MOST_BYTES: Mapping[str, tuple[int, frozenset[Module]]] = {
    "socket_state": (120, frozenset(Module)),
    "socket_queue": (440, frozenset({Module.RX, Module.TX})),
    "recovery": (56, frozenset({Module.TCP})),
    "socket_path": (56, frozenset({Module.TCP})),
}
# The memory of the states of sockets: of a target and of a node. A socket takes 1 KiB.
SOCKET_KIB_OF_TARGET = 16 << 10
SOCKET_KIB_OF_NODE = 64 << 10
# Its table: the slots, the node, the share for all, and the shares of tenants. No more tenants than
# slots are there at once, and as many may have just left.
MEMORY_OF_NODE = MAX_SLOTS
MEMORY_FOR_ALL = MAX_SLOTS + 1
SOCKET_MEMORY_PLACES = 3 * MAX_SLOTS + 2
# The threads that are followed, of a target and of a node. The table of their shares is the same,
# without the node.
THREADS_OF_TARGET = 2048
MAX_THREADS = 8192
THREADS_FOR_ALL = MAX_SLOTS
# The peers of all targets that are compared in one reading of what is pending, and those that are
# known by what they do not acknowledge alone.
MAX_PEERS = 512
MAX_UNHEARD_PEERS = 64
# The runs of each CPU: the table's name, its elements in each resolution (a power of two), and how
# many resolutions there are. The other table has a number for each of them.
RUNS_OF_CPUS, RUNS, RESOLUTIONS = "runs", 32, 3
RUN_NUMBERS = "runs_before"
# Pairs of a target and a cgroup that its threads waited for, between two readings.
MAX_WAITS_FOR_CGROUPS = 4096
# The id of the root of the v2 hierarchy: the first inode of its kernfs, kernfs_create_root().
ROOT_CGROUP = 1
THREAD_SHARE_PLACES = 3 * MAX_SLOTS + 1
# The table of network namespaces: entry 0 is not used, no chain is longer than NETNS_HOPS.
MAX_NETNS = 1024
NETNS_FIRST = 4096  # a power of two
NETNS_HOPS = 4
NETNS_HOST, NETNS_WATCHED, NETNS_PROCESSES = 1, 2, 4


class Obstacle(IntEnum):
    """A reason, noted by programs, why part of some packets' path is not measured.

    Those that take figures from the targets of one pod are noted with its network namespace: XDP,
    UNKNOWN_DEVICE and NO_DEPARTURE.
    """

    OTHER_NETNS = 0
    """A pair whose other end is neither in the pod's namespace nor in the node's."""
    TUN = 1
    """A tun device in a pod: a process has the packets."""
    XDP = 2
    """A program on the driver of a pod's device, which gets copies."""
    UNKNOWN_DEVICE = 4
    """A device of a kind that the programs do not know."""
    NO_ARRIVAL = 7
    """A device of a pod that packets pass without an event: macvlan, bpf_redirect_peer()."""
    STEERING = 6
    """A device whose packets are left to other CPUs (RPS): see `hooks.STEER`."""
    NO_QUOTA_ACCOUNT = 8
    """A kernel that has no account of the time in which a quota kept a CPU from a cgroup."""
    NO_DEPARTURE = 9
    """Packets between pods of the node that no device of the node transmits: see NO_ARRIVAL."""
    UNSEEN_END = 10
    """Packets that a process of the node received, or whose drop no hook saw."""
    DEFERRED_FREE = 11
    """Packets that may have been freed later than their driver gave them back."""


def kind_name(letters: bytes) -> str:
    """Return the kind of a device as programs have it: its first letters, then zeros."""
    return letters.partition(b"\0")[0].decode("ascii", "replace")


NR_OBSTACLES = 16  # with room for more
# The mask of `is_sampled()` with which no packet counts.
NO_PACKETS = 0xFFFFFFFF

# Reasons why a sample is missing from a stage, and the extremes of its durations, in their order.
MISSING = ("LOST", "UNMATCHED", "CLAMPED")
EXTREMES = ("MAX", "TOP_LESS_MIN", "UNUSED_EXTREME", "NO_EXTREME")
# Room in `stats` for the reasons of many kernels to come: 6.18 has 128. The last place is for those
# beyond, and for those of subsystems (mac80211, Open vSwitch), whose numbers begin at 65536.
NR_DROP_REASONS = 192
# Places in the kernel's code that drop packets of targets, in both halves of `stats` together.
MAX_DROP_PLACES = 1024


class Room(IntEnum):
    """A hash that is divided between the slots: bpf/include/rooms.h."""

    PEERS = 0
    UNHEARD_PEERS = 1
    WAITS_FOR_CGROUPS = 2
    DROP_PLACES = 3


# The size of each of them.
ROOMS: Mapping[Room, int] = {
    Room.PEERS: MAX_PEERS,
    Room.UNHEARD_PEERS: MAX_UNHEARD_PEERS,
    Room.WAITS_FOR_CGROUPS: MAX_WAITS_FOR_CGROUPS,
    Room.DROP_PLACES: MAX_DROP_PLACES,
}

# An event has room for all stages up to a packet's last one, by their own indices.
NR_PACKET_STAGES = 1 + max(INDEX[stage.name] for stage in PACKET_STAGES)

# A position is bounded by a mask of that size: bpf/include/histogram.h.
PLACES = 256
# Longer than all durations that count: the minimum is kept as this less it.
TOP_NS = 1 << 62
# A mantissa's leading bits, below its highest one: at most one bound is among the numbers that
# begin alike.
BOUND_BITS = 4

# softirq_to_name[], kernel/softirq.c: the same ten since 4.18
VECTORS = (
    *("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"),
)
MAX_HANDLERS = 64
HANDLER_NAME_BYTES = 32
# The rows of `node_stats`; the last one: handlers without a row of their own.
ROW_SOFTWAIT = 0
ROW_SOFTRUN = len(VECTORS)
ROW_HANDLERS = 2 * len(VECTORS)
NODE_ROWS = ROW_HANDLERS + MAX_HANDLERS + 1

# The source register of an instruction that loads a constant of `LoadConstant`. The kernel knows no
# such register, so it refuses a program whose constants were not put in.
CONSTANT_REGISTER = 15
# That of one that loads the address of a map: a number of `ADDRESSED_MAPS`. bcc has no expression
# for it.
MAP_REGISTER = 14
ADDRESSED_MAPS = ("cpu_contexts",)
# The storages of sockets, for programs typed by BTF. bcc makes a hash of each, see
# SOCKET_STORAGE in bpf/include/sockets.h.
SOCKET_STATES = "socket_states"
SOCKET_STORAGES = frozenset(
    {
        SOCKET_STATES,
        "socket_queues",
        "segment_rings",
        "handoff_rings",
        "recoveries",
        "socket_paths",
    }
)


class LoadConstant(IntEnum):
    """The constants whose values are known only when programs are loaded.

    They change from boot to boot, or from agent to agent, and a compiled object outlives both.
    """

    HOST_NETNS = 1
    """The inode number of the node's own network namespace."""
    CPU_NUMBERS = 2
    """The highest number of a CPU that may be there, plus one: the kernel's nr_cpu_ids."""
    RECEIVED_BITS = 3
    """Of the number of an element of `received`, the table of packets on their path."""


def _loaded(constant: LoadConstant) -> str:
    # llvm.bpf.pseudo, of bcc's helpers.h: the instruction that loads 64 bits, with this register.
    return f"bpf_pseudo_fd({CONSTANT_REGISTER}, {constant:d})"


def _map_address(number: int) -> str:
    return f"bpf_pseudo_fd({MAP_REGISTER}, {number})"


MACROS: Mapping[str, int | str] = {
    "MAX_SLOTS": MAX_SLOTS,
    "OWNER_BITS": OWNER_BITS,
    "MAX_OWNERS": MAX_OWNERS,
    **{f"PROTOCOL_{name}": value for name, value in PROTOCOLS.items()},
    "MAX_CGROUPS": MAX_CGROUPS,
    "MAX_PROCESSES": MAX_PROCESSES,
    "MAX_FILTER_PORTS": MAX_FILTER_PORTS,
    "MAX_HOST_DEVICES": MAX_HOST_DEVICES,
    "MEMORY_OF_NODE": MEMORY_OF_NODE,
    "MEMORY_FOR_ALL": MEMORY_FOR_ALL,
    "SOCKET_MEMORY_PLACES": SOCKET_MEMORY_PLACES,
    "MAX_THREADS": MAX_THREADS,
    "THREADS_FOR_ALL": THREADS_FOR_ALL,
    "RUNS": RUNS,
    "RESOLUTIONS": RESOLUTIONS,
    "MAX_WAITS_FOR_CGROUPS": MAX_WAITS_FOR_CGROUPS,
    "ROOT_CGROUP": ROOT_CGROUP,
    "THREAD_SHARE_PLACES": THREAD_SHARE_PLACES,
    "MAX_NETNS": MAX_NETNS,
    "NETNS_FIRST": NETNS_FIRST,
    "NETNS_HOPS": NETNS_HOPS,
    "NETNS_HOST": NETNS_HOST,
    "NETNS_WATCHED": NETNS_WATCHED,
    "NETNS_PROCESSES": NETNS_PROCESSES,
    "NR_STAGES": len(TARGET_STAGES),
    "NR_PACKET_STAGES": NR_PACKET_STAGES,
    "NR_COUNTERS": len(COUNTERS),
    "NR_DROP_REASONS": NR_DROP_REASONS,
    "MAX_DROP_PLACES": MAX_DROP_PLACES,
    "NR_SOFTIRQ_VECTORS": len(VECTORS),
    "MAX_HANDLERS": MAX_HANDLERS,
    "HANDLER_NAME_BYTES": HANDLER_NAME_BYTES,
    "ROW_SOFTWAIT": ROW_SOFTWAIT,
    "ROW_SOFTRUN": ROW_SOFTRUN,
    "ROW_HANDLERS": ROW_HANDLERS,
    "NODE_ROWS": NODE_ROWS,
    "FIRST_OCTAVE": FIRST_OCTAVE,
    "LAST_OCTAVE": LAST_OCTAVE,
    "HIGHEST_NS": f"{HIGHEST_NS}ULL",
    "POSITIONS": POSITIONS,
    "TOP_NS": f"{TOP_NS}ULL",
    "TOO_LONG_NS": f"{LONGEST_NS}ULL",
    "LONG_WAIT_NS": LONG_WAIT_NS,
    "NO_PACKETS": f"{NO_PACKETS}U",
    "LONGEST_PENDING_NS": f"{LONGEST_PENDING_NS}ULL",
    "NR_PENDING": len(KINDS_OF_SOCKETS),
    "MAX_PEERS": MAX_PEERS,
    "MAX_UNHEARD_PEERS": MAX_UNHEARD_PEERS,
    **{f"ROOM_{room.name}": room.value for room in Room},
    "NR_ROOMS": len(Room),
    "ANSWERS_OF_A_PAST": ANSWERS_OF_A_PAST,
    "HELD_ANSWER_NS": f"{HELD_ANSWER_NS}ULL",
    "HELD_PATIENCE_NS": f"{HELD_PATIENCE_NS}ULL",
    "LEAST_PATIENCE_NS": f"{LEAST_PATIENCE_NS}ULL",
    "PATIENCE_FACTOR": PATIENCE_FACTOR,
    "PATIENCE_STEPS": PATIENCE_STEPS,
    **{kind.macro: index for index, kind in enumerate(KINDS_OF_SOCKETS)},
    **{stage.macro: index for index, stage in enumerate(STAGES)},
    **{counter.macro: index for index, counter in enumerate(COUNTERS)},
    "PLACES": PLACES,
    "BOUND_BITS": BOUND_BITS,
    **{constant.name: _loaded(constant) for constant in LoadConstant},
    **{f"OBSTACLE_{obstacle.name}": obstacle.value for obstacle in Obstacle},
    "NR_OBSTACLES": NR_OBSTACLES,
    "LEAST_RECEIVED_BITS": LEAST_RECEIVED_BITS,
    **{f"{name.upper()}_MAP": _map_address(number) for number, name in enumerate(ADDRESSED_MAPS)},
}


class Layout:
    """A C struct: its members in order, by the format codes of Python's module `struct`.

    A member may be a struct itself. Padding exists only where it is listed as a member.
    """

    def __init__(self, name: str, **members: str | Layout) -> None:
        self.name = name
        self._formats: Mapping[str, str] = {
            member: form.format if isinstance(form, Layout) else form
            for member, form in members.items()
        }
        self.format: str = "".join(self._formats.values())
        self.packing: struct.Struct = struct.Struct(f"={self.format}")
        self.size: int = self.packing.size

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the members, in their order."""
        return tuple(self._formats)

    def offset(self, member: str) -> int:
        """Return the offset of a member in bytes."""
        before = list(self._formats).index(member)
        return struct.calcsize("=" + "".join(list(self._formats.values())[:before]))

    def part(self, first: str, last: str | None = None) -> struct.Struct:
        """Return the format of the members from one to another, both included."""
        names = list(self._formats)
        wanted = names[names.index(first) : names.index(last or first) + 1]
        return struct.Struct("=" + "".join(self._formats[name] for name in wanted))

    def assertions(self) -> Iterator[str]:
        """Yield the C statements by which the compiler checks this layout."""
        c_name = f"struct {self.name}"
        yield _assertion(f"sizeof({c_name}) == {self.size}", f"{c_name} is not {self.size} bytes")
        for member in self._formats:
            offset, size = self.offset(member), self.part(member).size
            yield _assertion(
                f"__builtin_offsetof({c_name}, {member}) == {offset} && "
                f"sizeof((({c_name} *)0)->{member}) == {size}",
                f"{c_name}: {member} is not the {size} bytes at {offset}",
            )


@dataclass(frozen=True, slots=True)
class Map:
    """A map that Python writes or reads, with the layouts of its keys and values."""

    name: str
    key: struct.Struct
    value: struct.Struct

    def assertions(self) -> Iterator[str]:
        """Yield the C statements by which the compiler checks this map, a struct of bcc's."""
        for member, part in (("key", self.key), ("leaf", self.value)):
            yield _assertion(
                f"sizeof({self.name}.{member}) == {part.size}",
                f"map {self.name}: its {member} is not {part.size} bytes",
            )


SHARDS = Layout("shards", first="H", mask="H")
NO_SHARDS = (0xFFFF, 0)
NETNS_ENTRY = Layout("netns_entry", inum="I", flags="H", next="H", owners="Q")
CONFIG = Layout(
    "config",
    epoch="I",
    generation="I",
    sample_mask="I",
    sees_sends="B",
    reads_listeners="B",
    sees_arrivals="B",
    sees_departures="B",
    sees_completions="B",
    sees_segments="B",
    slot_bits="B",
    reserved="5s",
    slice="Q",
    slice_ns="Q",
    bucket_bounds=f"{1 << BOUND_BITS}Q",
    shards=f"{2 * MAX_SLOTS * SHARDS.size}s",
    netns_first=f"{NETNS_FIRST}H",
    netns=f"{MAX_NETNS * NETNS_ENTRY.size}s",
    obstacles=f"{NR_OBSTACLES}s",
    unknown_kind="8s",
    is_driver_used="Q",
)
STAGE_STATS = Layout(
    "stage_stats",
    sum="Q",
    extremes=f"{len(EXTREMES)}Q",
    missing=f"{len(MISSING)}I",
    counts=f"{POSITIONS}I",
    pad="I",
)
NODE_ROW = Layout("node_row", stats=STAGE_STATS, beyond=f"{PLACES - POSITIONS}I")
SLOT_STATS = Layout(
    "slot_stats",
    counters=f"{len(COUNTERS)}Q",
    stages=f"{len(TARGET_STAGES) * STAGE_STATS.size}s",
    drops=f"{NR_DROP_REASONS}I",
)
THREAD = Layout(
    "thread",
    description="Q",
    owners="Q",
    waiting_since="Q",
    waits_seen="Q",
    slot="I",
    share="I",
    cgroup_id="Q",
    place="32s",
    history="80s",
)
WAIT_FOR_CGROUP = Layout("wait_for_cgroup", owners="Q", cgroup_id="Q")
THREAD_SHARE = Layout(
    "thread_share",
    threads="I",
    refused="I",
    most="I",
    forgotten="I",
    share="I",
)
SOCKET_MEMORY = Layout(
    "socket_memory",
    kib="I",
    unreported_kib="I",
    counted_kib="I",
    refused="I",
    most_kib="I",
    gone_kib="I",
    since="I",
    share="I",
    count="I",
)
SLOT_ROOM = Layout("slot_room", taken="I", refused="I", allowed="I")
SLOT_FILTER = Layout("slot_filter", protocols="H", has_ports="H")
PENDING = Layout(
    "pending",
    count="Q",
    sockets="Q",
    bytes="Q",
    oldest_ns="Q",
    waiting_ns="Q",
)
SLOT_PENDING = Layout("slot_pending", kinds=f"{len(KINDS_OF_SOCKETS) * PENDING.size}s")
FOUND_TURN = Layout(
    "found_turn",
    is_known="Q",
    is_server="Q",
    since="Q",
    is_waiting="Q",
    age_ns="Q",
    is_late="Q",
    is_first="Q",
    answers="Q",
    slowest_ns="Q",
    connect_age_ns="Q",
    resent_age_ns="Q",
)
PENDING_READING = Layout(
    "pending_reading",
    number="Q",
    owners="Q",
    found=SLOT_PENDING,
    first_ns="Q",
    first_tick="Q",
    turn=FOUND_TURN,
)
PEER_KEY = Layout(
    "waited_peer_key", slot="H", role="B", protocol="B", port="H", reserved="H", address="16s"
)
WAITS = Layout("waits", count="Q", oldest_ns="Q", waiting_ns="Q")
PEER = Layout(
    "peer",
    answered="Q",
    answers="Q",
    slowest_ns="Q",
    waiting=WAITS,
    late=WAITS,
    first=WAITS,
    connects=WAITS,
    resent=WAITS,
    first_counts=f"{PATIENCE_STEPS}Q",
    first_waiting_ns=f"{PATIENCE_STEPS}Q",
)
DROP_PLACE = Layout("drop_place", location="Q", slot="I", epoch="I")
HANDLER_NAME = Layout("handler_name", text=f"{HANDLER_NAME_BYTES}s")
USER = Layout("user", tgid="I", pid="I", comm="16s")
ENDPOINTS = Layout(
    "endpoints",
    local="16s",
    remote="16s",
    local_port="H",
    remote_port="H",
    family="H",
    protocol="H",
)
TRACE_EVENT = Layout(
    "trace_event",
    ended_ns="Q",
    user=USER,
    endpoints=ENDPOINTS,
    cpu="Q",
    owners="Q",
    stages=f"{NR_PACKET_STAGES}Q",
)
TRACE_CONTROL = Layout(
    "trace_control",
    limits=f"{NR_PACKET_STAGES}Q",
    slots=f"{MAX_SLOTS}s",
    per_second="Q",
    second="Q",
    this_second="Q",
    reported="Q",
    limited="Q",
    lost="Q",
)

# C enums whose values Python knows, each by its name.
_ENUMS: Mapping[str, Mapping[str, int]] = {
    "missing": {name: number for number, name in enumerate(MISSING)},
    "extreme": {name: number for number, name in enumerate(EXTREMES)},
}
_TCP_ENUMS: Mapping[str, Mapping[str, int]] = {
    "role": {f"ROLE_{role.name}": role.value for role in Role}
}
_SCHED_ENUMS: Mapping[str, Mapping[str, int]] = {"resolution": {"COARSE": RESOLUTIONS - 1}}

_ABOVE_ALL_MANTISSAS = 2**64 - 1

U8, U32, U64 = struct.Struct("=B"), struct.Struct("=I"), struct.Struct("=Q")
CONFIGURATION = Map("configuration", U32, CONFIG.packing)
STATS = Map("stats", U32, SLOT_STATS.packing)
CGROUPS = Map("cgroups", U64, U64)
PROCESSES = Map("processes", U32, U64)
FILTERS = Map("filters", U32, SLOT_FILTER.packing)
FILTER_PORTS = Map("filter_ports", U32, U8)
SOCKET_MEMORIES = Map("socket_memory", U32, SOCKET_MEMORY.packing)
# The key: the namespace's inode number << 32 | the obstacle.
NETNS_OBSTACLES = Map("netns_obstacles", U64, U64)
SLOT_ROOMS = Map("slot_rooms", U32, SLOT_ROOM.packing)
HOST_DEVICES = Map("host_devices", U32, U8)
THREADS = Map("threads", U32, THREAD.packing)
THREAD_SHARES = Map("thread_shares", U32, THREAD_SHARE.packing)
WAITS_FOR_CGROUPS = Map("waits_for_cgroups", WAIT_FOR_CGROUP.packing, U64)
NODE_STATS = Map("node_stats", U32, NODE_ROW.packing)
HANDLER_NAMES = Map("handler_names", U32, HANDLER_NAME.packing)
TRACE_CONTROLS = Map("trace_control", U32, TRACE_CONTROL.packing)
DROP_PLACES = Map("drop_places", DROP_PLACE.packing, U64)
PENDING_OF_SLOTS = Map("pending_of_slots", U32, SLOT_PENDING.packing)
PENDING_READINGS = Map("pending_readings", U32, PENDING_READING.packing)
PEERS = Map("peers", PEER_KEY.packing, PEER.packing)
# A ring buffer has neither keys nor values; its elements are `struct trace_event`.
TRACE_RING = "trace_ring"

_MAPS = (
    *(CONFIGURATION, STATS, CGROUPS, PROCESSES, FILTERS, FILTER_PORTS, SOCKET_MEMORIES),
    *(NETNS_OBSTACLES, SLOT_ROOMS),
)
_LAYOUTS = (
    *(SHARDS, NETNS_ENTRY, CONFIG, STAGE_STATS, SLOT_STATS, SLOT_FILTER, SOCKET_MEMORY),
    SLOT_ROOM,
)
# There with the modules that measure sockets; with rx, tcp, sched, irq; while packets are traced.
_SOCKET_MAPS = (PENDING_OF_SLOTS, PENDING_READINGS)
_SOCKET_LAYOUTS = (PENDING, SLOT_PENDING, FOUND_TURN, PENDING_READING)
_RX_MAPS = (HOST_DEVICES,)
_TCP_MAPS, _TCP_LAYOUTS = (DROP_PLACES, PEERS), (DROP_PLACE, PEER_KEY, WAITS, PEER)
_SCHED_MAPS = (THREADS, THREAD_SHARES, WAITS_FOR_CGROUPS)
_SCHED_LAYOUTS = (THREAD, THREAD_SHARE, WAIT_FOR_CGROUP)
_IRQ_MAPS, _IRQ_LAYOUTS = (NODE_STATS, HANDLER_NAMES), (HANDLER_NAME, NODE_ROW)
_TRACE_MAPS = (TRACE_CONTROLS,)
_TRACE_LAYOUTS = (USER, ENDPOINTS, TRACE_EVENT, TRACE_CONTROL)


def bucket_bounds() -> tuple[int, ...]:
    """Return `bucket_bounds` of the configuration, see bpf/include/common.h.

    Raises ValueError if BOUND_BITS are too few for one bound each.
    """
    table = []
    for leading in range(1 << BOUND_BITS):
        first = (1 << 63) + (leading << (63 - BOUND_BITS))
        end = first + (1 << (63 - BOUND_BITS))
        below = [bound for bound in MANTISSA_THRESHOLDS if bound < first]
        among = [bound for bound in MANTISSA_THRESHOLDS if first <= bound < end]
        if len(among) > 1:
            raise ValueError(f"{len(among)} bounds begin alike: {BOUND_BITS} bits are too few")
        bound = among[0] if among else _ABOVE_ALL_MANTISSAS
        table.append(bound & ~0xFF | len(below))
    return tuple(table)


def map_names(modules: Iterable[Module], *, trace: bool) -> tuple[str, ...]:
    """Return the maps of these modules that the agent receives; programs alone use the others."""
    names = (*(each.name for each in _maps(modules, trace=trace)), SOCKET_STATES)
    return (*names, TRACE_RING) if trace else names


def assertions(modules: Iterable[Module], *, trace: bool) -> Iterator[str]:
    """Yield the C statements that check the translation unit of these modules against this file."""
    wanted = frozenset(modules)
    layouts = (
        *_LAYOUTS,
        *(_SOCKET_LAYOUTS if wanted & SOCKET_MODULES else ()),
        *(_TCP_LAYOUTS if Module.TCP in wanted else ()),
        *(_SCHED_LAYOUTS if Module.SCHED in wanted else ()),
        *(_IRQ_LAYOUTS if Module.IRQ in wanted else ()),
        *(_TRACE_LAYOUTS if trace else ()),
    )
    enums = {
        **_ENUMS,
        **(_TCP_ENUMS if Module.TCP in wanted else {}),
        **(_SCHED_ENUMS if Module.SCHED in wanted else {}),
    }
    for enum, numbers in enums.items():
        for name, number in numbers.items():
            yield _assertion(f"{name} == {number}", f"enum {enum}: {name} is not {number}")
    if not trace:
        for name, (most, modules_of_part) in MOST_BYTES.items():
            if wanted & modules_of_part:
                yield _assertion(
                    f"sizeof(struct {name}) <= {most}", f"{name} is above {most} bytes"
                )
    for checked in (*layouts, *_maps(wanted, trace=trace)):
        yield from checked.assertions()


def _maps(modules: Iterable[Module], *, trace: bool) -> tuple[Map, ...]:
    return (
        *_MAPS,
        *(_SOCKET_MAPS if frozenset(modules) & SOCKET_MODULES else ()),
        *(_RX_MAPS if Module.RX in frozenset(modules) else ()),
        *(_TCP_MAPS if Module.TCP in frozenset(modules) else ()),
        *(_SCHED_MAPS if Module.SCHED in frozenset(modules) else ()),
        *(_IRQ_MAPS if Module.IRQ in frozenset(modules) else ()),
        *(_TRACE_MAPS if trace else ()),
    )


def _assertion(condition: str, message: str) -> str:
    return f'_Static_assert({condition}, "{message}: kernel/abi.py");'
