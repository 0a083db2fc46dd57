"""The verdict: which stage is the bottleneck, why, and what to do about it.

A pure function of one target's measurement over a window. It is based on sums of time, never on a
single packet, and it carries the figures that it is based on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.measurement import NOTHING_OF_THE_NODE, Measurement, NodeMeasurement
from latencyprobe.domain.stages import parts_of

DOMINANT_SHARE = 0.40
MIN_SAMPLES = 100
# If 99 % of the packets take less, the largest share is that of a healthy machine. A wake-up of
# 20 us holds most of the total on any idle one, and must not page anyone.
NOTEWORTHY_NS = 1_000_000
# The wire is to blame when the round trip is this many times what both stacks spend on a packet.
NETWORK_FACTOR = 5
TOTALS = ("rx.total", "tx.total")
_LARGER_PART = 0.5


class Bottleneck(StrEnum):
    """The causes that a verdict can name."""

    SLOW_READER = "SlowReader"
    CPU_CONTENTION = "CPUContention"
    SOFTIRQ_BACKLOG = "SoftirqBacklog"
    HOST_PATH = "HostPath"
    RECEIVE_WINDOW = "ReceiveWindow"
    CONGESTION = "Congestion"
    QDISC_BACKLOG = "QdiscBacklog"
    DRIVER = "Driver"
    APPLICATION = "Application"
    NETWORK = "Network"
    PEER = "Peer"
    NONE = "None"
    INSUFFICIENT_DATA = "InsufficientData"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first statement of a report.

    `share_percent`: part of the total that the bottleneck's stage holds; 0 without a stage.
    `evidence`: the figures, as sentences. `next_step`: one action for a person.
    """

    bottleneck: Bottleneck
    share_percent: int
    evidence: tuple[str, ...]
    next_step: str
    stage: str | None = None


@dataclass(frozen=True, slots=True)
class _Cause:
    bottleneck: Bottleneck
    because: str
    next_step: str


_CHECK_THE_DATA_PATH = (
    "Check the CNI's data path on the node: number of netfilter rules, bridge, encapsulation."
)
_ASK_FOR_NODE_FIGURES = (
    "The node's softnet counters are not shown here; the administrator can add this namespace to "
    "operator.nodeFiguresNamespaces."
)
_FAST_ENOUGH = f"Nothing to do: 99 % of the packets take under {format_ns(NOTEWORTHY_NS)}."
_CAUSES: Mapping[str, _Cause] = {
    "rx.socket": _Cause(
        Bottleneck.SLOW_READER,
        "data waited in the socket until the application read it",
        "Profile the application between two reads of this socket: blocking calls, a busy event "
        "loop, too few threads, or a CPU limit that throttles it.",
    ),
    "rx.wakeup": _Cause(
        Bottleneck.CPU_CONTENTION,
        "the reader was runnable, but other threads had its CPU",
        "List the threads on the reader's CPUs (perf sched, top -H). Check the pod's CPU limits "
        "and shares, CPU pinning, its nice value, and the load of the node.",
    ),
    "rx.softirq": _Cause(
        Bottleneck.SOFTIRQ_BACKLOG,
        "packets waited behind others in the NET_RX softirq",
        "Compare the softirq load of the node's CPUs (mpstat -P ALL 1) and spread the receive "
        "queues: RSS, RPS, or more queues on the NIC.",
    ),
    "rx.host": _Cause(
        Bottleneck.HOST_PATH,
        "packets spent this time on the host, between the first device and the pod's",
        _CHECK_THE_DATA_PATH,
    ),
    "tx.host": _Cause(
        Bottleneck.HOST_PATH,
        "packets spent this time on the host, between the pod's device and the last one",
        _CHECK_THE_DATA_PATH,
    ),
    "tx.driver": _Cause(
        Bottleneck.DRIVER,
        "packets waited in the last device until their transmission was complete",
        "Check the device: ring and queues (ethtool -g, -l), interrupt coalescing (ethtool -c), "
        "pause frames (ethtool -S). In a virtual machine, check the host's side too.",
    ),
    "tx.qdisc": _Cause(
        Bottleneck.QDISC_BACKLOG,
        "packets waited in the queueing discipline of the last device",
        "Find the queue that holds them (tc -s qdisc show). Check for a rate limit, a bandwidth "
        "annotation of the pod, or a full link.",
    ),
}
# The counters of long waits name the cause of a large tx.socket: the largest one wins.
_CAUSES_OF_WAITING: Mapping[str, _Cause] = {
    "sendsBehindWindow": _Cause(
        Bottleneck.RECEIVE_WINDOW,
        "data waited in the socket because the receive window was full",
        "Check the receiver: it reads more slowly than this side writes, or its receive buffer "
        "(net.ipv4.tcp_rmem, SO_RCVBUF) is too small for the round trip.",
    ),
    "sendsBehindCongestion": _Cause(
        Bottleneck.CONGESTION,
        "data waited in the socket for the congestion window, pacing or the device's queue",
        "Check the path for losses and its slowest link (ss -ti: cwnd, retrans, pacing_rate; tc -s "
        "qdisc show). Reuse connections, since each begins with a small window.",
    ),
    "sendsHeldBack": _Cause(
        Bottleneck.APPLICATION,
        "data waited in the socket with both windows open: Nagle's algorithm or a cork",
        "Set TCP_NODELAY on this socket, or write each message in one call. Check for MSG_MORE and "
        "TCP_CORK.",
    ),
}


# Counters of the target, of its network namespace and of its node that support a verdict, by their
# own names. Drops are reported with every verdict: they matter even if no packet waits.
_DROPS = (
    "acceptQueueOverflows",
    "receiveQueueOverflows",
    "TcpExtListenOverflows",
    "TcpExtListenDrops",
    "TcpExtTCPBacklogDrop",
    "TcpExtTCPRcvQDrop",
    "UdpRcvbufErrors",
    "Udp6RcvbufErrors",
    "softnetDropped",
)
_WITNESSES: Mapping[Bottleneck, tuple[str, ...]] = {
    Bottleneck.SLOW_READER: (
        "zeroWindowsSent",
        "TcpExtTCPToZeroWindowAdv",
        "TcpExtPruneCalled",
        "TcpExtTCPRcvCollapsed",
    ),
    Bottleneck.SOFTIRQ_BACKLOG: ("softnetTimeSqueezed", "softnetFlowLimited"),
    Bottleneck.NETWORK: (
        "rtos",
        "TcpExtTCPTimeouts",
        "TcpExtTCPLostRetransmit",
        "TcpExtTCPAbortOnTimeout",
    ),
}


def judge(measurement: Measurement, node: NodeMeasurement | None = NOTHING_OF_THE_NODE) -> Verdict:
    """Return the verdict on one target's measurement over a window.

    Counts of its network namespace and its node are added to the evidence. They decide nothing,
    since other pods may have caused them. `node`: None if the reader may not see its figures.
    """
    verdict = _judge(measurement)
    if node is None:
        verdict, node = _without_node(verdict), NOTHING_OF_THE_NODE
    names = (*_DROPS, *_WITNESSES.get(verdict.bottleneck, ()))
    counted = (
        *_counted("at its own sockets", measurement.counters, names),
        *_counted("in its network namespace", measurement.netns_counters, names),
        *_counted("on its node", node.counters, names),
    )
    return replace(verdict, evidence=(*verdict.evidence, *counted))


def _without_node(verdict: Verdict) -> Verdict:
    """Return the verdict with a hint where counters of the node would be evidence."""
    if verdict.bottleneck is not Bottleneck.SOFTIRQ_BACKLOG:
        return verdict
    return replace(verdict, next_step=f"{verdict.next_step} {_ASK_FOR_NODE_FIGURES}")


def _counted(where: str, counters: Mapping[str, int], names: Iterable[str]) -> Iterator[str]:
    seen = [f"{name} {counters[name]:,}" for name in names if counters.get(name)]
    if seen:
        yield f"during the window {where}: {', '.join(seen)}"


def _judge(measurement: Measurement) -> Verdict:
    totals = [total for total in TOTALS if _samples(measurement, total) >= MIN_SAMPLES]
    if not totals:
        return _insufficient(measurement)
    if (slower := _judge_responses(measurement)) or (slower := _judge_network(measurement)):
        return slower
    total = max(totals, key=lambda name: measurement.stage(name).histogram.sum_ns)
    stage, share = _largest_part(measurement, total)
    figures = _figures(measurement, total, stage, share)
    if measurement.stage(total).histogram.percentile(99) < NOTEWORTHY_NS:
        return Verdict(Bottleneck.NONE, 0, figures, _FAST_ENOUGH)
    if share < DOMINANT_SHARE:
        return Verdict(Bottleneck.NONE, 0, figures, "Nothing to do: no stage stands out.")
    cause, more = _cause(measurement, stage), tuple[str, ...]()
    if cause is None:
        return Verdict(Bottleneck.NONE, 0, figures, _work_not_waiting(stage))
    if stage == "rx.socket":
        more = _reader_figures(measurement)
        part = _wakeup_part(measurement)
        if part > _LARGER_PART:
            cause, stage, share = _CAUSES["rx.wakeup"], "rx.wakeup", share * part
    evidence = (*figures, cause.because, *more)
    return Verdict(cause.bottleneck, _percent(share), evidence, cause.next_step, stage)


def _percent(share: float) -> int:
    """Round to percent, at most 100: a part may have samples whose total was lost."""
    return min(round(100 * share), 100)


def _wakeup_part(measurement: Measurement) -> float:
    """Return the part of rx.socket in which the reader waited for a CPU; needs module sched."""
    socket_ns = measurement.stage("rx.socket").histogram.sum_ns
    return measurement.stage("rx.wakeup").histogram.sum_ns / socket_ns if socket_ns else 0.0


def _reader_figures(measurement: Measurement) -> tuple[str, ...]:
    """Return the figures of module sched on the reader, if it is measured."""
    runqueue = measurement.stage("sched.runqueue").histogram
    if not runqueue.count:
        return ()
    p50, p99 = (format_ns(runqueue.percentile(percent)) for percent in (50, 99))
    return (
        f"rx.wakeup, the reader waiting for a CPU, is {_wakeup_part(measurement):.0%} of rx.socket",
        f"sched.runqueue of all its threads: p50 {p50}, p99 {p99}",
    )


def _cause(measurement: Measurement, stage: str) -> _Cause | None:
    if stage != "tx.socket":
        return _CAUSES.get(stage)
    waits = {name: measurement.counters.get(name, 0) for name in _CAUSES_OF_WAITING}
    most = max(waits, key=lambda name: waits[name])
    if not waits[most]:
        return None
    cause = _CAUSES_OF_WAITING[most]
    counted = ", ".join(f"{name} {count:,}" for name, count in waits.items() if count)
    return replace(cause, because=f"{cause.because} ({counted})")


def _samples(measurement: Measurement, stage: str) -> int:
    return measurement.stage(stage).histogram.count


def _insufficient(measurement: Measurement) -> Verdict:
    measured = [total for total in TOTALS if total in measurement.stages]
    most = max((_samples(measurement, total) for total in measured), default=0)
    evidence = f"{most} packets in the window; a verdict needs {MIN_SAMPLES}"
    next_step = "Wait for more traffic, or widen the window."
    if not measured:
        evidence += " (no rx.total and no tx.total seen)"
        next_step += " Enable module rx or tx."
    return Verdict(Bottleneck.INSUFFICIENT_DATA, 0, (evidence,), next_step)


def _work_not_waiting(stage: str) -> str:
    return f"Nothing to do: {stage} is mostly the kernel's own work on each packet."


def _largest_part(measurement: Measurement, total: str) -> tuple[str, float]:
    """Return (stage, share) of the part that holds most of this total."""
    whole_ns = measurement.stage(total).histogram.sum_ns
    stage = max(
        (part.name for part in parts_of(total)),
        key=lambda name: measurement.stage(name).histogram.sum_ns,
    )
    part_ns = measurement.stage(stage).histogram.sum_ns
    return stage, part_ns / whole_ns if whole_ns else 0.0


def _figures(measurement: Measurement, total: str, stage: str, share: float) -> tuple[str, ...]:
    part = measurement.stage(stage).histogram
    p50, p99 = (format_ns(part.percentile(percent)) for percent in (50, 99))
    total_p99 = format_ns(measurement.stage(total).histogram.percentile(99))
    return (
        f"{stage} holds {share:.0%} of {total}",
        f"{stage} p50 {p50}, p99 {p99}; {total} p99 {total_p99}",
    )


def _judge_network(measurement: Measurement) -> Verdict | None:
    """Blame the network if the round trip is far above the time in both directions of this stack.

    Compares means, which are sums by packet: few packets that a stack holds for very long weigh as
    much as many fast ones. Returns None if one direction is unknown. Returns None also if the peer
    delayed most ACKs: tcp.rtt then shows the peer's delay, not the network's.
    """
    if any(_samples(measurement, name) < MIN_SAMPLES for name in (*TOTALS, "tcp.rtt")):
        return None
    if _are_acks_delayed(measurement):
        return None
    rtt_ns = measurement.stage("tcp.rtt").histogram.mean_ns
    stacks_ns = sum(measurement.stage(name).histogram.mean_ns for name in TOTALS)
    if rtt_ns <= max(NETWORK_FACTOR * stacks_ns, NOTEWORTHY_NS):
        return None
    retransmits = measurement.counters.get("retransmits", 0)
    return Verdict(
        Bottleneck.NETWORK,
        _percent(rtt_ns / (rtt_ns + stacks_ns)),
        (
            f"tcp.rtt: {format_ns(rtt_ns)} on average; this node's stack: {format_ns(stacks_ns)}",
            f"{retransmits} retransmits",
        ),
        "Check the path to the peer (mtr): distance, a congested link. Measure the peer too: if it "
        "answers slowly, it may delay its ACKs by up to 40 ms.",
        "tcp.rtt",
    )


def _are_acks_delayed(measurement: Measurement) -> bool:
    """Return True if the peer delayed most ACKs, so that tcp.rtt includes its delay."""
    return 2 * measurement.counters.get("delayedAcks", 0) > _samples(measurement, "tcp.rtt")


def _round_trip_ns(measurement: Measurement) -> int | None:
    """Return the network's time in a response; the minimum if the peer delays its ACKs."""
    rtt = measurement.stage("tcp.rtt").histogram
    if rtt.count < MIN_SAMPLES:
        return None
    return rtt.min_ns if _are_acks_delayed(measurement) else rtt.mean_ns


def _judge_responses(measurement: Measurement) -> Verdict | None:
    """Blame application or peer if requests wait longer for it than packets for anything else.

    The time of an application includes its own requests to peers: if those explain it, blame them.
    """
    application_ns = _waited_for_application_ns(measurement)
    peer_ns = _waited_for_peer_ns(measurement)
    packets_ns = sum(measurement.stage(total).histogram.sum_ns for total in TOTALS)
    longest_ns = max(application_ns, peer_ns)
    share = longest_ns / (longest_ns + packets_ns) if longest_ns else 0.0
    if share < DOMINANT_SHARE or longest_ns <= _longest_total_ns(measurement):
        return None
    if 2 * peer_ns >= application_ns:
        return _blame_peer(measurement, share)
    return _blame_application(measurement, share)


def _longest_total_ns(measurement: Measurement) -> int:
    return max(measurement.stage(total).histogram.sum_ns for total in TOTALS)


def _waited_for_application_ns(measurement: Measurement) -> int:
    """Return the sum of app.response; 0 if it is short, or shorter than the client's round trip."""
    response = measurement.stage("app.response").histogram
    if response.count < MIN_SAMPLES or response.percentile(99) < NOTEWORTHY_NS:
        return 0
    rtt_ns = _round_trip_ns(measurement) or 0
    return response.sum_ns if response.mean_ns > rtt_ns else 0


def _waited_for_peer_ns(measurement: Measurement) -> int:
    """Return the sum of peer.response less the round trips; 0 if that is short or a small part."""
    response = measurement.stage("peer.response").histogram
    rtt_ns = _round_trip_ns(measurement)
    if rtt_ns is None or response.count < MIN_SAMPLES or response.percentile(99) < NOTEWORTHY_NS:
        return 0
    own_ns = response.mean_ns - rtt_ns
    return own_ns * response.count if own_ns >= DOMINANT_SHARE * response.mean_ns else 0


def _blame_application(measurement: Measurement, share: float) -> Verdict:
    return Verdict(
        Bottleneck.APPLICATION,
        _percent(share),
        (
            _response_figures(measurement, "app.response"),
            "the time is between reading a whole request and writing the first byte of the answer",
        ),
        "Profile or trace the application between reading a request and writing its answer: locks, "
        "queries, calls to other services, or CPU throttling.",
        "app.response",
    )


def _blame_peer(measurement: Measurement, share: float) -> Verdict:
    rtt_ns = _round_trip_ns(measurement) or 0
    return Verdict(
        Bottleneck.PEER,
        _percent(share),
        (
            _response_figures(measurement, "peer.response"),
            f"the network accounts for about {format_ns(rtt_ns)} of it (tcp.rtt)",
        ),
        "Measure the peer too: a large app.response means that its application is slow, a large "
        "rx.socket that it reads late.",
        "peer.response",
    )


def _response_figures(measurement: Measurement, stage: str) -> str:
    response = measurement.stage(stage).histogram
    mean, p50, p99 = (
        format_ns(ns) for ns in (response.mean_ns, response.percentile(50), response.percentile(99))
    )
    stacks_ns = sum(measurement.stage(total).histogram.mean_ns for total in TOTALS)
    return (
        f"{stage}: {mean} on average, p50 {p50}, p99 {p99}; a packet in this node's stack: "
        f"{format_ns(stacks_ns)}"
    )
