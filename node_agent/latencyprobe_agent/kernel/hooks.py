"""The kernel events that each stage requires, and the programs that hook them.

An *event* is something that happens in the kernel. It lists its hooks in order of preference, and
the first that this kernel accepts is used. A stage without an event that it requires is
unavailable; one without an event that it merely profits from is partial.

To add a stage: a row in `latencyprobe.domain.stages`, a program in `bpf/`, and the stage's row
below. If no existing event serves, add an event too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain
from types import MappingProxyType

from latencyprobe.domain.coverage import NO_DATAGRAMS, CoverageState, StageCoverage
from latencyprobe.domain.stages import (
    BY_NAME,
    DROPS,
    DROPS_IN,
    PENDING,
    SOCKET_MODULES,
    STAGES,
    WAITED_FOR_CGROUP,
    Module,
    counters_of,
)
from latencyprobe_agent.kernel.abi import DROP_PLACES, SOCKET_STATES

RX, TX, TCP, IRQ, SCHED = Module.RX, Module.TX, Module.TCP, Module.IRQ, Module.SCHED


class HookKind(StrEnum):
    """A kind of place in the kernel that runs a program.

    A tracepoint is typed by BTF (tp_btf) or plain (raw_tp). The entry or the end of a kernel
    function is hooked by its BTF (fentry, fexit) or by a breakpoint (kprobe, kretprobe). With BTF,
    arguments are read as those of a tracepoint. A breakpoint's program gets `struct pt_regs *`.
    A program at an iterator (iter) runs for each object of a kind, when the agent reads the
    iterator. A variable of each CPU (percpu) and a count of a network namespace (mib) run no
    program: other programs read them. What TCP does with a socket (sock_ops) runs the programs on
    the socket's cgroup, so that other sockets run none. So do packets that reach a socket
    (cgroup_skb), and questions for a socket's addresses (cgroup_sock_addr). Packets run the
    programs of the devices that they pass (tcx).
    """

    TRACEPOINT = "tracepoint"
    FENTRY = "fentry"
    FEXIT = "fexit"
    KPROBE = "kprobe"
    KRETPROBE = "kretprobe"
    ITERATOR = "iter"
    VARIABLE = "percpu"
    COUNT = "mib"
    SOCK_OPS = "sock_ops"
    CGROUP_PACKET = "cgroup_skb"
    CGROUP_ADDRESS = "cgroup_sock_addr"
    DEVICE = "tcx"


@dataclass(frozen=True, slots=True)
class Hook:
    """A program (a C function in `bpf/`), and the tracepoint or kernel function that runs it.

    A variable has its name in `bpf/` instead of a program, and its own: `structure.member`. So has
    a count, and its own is that of its enumerator. `over`: the map that an iterator visits.
    `also`: hooks that it requires; they are attached and detached together. `reads`: a requirement
    that not every kernel with the event meets; on the others the program is not compiled.
    """

    function: str
    symbol: str
    kind: HookKind = HookKind.TRACEPOINT
    also: tuple[Hook, ...] = ()
    reads: str = ""
    over: str = ""
    lacks: str = ""

    @property
    def is_kprobe(self) -> bool:
        """True if the program gets registers instead of arguments."""
        return self.kind in (HookKind.KPROBE, HookKind.KRETPROBE)

    @property
    def is_read(self) -> bool:
        """True if it runs no program, but other programs read it."""
        return self.kind in (HookKind.VARIABLE, HookKind.COUNT)

    @property
    def typed_function(self) -> str:
        """The kernel function that the kernel's BTF has, if it has the hook.

        Its arguments are the program's: DEFINE_BPF_ITER_FUNC() for iterators. Programs on devices
        have none by BTF; of them it is the function that attaches them (6.6+).
        """
        if self.kind is HookKind.DEVICE:
            return "tcx_link_attach"
        return f"bpf_iter_{self.symbol}" if self.kind is HookKind.ITERATOR else self.symbol

    def name(self, *, typed: bool) -> str:
        """Return the name in the coverage; `typed`: programs are typed by BTF."""
        if self.kind is HookKind.TRACEPOINT:
            return f"{'tp_btf' if typed else 'raw_tp'}/{self.symbol}"
        return f"{self.kind}/{self.symbol}"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens in the kernel, with the hooks that report it, best first.

    `beside`: another program that this event requires. `is_udp`: only datagrams have it, so it is
    hooked only if a probe asks for UDP. `is_of_processes`: it matters only to targets that are
    chosen by process, so it is attached only while there is one. `is_of_steering`: it matters only
    to packets that one CPU leaves to another (RPS), so it is attached once a device is seen to do
    that. `scoped`: a hook on the targets' cgroups or devices. Where it serves all targets, the hook
    in use is detached. So it has to serve all events of that one. `is_scoped_last`: it is used only
    where the kernel refuses the others.
    """

    name: str
    modules: frozenset[Module]
    hooks: tuple[Hook, ...]
    beside: str = ""
    is_udp: bool = False
    is_of_processes: bool = False
    scoped: Hook | None = None
    is_of_steering: bool = False
    is_scoped_last: bool = False


@dataclass(frozen=True, slots=True)
class StageNeeds:
    """The events that a stage or counter requires, and those whose absence makes it partial.

    `profits`: event to the part that is missing without it. `beside`: the same of a module that no
    probe asks for. `not_on_devices`: the reason why programs on devices do not measure it.
    `not_of_udp`: the reason why datagrams do not have it.
    """

    requires: tuple[str, ...]
    profits: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[Module, str] = field(default_factory=dict)
    not_on_devices: str = ""
    not_of_udp: str = ""


def _event(
    name: str,
    modules: Iterable[Module],
    *hooks: Hook | tuple[str, str] | tuple[str, str, HookKind],
    beside: str = "",
    is_udp: bool = False,
    is_of_processes: bool = False,
    scoped: Hook | None = None,
    is_of_steering: bool = False,
    is_scoped_last: bool = False,
) -> Event:
    made = (hook if isinstance(hook, Hook) else Hook(*hook) for hook in hooks)
    return Event(
        name,
        frozenset(modules),
        tuple(made),
        beside,
        is_udp,
        is_of_processes,
        scoped,
        is_of_steering,
        is_scoped_last,
    )


_SOFTIRQ_RAISE = Hook("on_softirq_raise", "softirq_raise")
_SOFTIRQ_ENTRY = Hook("on_softirq_entry", "softirq_entry")
_SOFTIRQ_EXIT = Hook("on_softirq_exit", "softirq_exit")
_KFREE_SKB = Hook(
    "on_kfree_skb", "kfree_skb", reads="requires the receiving socket, added in Linux 6.11"
)

# The program that the agent runs by reading: for each open file of the node.
READ_LISTENERS = "on_listener"
_LISTEN_OVERFLOWS = Hook("listen_overflows", "LINUX_MIB_LISTENOVERFLOWS", HookKind.COUNT)
_STATE_OF_ANY_SOCKET = Hook(
    "on_state_of_any_socket", "inet_sock_set_state", also=(_LISTEN_OVERFLOWS,)
)
_LISTENERS = Hook(
    READ_LISTENERS,
    "task_file",
    HookKind.ITERATOR,
    also=(_LISTEN_OVERFLOWS, _STATE_OF_ANY_SOCKET),
)

# Others, one of which counts the sockets of targets.
COUNT_SOCKETS = ("on_known_socket", "on_socket_file")
# Those that find what is pending: for each open file, and for each socket with a state of ours.
READ_PENDING, READ_PENDING_STATES = "on_pending_file", "on_socket_state"
# The program that names kernel functions which drop packets.
NAME_DROP_PLACES = "on_drop_place"
# Without this event the same is found, in more time.
FAST_PENDING = "fast pending reading"
# The programs on devices: of the targets' namespaces, and of the host's.
POD_INGRESS, HOST_INGRESS, HOST_EGRESS = "on_pod_ingress", "on_host_ingress", "on_host_egress"
POD_EGRESS, QUEUE_EGRESS = "on_pod_egress", "on_queue_egress"
# The events that all stages of received packets require, and those of sent ones.
RECEIVE, QUEUE = "receive", "queue"
# A segment of TCP reaches its socket.
SEGMENT = "segment"
# The events that a packet's end in its driver requires.
DRIVER_DROP, DRIVER_FREE = "driver drop", "driver free"
# The first CPU has a packet that it may leave to another one.
STEER = "first CPU"
# Without this event, segments have no tx.socket, and the others of their stages none the less.
SEND = "send"

EVENTS: tuple[Event, ...] = (
    _event("fork", Module, ("on_process_fork", "sched_process_fork"), is_of_processes=True),
    _event("exit", Module, ("on_process_exit", "sched_process_exit"), is_of_processes=True),
    _event("interrupt", (RX, IRQ), ("on_irq_handler_entry", "irq_handler_entry")),
    _event("interrupt end", (RX, IRQ), ("on_irq_handler_exit", "irq_handler_exit")),
    _event("softirq raise", (IRQ,), _SOFTIRQ_RAISE),
    _event(
        "NET_RX raise",
        (RX,),
        ("softirq_pending", "__softirq_pending", HookKind.VARIABLE),
        ("softirq_pending", "pcpu_hot.softirq_pending", HookKind.VARIABLE),  # 6.2 to 6.14
        ("softirq_pending", "irq_stat.__softirq_pending", HookKind.VARIABLE),  # before 6.2
        _SOFTIRQ_RAISE,
    ),
    _event("softirq entry", (RX, IRQ), _SOFTIRQ_ENTRY),
    _event("softirq exit", (IRQ,), _SOFTIRQ_EXIT),
    _event(
        "softirq context",
        (RX, TX),
        ("preempt_count", "__preempt_count", HookKind.VARIABLE),
        ("preempt_count", "pcpu_hot.preempt_count", HookKind.VARIABLE),  # 6.2 to 6.14
        replace(_SOFTIRQ_EXIT, also=(_SOFTIRQ_ENTRY,)),
    ),
    _event(
        RECEIVE,
        (RX,),
        ("on_netif_receive_skb", "netif_receive_skb"),
        scoped=Hook(
            POD_INGRESS,
            "ingress",
            HookKind.DEVICE,
            also=(
                Hook(HOST_INGRESS, "ingress", HookKind.DEVICE),
                Hook(HOST_EGRESS, "egress", HookKind.DEVICE),
            ),
        ),
    ),
    _event(
        STEER,
        (RX,),
        Hook(
            "on_netif_rx_entry",
            "netif_rx_entry",
            also=(
                Hook("on_netif_receive_skb_entry", "netif_receive_skb_entry"),
                Hook("on_napi_gro_receive_entry", "napi_gro_receive_entry"),
            ),
        ),
        is_of_steering=True,
    ),
    _event(
        SEGMENT,
        (RX, TCP),
        ("on_tcp_probe", "tcp_probe"),
        scoped=Hook("on_cgroup_ingress", "ingress", HookKind.CGROUP_PACKET),
    ),
    _event("TCP read", (RX, TCP), ("on_tcp_rcv_space_adjust", "tcp_rcv_space_adjust")),
    _event(
        "UDP read",
        (RX,),
        ("on_sock_recv_length", "sock_recv_length"),
        ("on_consume_skb", "consume_skb"),
        is_udp=True,
    ),
    _event(
        "UDP queue",
        (RX,),
        ("on_sk_data_ready", "sk_data_ready"),
        beside="on_sock_recv_length",
        is_udp=True,
    ),
    _event(
        SEND,
        (TX, TCP),
        ("on_tcp_sendmsg_locked", "tcp_sendmsg_locked"),
        Hook(
            "on_fentry_tcp_sendmsg",
            "tcp_sendmsg_locked",
            HookKind.FENTRY,
            also=(Hook("on_fexit_stream_wait", "sk_stream_wait_memory", HookKind.FEXIT),),
        ),
        Hook(
            "on_kprobe_tcp_sendmsg",
            "tcp_sendmsg_locked",
            HookKind.KPROBE,
            also=(Hook("on_kprobe_stream_wait", "sk_stream_wait_memory", HookKind.KPROBE),),
        ),
    ),
    _event(
        "socket count",
        (RX, TX, TCP),
        Hook(COUNT_SOCKETS[0], "bpf_sk_storage_map", HookKind.ITERATOR, over=SOCKET_STATES),
        (COUNT_SOCKETS[1], "task_file", HookKind.ITERATOR),
    ),
    _event("pending reading", SOCKET_MODULES, (READ_PENDING, "task_file", HookKind.ITERATOR)),
    _event(
        FAST_PENDING,
        SOCKET_MODULES,
        Hook(
            READ_PENDING_STATES,
            "bpf_sk_storage_map",
            HookKind.ITERATOR,
            over=SOCKET_STATES,
        ),
    ),
    _event("socket end", (RX, TX, TCP), ("on_tcp_destroy_sock", "tcp_destroy_sock")),
    _event(
        QUEUE,
        (TX,),
        ("on_net_dev_queue", "net_dev_queue"),
        scoped=Hook(
            POD_EGRESS,
            "egress",
            HookKind.DEVICE,
            also=(Hook(QUEUE_EGRESS, "egress", HookKind.DEVICE),),
        ),
    ),
    _event("transmit", (TX,), ("on_net_dev_start_xmit", "net_dev_start_xmit")),
    _event(DRIVER_DROP, (TX,), ("on_drop_sent", "kfree_skb")),
    _event(DRIVER_FREE, (TX,), ("on_consume_sent", "consume_skb"), beside="on_drop_sent"),
    _event(
        "state change",
        (TCP,),
        _STATE_OF_ANY_SOCKET,
        ("on_inet_sock_set_state", "inet_sock_set_state"),
        scoped=Hook(
            "on_sock_ops",
            "tcp_set_state",
            HookKind.SOCK_OPS,
            also=(
                Hook("on_connect4", "connect4", HookKind.CGROUP_ADDRESS),
                Hook("on_connect6", "connect6", HookKind.CGROUP_ADDRESS),
            ),
        ),
    ),
    _event(
        "accept",
        (TCP,),
        ("on_fexit_accept", "inet_csk_accept", HookKind.FEXIT),
        ("on_kretprobe_accept", "inet_csk_accept", HookKind.KRETPROBE),
        scoped=Hook(
            "on_peer_name4",
            "getpeername4",
            HookKind.CGROUP_ADDRESS,
            also=(Hook("on_peer_name6", "getpeername6", HookKind.CGROUP_ADDRESS),),
            lacks="connections are missing whose accept() is called without room for an address",
        ),
        is_scoped_last=True,
    ),
    _event("retransmit", (TCP,), ("on_tcp_retransmit_skb", "tcp_retransmit_skb")),
    _event("loss found", (TCP,), ("on_tcp_cong_state_set", "tcp_cong_state_set")),
    _event("SYN-ACK repeat", (TCP,), ("on_tcp_retransmit_synack", "tcp_retransmit_synack")),
    _event("reset sent", (TCP,), ("on_tcp_send_reset", "tcp_send_reset")),
    _event("reset received", (TCP,), ("on_tcp_receive_reset", "tcp_receive_reset")),
    _event(
        "drop",
        (TCP,),
        _KFREE_SKB,
        Hook("on_kfree_sent", "kfree_skb", reads="requires drop reasons, added in Linux 5.17"),
    ),
    _event("receive drop", (TCP,), _KFREE_SKB),
    _event(
        "drop place",
        (TCP,),
        Hook(NAME_DROP_PLACES, "bpf_map_elem", HookKind.ITERATOR, over=DROP_PLACES.name),
    ),
    _event("queue overflow", (TCP,), _KFREE_SKB, ("on_udp_fail_queue", "udp_fail_queue_rcv_skb")),
    _event("listener", (TCP,), _LISTENERS, ("on_sk_data_ready", "sk_data_ready")),
    _event("listener reading", (TCP,), _LISTENERS),
    _event("wake-up", (SCHED,), ("on_sched_wakeup", "sched_wakeup")),
    _event("first wake-up", (SCHED,), ("on_sched_wakeup_new", "sched_wakeup_new")),
    _event("switch", (SCHED,), ("on_sched_switch", "sched_switch")),
)

# The events of each packet, in the order in which their programs are detached for a time. An
# interrupt is noted for the softirq that follows it, so that event is left last.
EVENTS_OF_PACKETS: tuple[str, ...] = (
    *("interrupt", "interrupt end", RECEIVE, "segment", "TCP read", "UDP read", "UDP queue"),
    *(SEND, QUEUE, "transmit", "driver free", "softirq entry"),
)

_READS = {
    "TCP read": "TCP is not measured",
    "UDP read": "UDP is not measured",
}
_STEERED = {STEER: "the time is missing that packets wait for the CPU to which RPS steers them"}
_PROCESSES = {
    "fork": "children started later are not followed",
    "softirq context": "a socket may be attributed to the process that a softirq interrupted",
}
_THREADS = {
    "fork": "children started later are not followed",
    "first wake-up": "a new thread is mistaken for an earlier thread with the same id",
}
_NOT_OF_UDP = (
    "absent for datagrams, whose tx.total begins at the device: no hook of targets alone shows "
    "when all of them are sent"
)
STAGE_NEEDS: Mapping[str, StageNeeds] = {
    "rx.irq": StageNeeds(
        (
            *("interrupt", "interrupt end", "NET_RX raise", "softirq entry", "softirq context"),
            *("receive", SEGMENT),
        ),
        _READS,
    ),
    "rx.softirq": StageNeeds(
        ("softirq entry", "softirq context", "receive", SEGMENT), {**_READS, **_STEERED}
    ),
    "rx.host": StageNeeds(("receive", SEGMENT), _READS),
    "rx.stack": StageNeeds(
        ("receive", SEGMENT),
        {**_READS, "UDP queue": "for datagrams, this time is counted in rx.socket"},
    ),
    "rx.socket": StageNeeds(("receive", SEGMENT), _READS),
    "rx.wakeup": StageNeeds(("receive", SEGMENT, "wake-up", "switch"), {**_READS, **_THREADS}),
    "rx.total": StageNeeds(("receive", SEGMENT), {**_READS, **_STEERED}),
    "tx.socket": StageNeeds(("send", "queue", "transmit"), _PROCESSES, not_of_udp=_NOT_OF_UDP),
    "tx.stack": StageNeeds(("queue", "transmit"), _PROCESSES, not_of_udp=_NOT_OF_UDP),
    "tx.host": StageNeeds(("queue", "transmit"), _PROCESSES),
    "tx.qdisc": StageNeeds(("queue", "transmit"), _PROCESSES),
    "tx.driver": StageNeeds(("queue", "transmit", DRIVER_FREE, DRIVER_DROP), _PROCESSES),
    "tx.total": StageNeeds(("queue", "transmit"), _PROCESSES),
    "tcp.connect": StageNeeds(("state change",)),
    "tcp.handshake": StageNeeds(("state change",)),
    "tcp.accept": StageNeeds(("state change", "accept")),
    "tcp.rtt": StageNeeds((SEGMENT,)),
    "tcp.recovery": StageNeeds(
        ("retransmit", SEGMENT, "state change"),
        {
            "loss found": "where other segments are in flight, the first transmission is that of "
            "one sent beside the lost segment",
            "SYN-ACK repeat": "handshakes whose SYN-ACK was sent again have no duration",
        },
    ),
    "tcp.queueing": StageNeeds((SEGMENT,)),
    "app.response": StageNeeds((SEGMENT, "TCP read", "send", "state change")),
    "peer.response": StageNeeds((SEGMENT, "send", "state change")),
    "app.transfer": StageNeeds((SEGMENT, "TCP read", "send", "state change")),
    "peer.transfer": StageNeeds((SEGMENT, "state change")),
    "udp.response": StageNeeds(
        (QUEUE, "UDP read", "UDP queue", "pending reading"),
        not_on_devices="programs on devices cannot access the socket of a datagram",
    ),
    "sched.runqueue": StageNeeds(("wake-up", "switch"), _THREADS),
    "irq.hard": StageNeeds(("interrupt", "interrupt end")),
    "irq.softwait": StageNeeds(("softirq raise", "softirq entry")),
    "irq.softrun": StageNeeds(("softirq entry", "softirq exit")),
}

_NOT_ON_HOST = "packets that the host drops after they left the pod are not counted"
COUNTER_NEEDS: Mapping[str, StageNeeds] = {
    "headOfLineSegments": StageNeeds((SEGMENT,)),
    "readerDelayNs": StageNeeds((SEGMENT, "TCP read")),
    # the stage udp.response has the reasons
    "dnsResponseNs": StageNeeds(()),
    "dnsQueries": StageNeeds(()),
    "dnsQueriesRepeated": StageNeeds(()),
    "dnsQueriesRepeatedNs": StageNeeds(()),
    "dnsQueriesEnded": StageNeeds(()),
    "spareReplies": StageNeeds(()),
    "fragmentedPackets": StageNeeds((SEGMENT,)),
    "mptcpSegments": StageNeeds((SEGMENT,)),
    "sendsBehindWindow": StageNeeds(("send", "queue"), _PROCESSES),
    "sendsBehindCongestion": StageNeeds(("send", "queue"), _PROCESSES),
    "sendsPaced": StageNeeds(("send", "queue"), _PROCESSES),
    "sendsHeldBack": StageNeeds(("send", "queue"), _PROCESSES),
    "behindWindowNs": StageNeeds(("send", "queue"), _PROCESSES),
    "behindCongestionNs": StageNeeds(("send", "queue"), _PROCESSES),
    "pacedNs": StageNeeds(("send", "queue"), _PROCESSES),
    "heldBackNs": StageNeeds(("send", "queue"), _PROCESSES),
    "retransmits": StageNeeds(("retransmit",)),
    "rtos": StageNeeds(("retransmit",)),
    "spuriousRetransmits": StageNeeds(("retransmit", SEGMENT)),
    "droppedAndResent": StageNeeds(
        ("drop", "retransmit"), {QUEUE: _NOT_ON_HOST}, {TX: _NOT_ON_HOST}
    ),
    "droppedAndResentNs": StageNeeds(
        ("drop", "retransmit", SEGMENT), {QUEUE: _NOT_ON_HOST}, {TX: _NOT_ON_HOST}
    ),
    "droppedAcks": StageNeeds(("drop",)),
    "connectRetransmits": StageNeeds(("state change",)),
    "resetsSent": StageNeeds(("reset sent",)),
    "resetsReceived": StageNeeds(("reset received",)),
    "zeroWindowsSent": StageNeeds((SEGMENT,)),
    "zeroWindowsReceived": StageNeeds((SEGMENT,)),
    "acceptQueueOverflows": StageNeeds(
        ("listener",),
        {
            "listener reading": "counted when the next connection arrives, with other packets that "
            "the listener dropped"
        },
    ),
    "receiveQueueOverflows": StageNeeds(
        ("queue overflow",), {"receive drop": "only datagrams are counted"}
    ),
    "rttLeastNs": StageNeeds((SEGMENT,)),
    "rttGrowthSamples": StageNeeds((SEGMENT,)),
    "rttGrowthNs": StageNeeds((SEGMENT,)),
    "delayedAcks": StageNeeds((SEGMENT,)),
    "delayedAckNs": StageNeeds((SEGMENT,)),
    "heldBackByPeer": StageNeeds((SEGMENT, "TCP read")),
    "heldBackByPeerNs": StageNeeds((SEGMENT, "TCP read")),
    "ownWindowFull": StageNeeds((SEGMENT,)),
    "ownWindowFullNs": StageNeeds((SEGMENT,)),
    **dict.fromkeys(
        (
            "requestsAbandoned",
            "requestsAbandonedNs",
            "requestsUnanswered",
            "requestsUnansweredNs",
            "slowConnects",
            "slowConnectsNs",
            "lateGreetings",
            "lateGreetingsNs",
            "lateEnds",
            "lateEndsNs",
            "connectionsWithoutData",
            "connectionsWithoutDataNs",
        ),
        StageNeeds((SEGMENT, "send", "state change")),
    ),
    "connectCalls": StageNeeds(("state change",)),
    "connectsSent": StageNeeds(("state change",)),
    "connectRefused": StageNeeds(("state change",)),
    "connectRejected": StageNeeds(("state change",)),
    "connectTimedOut": StageNeeds(("state change",)),
    "connectUnreachable": StageNeeds(("state change",)),
    "connectAborted": StageNeeds(("state change",)),
    "connectAbortedNs": StageNeeds(("state change",)),
    "connectFailedOther": StageNeeds(("state change",)),
    "handshakeRetransmits": StageNeeds(("state change",)),
    **dict.fromkeys(
        ("waitedThrottledNs", "waitedForOwnNs", "waitedForOthersNs", WAITED_FOR_CGROUP),
        StageNeeds(("wake-up", "switch"), _THREADS),
    ),
    DROPS: StageNeeds(
        ("drop",),
        {
            "receive drop": "only packets that a socket sent are counted",
            QUEUE: _NOT_ON_HOST,
        },
        {TX: _NOT_ON_HOST},
    ),
    DROPS_IN: StageNeeds(
        ("drop",),
        {"drop place": "functions have names only if the agent may read /proc/kallsyms"},
    ),
    PENDING: StageNeeds(
        ("pending reading",),
        {
            "segment": "unread data has no age, requests are not known",
            "send": "unsent data has no age, requests are not known",
            "state change": "connects and connections that wait for accept() are not known",
        },
    ),
}


# The kinds of hooks on the targets' cgroups.
ON_CGROUPS = frozenset({HookKind.SOCK_OPS, HookKind.CGROUP_PACKET, HookKind.CGROUP_ADDRESS})
# The hooks on the targets' cgroups and devices, by their names in the coverage; those on devices;
# and those for packets, which are in use only if that is asked for.
_SCOPED = tuple(event.scoped for event in EVENTS if event.scoped is not None)
SCOPED_HOOKS = tuple(hook.name(typed=True) for hook in _SCOPED)
DEVICE_HOOKS = tuple(hook.name(typed=True) for hook in _SCOPED if hook.kind is HookKind.DEVICE)
PACKET_HOOKS = tuple(
    hook.name(typed=True)
    for hook in _SCOPED
    if hook.kind in (HookKind.CGROUP_PACKET, HookKind.DEVICE)
)
_LACKS = {hook.name(typed=True): hook.lacks for hook in _SCOPED if hook.lacks}
# What a stage means with the hooks on devices, where that differs from the others.
_NOTES_ON_DEVICES: Mapping[str, str] = {
    "rx.softirq": "absent for packets of this node's pods that are no targets",
    "rx.host": (
        "of pods of this node that are no targets: segments count from their transmission, "
        "datagrams from the host's end of the pod's device"
    ),
}


def _functions_of(events: Iterable[Event]) -> tuple[str, ...]:
    """Return the programs of these events, with those that they require."""
    return tuple(
        each.function for event in events for hook in event.hooks for each in (hook, *hook.also)
    )


_UDP_EVENTS = frozenset(event.name for event in EVENTS if event.is_udp)
_PROCESS_EVENTS = tuple(event for event in EVENTS if event.is_of_processes)
# The programs that follow the processes of targets, and the events that they serve.
PROCESS_FUNCTIONS = _functions_of(_PROCESS_EVENTS)
PROCESS_EVENTS = frozenset(event.name for event in _PROCESS_EVENTS)
# The programs that see drivers free packets, in the order in which they are attached.
DRIVER_FUNCTIONS = _functions_of(
    event for event in EVENTS if event.name in (DRIVER_DROP, DRIVER_FREE)
)
# The same of packets that are steered.
_STEERING_EVENTS = tuple(event for event in EVENTS if event.is_of_steering)
STEERING_EVENTS = frozenset(event.name for event in _STEERING_EVENTS)
STEERING_FUNCTIONS = _functions_of(_STEERING_EVENTS)


def events_of(modules: Iterable[Module], *, udp: bool = True) -> tuple[Event, ...]:
    """Return the events that these modules use, with or without those of datagrams."""
    wanted = set(modules)
    return tuple(event for event in EVENTS if event.modules & wanted and (udp or not event.is_udp))


def functions_of_packets(
    modules: Iterable[Module], attached: Mapping[str, str], *, typed: bool
) -> tuple[str, ...]:
    """Return the programs that only packets of these modules need, in the order to detach them.

    `attached`: event to the hook in use. Not among them are programs for rare events, and those of
    the module irq, which measures interrupts and softirqs themselves.
    """
    wanted = frozenset(modules)
    by_event = _functions(wanted, attached, typed=typed)
    kept = {
        function
        for event in events_of(wanted)
        if event.name not in EVENTS_OF_PACKETS or IRQ in event.modules & wanted
        for function in by_event.get(event.name, ())
    }
    found = (f for name in EVENTS_OF_PACKETS for f in by_event.get(name, ()) if f not in kept)
    return tuple(dict.fromkeys(found))


def functions_without(
    modules: frozenset[Module],
    stopped: frozenset[Module],
    attached: Mapping[str, str],
    *,
    typed: bool,
) -> tuple[str, ...]:
    """Return the programs that only the stopped ones of these modules need."""
    needed = chain.from_iterable(_functions(modules - stopped, attached, typed=typed).values())
    all_of_them = chain.from_iterable(_functions(modules, attached, typed=typed).values())
    kept = frozenset(needed)
    return tuple(f for f in dict.fromkeys(all_of_them) if f not in kept)


def _functions(
    modules: frozenset[Module], attached: Mapping[str, str], *, typed: bool
) -> dict[str, tuple[str, ...]]:
    """Return the programs of the hooks in use, by event."""
    return {
        event.name: tuple(
            each.function
            for hook in event.hooks
            if hook.name(typed=typed) == attached[event.name]
            for each in (hook, *hook.also)
        )
        for event in events_of(modules)
        if event.name in attached
    }


def coverage_of(
    modules: frozenset[Module],
    attached: Mapping[str, str],
    refused: Mapping[str, str],
    *,
    udp: bool = True,
    processes: bool = True,
    steering: bool = True,
    remarks: Mapping[str, str] = MappingProxyType({}),
    stopped: frozenset[Module] = frozenset(),
) -> tuple[StageCoverage, ...]:
    """Return the coverage of every stage, and of the modules' counters that are not complete.

    `attached`: event to the hook in use; `refused`: event to the kernel's answer. `udp`: a probe
    asks for UDP. `processes`: a target is chosen by process. `steering`: packets are steered to
    other CPUs. `remarks`: event to the reason why a better hook is not in use. `stopped`: the
    modules that the budget leaves no room for.
    """
    unwanted = frozenset() if udp else _UDP_EVENTS
    unwanted |= frozenset() if processes else PROCESS_EVENTS
    unwanted |= frozenset() if steering else STEERING_EVENTS
    unwanted |= frozenset(event.name for event in EVENTS if not event.modules & modules)
    gaps = _Gaps(refused, unwanted, remarks, modules - stopped, udp)
    stages = (
        _stopped(stage.name, set(stage.modules) & stopped)
        or _without_datagrams(stage.name, unwanted)
        or _cover(stage.name, STAGE_NEEDS[stage.name], attached, gaps)
        if stage.is_measured_by(modules)
        else StageCoverage(stage.name, CoverageState.IDLE, reason="no probe asks for its module")
        for stage in STAGES
    )
    counters = (
        *(_stopped(name, stopped) for name in counters_of(modules & stopped)),
        *(
            _cover(name, COUNTER_NEEDS[name], attached, gaps)
            for name in counters_of(modules - stopped)
        ),
    )
    lacking = (c for c in counters if c is not None and c.state is not CoverageState.ACTIVE)
    return (*stages, *lacking)


def _stopped(name: str, modules: Collection[Module]) -> StageCoverage | None:
    """Return the coverage of a stage of stopped modules; None if none of its modules is."""
    if not modules:
        return None
    names = ", ".join(module for module in Module if module in modules)
    return StageCoverage(
        name,
        CoverageState.UNAVAILABLE,
        reason=f"module {names} is stopped: the eBPF programs would exceed their budget",
    )


def _without_datagrams(name: str, unwanted: Collection[str]) -> StageCoverage | None:
    """Return the coverage of a stage of datagrams alone if no probe asks for UDP."""
    if _UDP_EVENTS.isdisjoint(STAGE_NEEDS[name].requires) or _UDP_EVENTS.isdisjoint(unwanted):
        return None
    return StageCoverage(name, CoverageState.IDLE, reason=NO_DATAGRAMS)


def unavailable(reason: str) -> tuple[StageCoverage, ...]:
    """Return the coverage of a node that cannot measure anything."""
    return tuple(StageCoverage(name, CoverageState.UNAVAILABLE, reason=reason) for name in BY_NAME)


@dataclass(frozen=True, slots=True)
class _Gaps:
    """The reasons why events have no hook, or no better one: see `coverage_of`.

    `unwanted`: events that no probe, or no target, asks for. `modules`: those that are measured.
    `udp`: with datagrams.
    """

    refused: Mapping[str, str]
    unwanted: frozenset[str]
    remarks: Mapping[str, str]
    modules: frozenset[Module]
    udp: bool


def _cover(name: str, needs: StageNeeds, attached: Mapping[str, str], gaps: _Gaps) -> StageCoverage:
    wanted = (*needs.requires, *needs.profits)
    in_use = [attached[event] for event in wanted if event in attached]
    missing = [event for event in needs.requires if event not in attached]
    if missing:
        reason = "; ".join(gaps.refused.get(event, f"no hook for {event}") for event in missing)
        return StageCoverage(name, CoverageState.UNAVAILABLE, reason=reason)
    lacks = [
        f"{lack}: {gaps.refused.get(event, 'no hook')}"
        for event, lack in needs.profits.items()
        if event not in attached and event not in gaps.unwanted
    ]
    lacks += [
        f"{lack} without module {module}"
        for module, lack in needs.beside.items()
        if module not in gaps.modules
    ]
    lacks += [_LACKS[hook] for hook in in_use if hook in _LACKS]
    state = CoverageState.PARTIAL if lacks else CoverageState.ACTIVE
    is_on_devices = any(hook in DEVICE_HOOKS for hook in in_use)
    if is_on_devices and needs.not_on_devices:
        return StageCoverage(name, CoverageState.UNAVAILABLE, reason=needs.not_on_devices)
    notes = [_NOTES_ON_DEVICES[name]] if is_on_devices and name in _NOTES_ON_DEVICES else []
    notes += [needs.not_of_udp] if needs.not_of_udp and gaps.udp else []
    notes += [gaps.remarks[event] for event in wanted if event in gaps.remarks]
    notes += [NO_DATAGRAMS] if gaps.unwanted & _UDP_EVENTS & needs.profits.keys() else []
    hooks = ", ".join(dict.fromkeys(in_use))
    return StageCoverage(name, state, hooks, "; ".join([*lacks, *notes]))
