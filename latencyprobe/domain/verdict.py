"""The verdict: where this target's requests and packets lost time, and what to do about it.

A pure function of one target's measurement over a window. Its currency is seconds of waiting by
cause. The cause with the largest share is the verdict, if it is worth a person's attention. It
carries the figures that it is based on.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from latencyprobe.domain import processors
from latencyprobe.domain.attention import MIN_SAMPLES, Attention, Objective
from latencyprobe.domain.causes import (
    BY_ITS_PROBE,
    CAUSES,
    GROWN_NETWORK,
    NO_NAME_SERVER,
    UNNAMED_CONTENTION,
    Bottleneck,
    Cause,
)
from latencyprobe.domain.connects import failed_connects
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import of_count, of_percentile, of_share, of_time
from latencyprobe.domain.histogram import EMPTY, Histogram
from latencyprobe.domain.losses import drops_that_may_matter, late_aborts
from latencyprobe.domain.measurement import (
    CONNTRACK_FULL_PERCENT,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
)
from latencyprobe.domain.name_servers import queries_without_reply
from latencyprobe.domain.pending import PENDING_BY_NAME, describe
from latencyprobe.domain.serialisation import written
from latencyprobe.domain.stages import Module
from latencyprobe.domain.unjudged import NEXT_STEPS as UNJUDGED_STEPS
from latencyprobe.domain.unjudged import Unjudged, unjudged
from latencyprobe.domain.wait import Wait, counted, pending_of_kind, shown
from latencyprobe.domain.waits import TOTALS, waits_of

DOMINANT_SHARE = 0.40
# Distance is no fault: any cause that adds this part to it goes first.
_BESIDE_DISTANCE = 0.10
# Fewer packets without a known end are not worth a remark.
_UNKNOWN_SHARE = 0.05
_SHOWN_CAUSES = 4
# From here on the node's conntrack table is worth a word: docs/stages.md
_NEARLY_FULL_PERCENT = 80
# The stages of a connection on which no data was sent.
_OF_CONNECTIONS = frozenset({"tcp.connect", "tcp.handshake", "tcp.accept", "tcp.recovery"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first statement of a report.

    `share_percent`: the cause's part of all waiting; 0 without a cause. `evidence`: the figures, as
    sentences. `next_step`: one action for a person. `culprit`: the cgroup or peer that causes it,
    if that is known. `waiting_ns`: the waiting by cause, the longest.
    """

    bottleneck: Bottleneck
    share_percent: int
    evidence: tuple[str, ...]
    next_step: str
    stage: str | None = None
    culprit: str = field(default="", metadata=written(absent_if_empty=True))
    waiting_ns: Mapping[str, int] = field(default_factory=dict, metadata=written(omitted=True))


_ASK_FOR_NODE_FIGURES = (
    "The node's {figures} not shown here; the administrator can add this namespace to "
    "operator.nodeFiguresNamespaces."
)
# What the node's figures would show.
_IN_NODE_FIGURES: Mapping[Bottleneck, str] = {
    Bottleneck.SOFTIRQ_BACKLOG: "softnet counters are",
    Bottleneck.CPU_CONTENTION: "steal, the CPU time that its hypervisor takes, is",
}
_NOTHING_TO_DO = "Nothing to do: no wait is worth a person's attention."
_NONE_STANDS_OUT = (
    "No cause holds 40 % of the waiting: see the stages of the longest waits "
    "(`kubectl get latencyprobes -o yaml`)."
)
_NOT_ALL_KNOWN = (
    "No measured wait is worth attention, but some packets were not measured or failed: see the "
    f"evidence, and measure the peer too, {BY_ITS_PROBE}."
)
_NOT_SEEN = (
    "No TCP or UDP packet of this target was seen. Check the filter (spec.filter). UNIX sockets "
    "are not measured. Sockets that another process made (socket activation) are found by their "
    "process: ask the node's administrator to run `latencyprobe run --pid PID`."
)
_LONGEST_FOR = "the longest for "
_MORE_TRAFFIC = "Wait for more traffic, or widen the window (spec.window)."
_NO_DATA_CAME = (
    "If the clients of these connections wait for answers, measure the clients, by a LatencyProbe "
    "that selects their pods (`kubectl get latencyprobes -o wide`). Only the sender sees what the "
    "path loses, such as packets that are larger than its MTU."
)
_TO_THE_MODULES = "to spec.modules or --modules. If they are there, coverage has the reason."
_NEEDS_MODULES = f"A verdict needs module rx or tx: add them {_TO_THE_MODULES}"
_NOT_ALL_MODULES = (
    "No measured wait is worth attention, but not all modules measure: see the evidence. Add them "
    f"{_TO_THE_MODULES}"
)
# What is not known without a module. The others are for more detail.
_UNKNOWN_WITHOUT: Mapping[Module, str] = {
    Module.RX: "data that waits to be read, and replies to datagrams",
    Module.TX: "data that waits to be sent, and replies to datagrams",
    Module.TCP: "losses, drops, connects, and answers over TCP",
}

# All that `judge` can give.
NEXT_STEPS = frozenset(
    {
        _NOTHING_TO_DO,
        _NONE_STANDS_OUT,
        _NOT_ALL_KNOWN,
        _NOT_SEEN,
        _MORE_TRAFFIC,
        _NO_DATA_CAME,
        _NEEDS_MODULES,
        _NOT_ALL_MODULES,
        *UNJUDGED_STEPS,
        *(f"{_NONE_STANDS_OUT} {each}" for each in UNJUDGED_STEPS),
        *(
            each.next_step
            for each in (*CAUSES.values(), GROWN_NETWORK, NO_NAME_SERVER, UNNAMED_CONTENTION)
        ),
        *(
            f"{CAUSES[cause].next_step} {_ASK_FOR_NODE_FIGURES.format(figures=figures)}"
            for cause, figures in _IN_NODE_FIGURES.items()
        ),
    }
)

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
    "conntrackDrops",
    "conntrackInsertFailed",
)
_TIMEOUTS = (
    "rtos",
    "TcpExtTCPTimeouts",
    "TcpExtTCPSynRetrans",
    "TcpExtTCPLostRetransmit",
    "TcpExtTCPAbortOnTimeout",
)
_WITNESSES: Mapping[Bottleneck, tuple[str, ...]] = {
    Bottleneck.SLOW_READER: (
        "zeroWindowsSent",
        "TcpExtTCPToZeroWindowAdv",
        "TcpExtPruneCalled",
        "TcpExtTCPRcvCollapsed",
    ),
    Bottleneck.SOFTIRQ_BACKLOG: ("softnetTimeSqueezed", "softnetFlowLimited"),
    Bottleneck.NETWORK: _TIMEOUTS,
    Bottleneck.PACKET_LOSS: _TIMEOUTS,
    Bottleneck.CONNECT_FAILURES: _TIMEOUTS,
}
# What may have gone wrong although nothing waited long.
_FAILURES = (
    "rtos",
    "acceptQueueOverflows",
    "receiveQueueOverflows",
    "requestsAbandoned",
    "dnsQueriesRepeated",
)


def judge(
    measurement: Measurement,
    node: NodeMeasurement | None = NOTHING_OF_THE_NODE,
    modules: Container[Module] = frozenset(Module),
    objectives: Sequence[Objective] = (),
) -> Verdict:
    """Return the verdict on one target's measurement over a window.

    Counts of its network namespace and its node are added to the evidence. They decide nothing,
    since other pods may have caused them. `node`: None if the reader may not see its figures.
    `modules`: those that measure. `objectives`: they override what is worth attention.
    """
    attention = Attention(measurement, objectives)
    waits = waits_of(attention, node or NOTHING_OF_THE_NODE)
    verdict = _judge(attention, waits, modules)
    if node is None:
        verdict, node = _without_node(verdict), NOTHING_OF_THE_NODE
    names = (*_DROPS, *_WITNESSES.get(verdict.bottleneck, ()))
    counts = (
        *_counted("at its own sockets", measurement.counters, names),
        *_counted("in its network namespace", measurement.netns_counters, names),
        *_counted("on its node", node.counters, names),
        *_tracking(node),
    )
    waiting_ns = {str(wait.cause): wait.ns for wait in _longest(waits)}
    evidence = [*verdict.evidence, *attention.missed()]
    if verdict.bottleneck is not Bottleneck.NONE:
        whole_ns = sum(wait.ns for wait in waits)
        evidence += processors.noted(measurement, node, whole_ns, verdict.evidence)
    return replace(verdict, evidence=(*evidence, *counts), waiting_ns=waiting_ns)


def with_culprit(verdict: Verdict, culprit: str) -> Verdict:
    """Return the verdict with another text for its culprit; an empty one removes it."""
    before, after = _LONGEST_FOR + verdict.culprit, _LONGEST_FOR + culprit
    evidence = tuple(
        after if line == before else line
        for line in verdict.evidence
        if not line.startswith(_LONGEST_FOR) or (line == before and culprit)
    )
    return replace(verdict, culprit=culprit, evidence=evidence)


def _without_node(verdict: Verdict) -> Verdict:
    """Return the verdict with a hint where counters of the node would be evidence."""
    figures = _IN_NODE_FIGURES.get(verdict.bottleneck)
    if figures is None:
        return verdict
    ask = _ASK_FOR_NODE_FIGURES.format(figures=figures)
    return replace(verdict, next_step=f"{verdict.next_step} {ask}")


def _counted(where: str, counters: Mapping[str, int], names: Iterable[str]) -> Iterator[str]:
    seen = {name: counters[name] for name in names if counters.get(name)}
    for text in shown(seen):
        yield of_count(next(iter(seen.values())), f"during the window {where}: {text}")


def _tracking(node: NodeMeasurement) -> Iterator[str]:
    """Yield the fill of the node's connection tracking, if it is nearly full."""
    percent = node.counters.get(CONNTRACK_FULL_PERCENT, 0)
    if percent >= _NEARLY_FULL_PERCENT:
        text = f"the node's table of tracked connections was {percent} % full at most"
        yield of_share(percent / 100, f"{text} ({CONNTRACK_FULL_PERCENT})")


def _judge(attention: Attention, waits: Sequence[Wait], modules: Container[Module]) -> Verdict:
    measurement = attention.measurement
    chosen = _chosen(waits)
    if chosen is not None:
        return _accuse(measurement, *chosen, waits)
    if all(measurement.stage(total).histogram.count < MIN_SAMPLES for total in TOTALS):
        return _insufficient(attention, waits, modules)
    return _acquit(attention, waits, modules)


def _chosen(waits: Sequence[Wait]) -> tuple[Wait, float] | None:
    """Return the wait that is the verdict, and its share; None if there is none.

    The distance to the peers is there without any fault. It is the verdict only if nothing else is.
    """
    lost = [wait for wait in waits if not wait.is_distance]
    lost_ns, whole_ns = sum(wait.ns for wait in lost), sum(wait.ns for wait in waits)
    longest = next((wait for wait in lost if wait.is_noteworthy), None)
    if longest is not None and longest.ns:
        share = longest.ns / lost_ns
        if share >= DOMINANT_SHARE and longest.ns >= _BESIDE_DISTANCE * whole_ns:
            return longest, share
    distance = next((wait for wait in waits if wait.is_distance and wait.is_noteworthy), None)
    return (distance, distance.ns / whole_ns) if distance is not None and whole_ns else None


def _accuse(measurement: Measurement, wait: Wait, share: float, waits: Sequence[Wait]) -> Verdict:
    cause = _cause(wait, measurement)
    culprit = (_LONGEST_FOR + wait.culprit,) if wait.culprit else ()
    measured = measurement.stage(wait.stage).histogram if wait.stage else EMPTY
    figures = (_percentiles(wait.stage, measured),) if wait.stage and measured.count else ()
    evidence = (*figures, *wait.figures, cause.because, *culprit, *_in_all(wait, waits))
    percent = round(100 * share)
    return Verdict(wait.cause, percent, evidence, cause.next_step, wait.stage, culprit=wait.culprit)


def _percentiles(name: str, histogram: Histogram) -> str:
    p50_ns, p99_ns = (histogram.percentile(percent) for percent in (50, 99))
    return of_percentile(
        p99_ns,
        f"{name}: {format_ns(histogram.mean_ns)} on average, p50 {format_ns(p50_ns)}, "
        f"p99 {format_ns(p99_ns)}, {histogram.count:,} times",
    )


def _cause(wait: Wait, measurement: Measurement) -> Cause:
    if wait.cause is Bottleneck.NETWORK and not wait.is_distance:
        return GROWN_NETWORK
    if wait.cause is Bottleneck.DNS and wait.stage is None:
        return NO_NAME_SERVER
    is_sched = measurement.stage("sched.runqueue").histogram.count > 0
    if wait.cause is Bottleneck.CPU_CONTENTION and is_sched:
        return UNNAMED_CONTENTION
    return CAUSES[wait.cause]


def _longest(waits: Sequence[Wait]) -> Sequence[Wait]:
    """Return the longest waits by cause; neither distance nor the kernel's own work is one."""
    causes = [wait for wait in waits if wait.cause is not Bottleneck.NONE and not wait.is_distance]
    return [wait for wait in causes if wait.ns][:_SHOWN_CAUSES]


def _in_all(chosen: Wait, waits: Sequence[Wait]) -> Iterator[str]:
    """Yield the seconds of waiting, and those of other causes that are worth attention."""
    others = [wait for wait in _longest(waits) if wait.is_noteworthy and wait is not chosen]
    also = f"; also {_listed(others)}" if others else ""
    yield of_time(chosen.ns, f"in all {format_ns(chosen.ns)}{also}")


def _listed(waits: Iterable[Wait]) -> str:
    return ", ".join(f"{wait.cause} {format_ns(wait.ns)}" for wait in waits)


def _acquit(attention: Attention, waits: Sequence[Wait], modules: Container[Module]) -> Verdict:
    """Return the verdict without an accusation; it lists the unknown parts."""
    measurement = attention.measurement
    others = unjudged(attention)
    of_others = _first_step(others)
    unmeasured = tuple(_unmeasured(modules))
    unknown = (*(each.evidence for each in others), *_unknown(measurement), *unmeasured)
    if any(wait.is_noteworthy for wait in waits) or any(attention.missed()):
        evidence = (*_worth_attention(waits), *unknown)
        return Verdict(Bottleneck.NONE, 0, evidence, _none_stands_out(of_others))
    slowest_ns = max(measurement.stage(total).histogram.percentile(99) for total in TOTALS)
    met = "; ".join(attention.met())
    evidence = (
        of_percentile(slowest_ns, f"99 % of the packets take at most {format_ns(slowest_ns)}"),
        *((f"objectives met: {met}",) if met else ()),
        *unknown,
    )
    if of_others:
        next_step = of_others
    elif len(unknown) > len(unmeasured):
        next_step = _NOT_ALL_KNOWN
    else:
        next_step = _NOT_ALL_MODULES if unmeasured else _NOTHING_TO_DO
    return Verdict(Bottleneck.NONE, 0, evidence, next_step)


def _unmeasured(modules: Container[Module]) -> Iterator[str]:
    """Yield what is not known because a module does not measure."""
    for module, figures in _UNKNOWN_WITHOUT.items():
        if module not in modules:
            yield f"module {module} does not measure: {figures} are not known"


def _worth_attention(waits: Iterable[Wait]) -> Iterator[str]:
    """Yield the causes that are worth attention, none of which is the verdict."""
    noteworthy = [wait for wait in waits if wait.is_noteworthy and wait.ns]
    if noteworthy:
        yield of_time(noteworthy[0].ns, f"waiting: {_listed(noteworthy)}")


def _first_step(others: Sequence[Unjudged]) -> str:
    return others[0].next_step if others else ""


def _none_stands_out(of_others: str) -> str:
    """Return the next step where no cause is the verdict, with that of other findings."""
    return f"{_NONE_STANDS_OUT} {of_others}".rstrip()


def _unknown(measurement: Measurement) -> Iterator[str]:
    """Yield the failures, and the packets that were not measured."""
    for total in TOTALS:
        stage = measurement.stage(total)
        without = stage.unmatched + stage.lost
        packets = stage.histogram.count + without
        if without > _UNKNOWN_SHARE * packets:
            text = f"{total}: {without:,} of {packets:,} packets were not measured from end to end"
            yield of_count(without, text)
    drops = drops_that_may_matter(measurement.counters)
    failures = {
        **failed_connects(measurement.counters),
        **counted(measurement, _FAILURES),
        **late_aborts(measurement),
        **drops,
    }
    for text in shown(failures):
        yield of_count(next(iter(failures.values())), f"failures: {text}")
    yield from queries_without_reply(measurement)
    yield from _of_unknown_age(measurement)


def _of_unknown_age(measurement: Measurement) -> Iterator[str]:
    """Yield what waited before the measurement began, until a later reading knows its age."""
    for kind in ("unreadSegments", "unacceptedConnections"):
        pending = pending_of_kind(measurement, kind)
        if pending.count and not pending.oldest_ns:
            text = f"{describe(PENDING_BY_NAME[kind], pending)}, of an age that is not known yet"
            yield of_count(pending.count, text)


def _insufficient(
    attention: Attention, waits: Sequence[Wait], modules: Container[Module]
) -> Verdict:
    measurement = attention.measurement
    most = max(measurement.stage(total).histogram.count for total in TOTALS)
    too_few = f"{most} packets in the window; a verdict needs {MIN_SAMPLES}"
    evidence: list[str] = [of_count(most, too_few)]
    worth_attention = list(_worth_attention(waits))
    evidence += worth_attention
    others = unjudged(attention)
    if worth_attention:
        next_step = _none_stands_out(_first_step(others))
    elif Module.RX not in modules and Module.TX not in modules:
        next_step = _NEEDS_MODULES
    elif others:
        next_step = others[0].next_step
    elif not measurement.stages and not measurement.pending:
        next_step = _NOT_SEEN
    elif _is_without_data(measurement) and Module.RX in modules:
        opened = measurement.stage("tcp.handshake").histogram.count
        text = f"{opened:,} connections of clients were opened, without any data seen"
        evidence.append(of_count(opened, text))
        next_step = _NO_DATA_CAME
    else:
        next_step = _MORE_TRAFFIC
    evidence += [*(each.evidence for each in others), *_unknown(measurement)]
    return Verdict(Bottleneck.INSUFFICIENT_DATA, 0, tuple(evidence), next_step)


def _is_without_data(measurement: Measurement) -> bool:
    """Return True if clients have connected, and nothing else was seen of their connections.

    Unread data is no packet that was measured. Of all pods together it is not known.
    """
    is_unread = measurement.pending is None or "unreadSegments" in measurement.pending
    seen = {name for name, stage in measurement.stages.items() if stage.histogram.count}
    return "tcp.handshake" in seen and seen <= _OF_CONNECTIONS and not is_unread
