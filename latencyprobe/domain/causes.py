"""Causes: the names that a verdict can have, their meanings, and a person's next steps.

A next step is for the owner of the pod: a setting of the pod, a command, or a request to the
administrator. A command is between backquotes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Bottleneck(StrEnum):
    """The causes that a verdict can name."""

    SLOW_READER = "SlowReader"
    CPU_THROTTLED = "CPUThrottled"
    NOISY_NEIGHBOUR = "NoisyNeighbour"
    SELF_CONTENTION = "SelfContention"
    NODE_STEAL = "NodeSteal"
    CPU_CONTENTION = "CPUContention"
    SOFTIRQ_BACKLOG = "SoftirqBacklog"
    HOST_PATH = "HostPath"
    RECEIVE_WINDOW = "ReceiveWindow"
    CONGESTION = "Congestion"
    HELD_BACK = "HeldBack"
    PACKET_LOSS = "PacketLoss"
    CONNECT_FAILURES = "ConnectFailures"
    ACCEPT_QUEUE = "AcceptQueue"
    DROPS = "Drops"
    QDISC_BACKLOG = "QdiscBacklog"
    DRIVER = "Driver"
    NETWORK = "Network"
    PEER = "Peer"
    APPLICATION = "Application"
    DNS = "DNS"
    NONE = "None"
    INSUFFICIENT_DATA = "InsufficientData"


NO_ACCUSATION = frozenset({Bottleneck.NONE, Bottleneck.INSUFFICIENT_DATA})


@dataclass(frozen=True, slots=True)
class Cause:
    """The meaning of a bottleneck, and the next step of a person."""

    because: str
    next_step: str


BY_ITS_PROBE = "by a LatencyProbe that selects its pods (`kubectl get latencyprobes -o wide`)"
MEASURE_THE_OTHER_END = f"Measure the other end too, {BY_ITS_PROBE}."
_SCHED_SHOWS = (
    "Module sched (spec.modules, `latencyprobe run --modules rx,tx,tcp,sched`) shows whether"
)
_ASK_FOR_THE_DATA_PATH = (
    "Compare with a pod on another node. Ask the node's administrator for the CNI's data path: "
    "number of netfilter rules (`nft list ruleset`), bridge, encapsulation."
)
CAUSES: Mapping[Bottleneck, Cause] = {
    Bottleneck.SLOW_READER: Cause(
        "data waits in the socket until the application reads it",
        "Profile the application between two reads of this socket: blocking calls, a busy event "
        "loop, too few threads. If it does not read at all, list the system calls that its threads "
        f"wait in. {_SCHED_SHOWS} a neighbour has its CPU.",
    ),
    Bottleneck.CPU_THROTTLED: Cause(
        "the CPU limit stops the application's threads until the next period begins",
        "Raise or remove the container's resources.limits.cpu, or use fewer threads than the limit "
        "has CPUs (GOMAXPROCS, worker processes).",
    ),
    Bottleneck.NOISY_NEIGHBOUR: Cause(
        "the application's threads can run, and processes of another cgroup have their CPU",
        "Raise the container's resources.requests.cpu: it is its share of a busy CPU. Or ask the "
        "cluster's administrator to move the neighbour, or for a static CPU manager policy.",
    ),
    Bottleneck.SELF_CONTENTION: Cause(
        "the application's threads can run, and other threads of its own have their CPU",
        "Use fewer busy threads or processes in this pod (GOMAXPROCS, worker processes). Or give "
        "it more CPUs (resources.requests.cpu), or move batch work to a pod of its own.",
    ),
    Bottleneck.NODE_STEAL: Cause(
        "the hypervisor runs other machines on this node's CPUs (steal)",
        "Ask the cluster's administrator for another type of machine. This one gets less CPU time "
        "than it is sold with (burstable instance, overcommitted host).",
    ),
    Bottleneck.CPU_CONTENTION: Cause(
        "the application's threads can run, and wait for a CPU",
        "Add module sched to name the user of the CPU (spec.modules, "
        "`latencyprobe run --modules rx,tx,tcp,sched`). Check the pod's CPU requests and limits.",
    ),
    Bottleneck.SOFTIRQ_BACKLOG: Cause(
        "packets wait behind others in the NET_RX softirq",
        "Ask the node's administrator for the load of its softirqs "
        "(`cat /proc/net/softnet_stat`). Receive queues can be spread: RSS, RPS, or more queues on "
        "the NIC.",
    ),
    Bottleneck.HOST_PATH: Cause(
        "packets spend this time on the host, between the pod's device and the node's",
        _ASK_FOR_THE_DATA_PATH,
    ),
    Bottleneck.RECEIVE_WINDOW: Cause(
        "data waits to be sent, because the receiver's window is full",
        "Check the receiver: it reads more slowly than the sender writes, or its receive buffer "
        "(SO_RCVBUF, net.ipv4.tcp_rmem) is too small for the round trip.",
    ),
    Bottleneck.CONGESTION: Cause(
        "data waits to be sent for the congestion window, for pacing or for the device's queue",
        "Reuse connections and keep them busy. Each begins with a small window, which shrinks "
        "while it is idle (net.ipv4.tcp_slow_start_after_idle). Check for pacing "
        "(SO_MAX_PACING_RATE), for losses, and for the slowest link of the path.",
    ),
    Bottleneck.HELD_BACK: Cause(
        "a piece of a message waits for the ACK of the piece before it: Nagle's algorithm, a cork, "
        "a delayed ACK",
        "On the side that writes: set TCP_NODELAY, or write each message in one call; remove "
        "TCP_CORK and MSG_MORE with its last piece.",
    ),
    Bottleneck.PACKET_LOSS: Cause(
        "packets are lost, and TCP sends them again after a time-out",
        "Find the place: drops at this end are among the counters (drops.*). "
        f"{MEASURE_THE_OTHER_END} Packets that it does not receive are lost between the two. If "
        "only large packets are lost, the path's MTU is smaller than the pod's.",
    ),
    Bottleneck.CONNECT_FAILURES: Cause(
        "connects fail or get no answer",
        "Refused: no process listens there; check the Service's endpoints "
        "(`kubectl get endpointslices`). Rejected: the Service has no endpoints, or a rule of the "
        "node rejects. Without an answer: check the address and the network policies "
        "(`kubectl get networkpolicies`). Not sent: there is no route, or no local port is left, "
        "since closed connections hold one for a minute: keep connections open.",
    ),
    Bottleneck.ACCEPT_QUEUE: Cause(
        "new connections wait until the application accepts them, or find the queue full",
        "Accept in a thread of its own, add workers, and do not let idle connections keep them. A "
        "longer backlog of listen() (and net.core.somaxconn) helps only against short bursts. "
        f"{_SCHED_SHOWS} the thread that accepts waits for a CPU.",
    ),
    Bottleneck.DROPS: Cause(
        "packets are dropped on this node, and are not sent again in time",
        "The reason names the cause: a full receive buffer (read sooner, or raise SO_RCVBUF), a "
        "network policy (`kubectl get networkpolicies`), no route. For a rule of the node, ask its "
        "administrator with the reason and the kernel's function.",
    ),
    Bottleneck.QDISC_BACKLOG: Cause(
        "packets wait in the queueing discipline of the last device",
        "Check the pod's annotation kubernetes.io/egress-bandwidth. Or ask the node's "
        "administrator for the queue that holds them (`tc -s qdisc show`): a rate limit, or a full "
        "link.",
    ),
    Bottleneck.DRIVER: Cause(
        "packets wait in the last device until their transmission is complete",
        "Ask the node's administrator for the device's rings, interrupt coalescing and pause "
        "frames (`ip -s link`), and in a virtual machine for the host's side.",
    ),
    Bottleneck.NETWORK: Cause(
        "the round trip to the peer takes far longer than both stacks",
        "Move the two closer together: by the pod's spec.affinity.podAffinity, or by the Service's "
        "spec.trafficDistribution (`kubectl get pods -o wide` lists the nodes). Or ask less often: "
        "batch, pipeline, cache.",
    ),
    Bottleneck.PEER: Cause(
        "the peer takes this long to answer",
        f"Measure the peer too, {BY_ITS_PROBE}. A large app.response means that its application is "
        "slow, a large rx.socket that it reads late.",
    ),
    Bottleneck.APPLICATION: Cause(
        "the time is between reading a whole request and writing the first byte of the answer",
        "Profile or trace the application between reading a request and writing its answer: locks, "
        "queries, calls to other services. Those calls are timed as peer.response "
        f"(`kubectl get latencyprobes -o yaml`). {_SCHED_SHOWS} its threads wait for a CPU.",
    ),
    Bottleneck.DNS: Cause(
        "names are resolved slowly",
        "Measure the name server too. Check ndots and search domains of the pod's resolv.conf "
        "(spec.dnsConfig), and cache names.",
    ),
}
# Where module sched measures already.
UNNAMED_CONTENTION = Cause(
    CAUSES[Bottleneck.CPU_CONTENTION].because,
    "Module sched names no user of the CPU that they mostly wait for. Check the pod's CPU requests "
    "and limits (resources.requests.cpu).",
)
GROWN_NETWORK = Cause(
    "the round trip has grown above the path's own minimum: packets wait in a queue of the path",
    "Find the queue: the slowest link between the two, a rate limit (the pods' annotation "
    "kubernetes.io/egress-bandwidth), or a bulk transfer beside. "
    f"Measure the peer too, {BY_ITS_PROBE}. The end that sends into the queue shows it.",
)
NO_NAME_SERVER = Cause(
    "the name server does not reply",
    "Check that network policies allow UDP to port 53 (`kubectl get networkpolicies`). Check the "
    "address in the pod's resolv.conf, and that the name server runs. Measure it too.",
)
