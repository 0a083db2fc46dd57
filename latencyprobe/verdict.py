"""The verdict: which stage is the bottleneck, why, and what to do about it.

A pure function of one target's measurement over a window. It rests on sums (where did the time go
in total?), never on one packet, and it carries the figures that it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from latencyprobe.durations import format_ns
from latencyprobe.measurement import Measurement
from latencyprobe.stages import parts_of

DOMINANT_SHARE = 0.40
MIN_SAMPLES = 100
# The wire is to blame when the round trip is this many times what both stacks spend on a packet.
NETWORK_FACTOR = 5


class Bottleneck(StrEnum):
    """The causes that a verdict can name."""

    SLOW_READER = "SlowReader"
    SOFTIRQ_BACKLOG = "SoftirqBacklog"
    HOST_PATH = "HostPath"
    QDISC_BACKLOG = "QdiscBacklog"
    NETWORK = "Network"
    NONE = "None"
    INSUFFICIENT_DATA = "InsufficientData"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a report says first.

    `share`: part of the total that the bottleneck's stage holds, 0 to 1; 0 where none is named.
    `evidence`: the figures, as sentences. `next_step`: one thing that a person can do.
    """

    bottleneck: Bottleneck
    stage: str | None
    share: float
    evidence: tuple[str, ...]
    next_step: str


@dataclass(frozen=True, slots=True)
class _Cause:
    bottleneck: Bottleneck
    because: str
    next_step: str


_CAUSES: Mapping[str, _Cause] = {
    "rx.socket": _Cause(
        Bottleneck.SLOW_READER,
        "data lay ready in the socket before the application read it",
        "Look at what the application does between two reads of this socket: blocking calls, a "
        "busy event loop, too few threads, or a CPU limit that throttles it.",
    ),
    "rx.softirq": _Cause(
        Bottleneck.SOFTIRQ_BACKLOG,
        "packets waited in the NET_RX softirq behind others",
        "Compare the softirq load of the node's CPUs (mpstat -P ALL 1) and spread the receive "
        "queues: RSS, RPS, or more queues on the NIC.",
    ),
    "rx.host": _Cause(
        Bottleneck.HOST_PATH,
        "packets were on the host's side between the first device and the pod's",
        "Look at the CNI's data path on the node: number of netfilter rules, bridge, encapsulation.",
    ),
    "tx.host": _Cause(
        Bottleneck.HOST_PATH,
        "packets were on the host's side between the pod's device and the last one",
        "Look at the CNI's data path on the node: number of netfilter rules, bridge, encapsulation.",
    ),
    "tx.qdisc": _Cause(
        Bottleneck.QDISC_BACKLOG,
        "packets waited in the queueing discipline of the last device",
        "See which queue holds them (tc -s qdisc show) and why: a rate limit, a bandwidth "
        "annotation of the pod, or a full link.",
    ),
}


def judge(measurement: Measurement) -> Verdict:
    """The verdict on one target's measurement over a window."""
    samples = max(measurement.stage(name).histogram.count for name in ("rx.total", "tx.total"))
    if samples < MIN_SAMPLES:
        return _insufficient(measurement, samples)
    if network := _judge_network(measurement):
        return network
    total, stage, share = _dominant(measurement)
    figures = _figures(measurement, total, stage, share)
    cause = _CAUSES.get(stage) if share >= DOMINANT_SHARE else None
    if cause is None:
        return Verdict(Bottleneck.NONE, None, 0.0, figures, "Nothing to do: no stage stands out.")
    return Verdict(
        cause.bottleneck, stage, share, (*figures, cause.because), cause.next_step
    )


def _insufficient(measurement: Measurement, samples: int) -> Verdict:
    del measurement
    return Verdict(
        Bottleneck.INSUFFICIENT_DATA,
        None,
        0.0,
        (f"{samples} packets in the window, {MIN_SAMPLES} are needed",),
        "Wait for more traffic, or widen the window.",
    )


def _dominant(measurement: Measurement) -> tuple[str, str, float]:
    """(total, stage, share) of the largest part of the larger of rx.total and tx.total."""
    total = max(("rx.total", "tx.total"), key=lambda name: measurement.stage(name).histogram.sum_ns)
    whole = measurement.stage(total).histogram.sum_ns
    stage = max(
        (part.name for part in parts_of(total)),
        key=lambda name: measurement.stage(name).histogram.sum_ns,
    )
    part_sum = measurement.stage(stage).histogram.sum_ns
    return total, stage, part_sum / whole if whole else 0.0


def _figures(measurement: Measurement, total: str, stage: str, share: float) -> tuple[str, ...]:
    histogram = measurement.stage(stage).histogram
    whole = measurement.stage(total).histogram
    return (
        f"{stage} holds {share:.0%} of {total}",
        f"{stage} p50 {format_ns(histogram.percentile(50))}, p99 "
        f"{format_ns(histogram.percentile(99))}; {total} p99 {format_ns(whole.percentile(99))}",
    )


def _judge_network(measurement: Measurement) -> Verdict | None:
    """Network, where the round trip is far above what both directions of this stack take."""
    rtt = measurement.stage("tcp.rtt").histogram
    stacks_ns = sum(
        measurement.stage(name).histogram.percentile(50) for name in ("rx.total", "tx.total")
    )
    if rtt.count < MIN_SAMPLES or rtt.percentile(50) <= NETWORK_FACTOR * stacks_ns:
        return None
    rtt_ns = rtt.percentile(50)
    retransmits = measurement.counters.get("retransmits", 0)
    return Verdict(
        Bottleneck.NETWORK,
        "tcp.rtt",
        rtt_ns / (rtt_ns + stacks_ns),
        (
            f"tcp.rtt p50 {format_ns(rtt_ns)} against {format_ns(stacks_ns)} in this node's stack",
            f"{retransmits} retransmits",
        ),
        "Look at the path to the peer (mtr, the peer's own latencyprobe): distance, a congested "
        "link, or a peer that delays its ACKs.",
    )
