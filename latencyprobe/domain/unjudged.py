"""Waiting that is no verdict and not nothing, either: too little of it, or it may be healthy.

It stands in the evidence of a verdict without an accusation, and has a next step of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from latencyprobe.domain.attention import (
    LONG_ANSWER_NS,
    LONG_IN_ALL_NS,
    MIN_SAMPLES,
    NO_FIRST_ANSWER_NS,
    OPEN_TOO_LONG_NS,
    Attention,
)
from latencyprobe.domain.causes import MEASURE_THE_OTHER_END
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import of_count, of_percentile, of_time
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.patience import (
    FIRST_ANSWERS,
    FIRST_REQUESTS,
    MISSING_ANSWERS,
    STUCK_REQUESTS,
)
from latencyprobe.domain.pending import PENDING_BY_NAME, describe
from latencyprobe.domain.wait import MANY_FAILURES, are_many, pending_of_kind

_FRAMES = "A frame that wants no answer (HTTP/2, websocket) is no fault."
_POLLS = "Long polls, and messages that want no answer, are no fault."
_THREADS = (
    "The pod's row has their number and age (`kubectl get latencyprobes -o yaml`). In the "
    "container (kubectl exec), list the system calls that the application's threads wait in."
)
_ONE_IS_MISSING = (
    "One request waits far longer than answers usually take here, or was not even received. "
    f"{MEASURE_THE_OTHER_END} {_FRAMES}"
)
_ONE_IS_STUCK = (
    "One request was read and has waited for its answer far longer than others. "
    f"{_THREADS} {_FRAMES}"
)
_FIRST_ARE_MISSING = (
    "Several requests on connections without any answer so far wait for one: see the evidence. "
    "Ask the server's side for handlers that do not answer. "
    f"{MEASURE_THE_OTHER_END} {_POLLS}"
)
_FIRST_ARE_STUCK = (
    "Several requests were read on connections without any answer so far: see the evidence. Find "
    f"handlers that do not answer. {_THREADS} {_POLLS}"
)
_FEW_ANSWERS = (
    "Few answers were measured, and they took long on average: see the evidence. Those of long "
    "polls do, too. Widen the window (spec.window) for a verdict."
)
_ENDS_ARE_LATE = (
    "The first byte of an answer comes soon, and its last byte late: see the evidence. "
    f"{MEASURE_THE_OTHER_END} Streams are no fault."
)
_NO_ANSWER = (
    "Connections ended before their request had any answer: see the evidence. "
    f"{MEASURE_THE_OTHER_END} Logs and metrics that want no answer are no fault."
)
_NO_REPLIES = (
    "Datagrams to peers that reply have no reply: see the evidence. A client may wait for them "
    f"until its time-out. {MEASURE_THE_OTHER_END} Datagrams that want no reply (QUIC, keep-alives) "
    "are no fault."
)
_RESETS = (
    "Resets ended connections: see the evidence. Find the side that resets. It restarts "
    "(`kubectl get pods`), has a limit, or its keep-alive time-out ends before the client's idle "
    "time. Some programs close by a reset, and that is no fault."
)
_OVERLAPS = (
    "Requests that overlap on one connection (HTTP/2) or have a pause in them, and streams, are "
    "not timed one by one. How long their answers take is known to the application or its proxy. "
    "The other stages hold (`kubectl get latencyprobes -o yaml`)."
)
_GREETINGS_ARE_LATE = (
    "On these connections the server speaks first, and late: see the evidence. "
    f"{MEASURE_THE_OTHER_END} If it is late there, find out what the server does before its first "
    "byte: a look-up of its client's name is common. Subscriptions are no fault."
)
_ENDS_OF_CONNECTIONS_ARE_LATE = (
    "The server ends these connections long after their last byte: see the evidence. A client that "
    f"reads to the end waits for that. {MEASURE_THE_OTHER_END} If it is not late there, packets "
    "are lost."
)
_CONNECTIONS_WITHOUT_DATA = (
    "This side closed connections without a byte in either direction: see the evidence. That is a "
    "fault only if the server should have spoken first (mail, SQL): spare connections have none. "
    f"{MEASURE_THE_OTHER_END}"
)
# A single request of these kinds may be a frame of HTTP/2. By kind: the stage whose bounds count.
_LATE: Mapping[str, tuple[str, str]] = {
    MISSING_ANSWERS: ("peer.response", _ONE_IS_MISSING),
    STUCK_REQUESTS: ("app.response", _ONE_IS_STUCK),
}
# Several of these kinds may be polls, and may hang. By kind: the stage whose bounds count, and a
# noun that says nothing of connections that are closed by now.
_FIRST: Mapping[str, tuple[str, str, str]] = {
    FIRST_ANSWERS: (
        "peer.response",
        "requests on connections without any answer so far",
        _FIRST_ARE_MISSING,
    ),
    FIRST_REQUESTS: (
        "app.response",
        "requests in service on connections without any answer so far",
        _FIRST_ARE_STUCK,
    ),
}
_ANSWERS = ("app.response", "peer.response", "udp.response")
_REQUESTS = ("app.response", "peer.response", "tcp.connect", "tcp.handshake")
_TURNS = ("app.response", "peer.response")
_TRANSFERS = ("app.transfer", "peer.transfer")
_OF_EITHER_ROLE = ("tcp.connect", "tcp.handshake")
_LATE_CONNECTIONS = (
    (
        "lateGreetings",
        _OF_EITHER_ROLE,
        "had no byte until {} after the handshake",
        _GREETINGS_ARE_LATE,
    ),
    ("lateEnds", _OF_EITHER_ROLE, "ended {} after their last byte", _ENDS_OF_CONNECTIONS_ARE_LATE),
    ("connectionsWithoutData", ("tcp.connect",), "had no byte in {}", _CONNECTIONS_WITHOUT_DATA),
)


NEXT_STEPS = (
    _FEW_ANSWERS,
    _ENDS_ARE_LATE,
    _NO_ANSWER,
    _NO_REPLIES,
    _RESETS,
    _OVERLAPS,
    *(next_step for *_, next_step in (*_LATE.values(), *_FIRST.values())),
    *(next_step for *_, next_step in _LATE_CONNECTIONS),
)


class Unjudged(NamedTuple):
    """A line of evidence, and the next step for it."""

    evidence: str
    next_step: str


def unjudged(attention: Attention) -> Sequence[Unjudged]:
    """Return what waits without being a verdict, the surest first."""
    measurement = attention.measurement
    return (
        *_one_late(attention),
        *_several_first(attention),
        *_without_answer(measurement),
        *_without_reply(attention),
        *_resets(measurement),
        *_few_answers(measurement),
        *_late_ends(measurement),
        *_late_connections(measurement),
        *_untimed(measurement),
    )


def _one_late(attention: Attention) -> Iterator[Unjudged]:
    for kind, (stage, next_step) in _LATE.items():
        pending = pending_of_kind(attention.measurement, kind)
        if pending.count == 1 and not attention.bounds(stage).allow(pending.oldest_ns):
            yield Unjudged(describe(PENDING_BY_NAME[kind], pending), next_step)


def _several_first(attention: Attention) -> Iterator[Unjudged]:
    """Yield requests that wait for the first answer of their connections, if there are several."""
    for kind, (stage, several, next_step) in _FIRST.items():
        pending = pending_of_kind(attention.measurement, kind)
        too_long_ns = attention.bounds(stage).at_least(NO_FIRST_ANSWER_NS)
        if pending.count > 1 and pending.oldest_ns >= too_long_ns:
            noun = replace(PENDING_BY_NAME[kind], several=several)
            yield Unjudged(describe(noun, pending), next_step)


def _without_answer(measurement: Measurement) -> Iterator[Unjudged]:
    """Yield requests that ended without an answer, if they are no small part of all."""
    counters = measurement.counters
    count, ns = counters.get("requestsUnanswered", 0), counters.get("requestsUnansweredNs", 0)
    answers = measurement.stage("peer.response")
    requests = count + answers.histogram.count + answers.unmatched
    if are_many(count, requests):
        found = f"{count:,} requests had no answer when their connection ended"
        text = f"{found}, after {format_ns(ns // count)} on average"
        yield Unjudged(of_count(count, text), _NO_ANSWER)


def _without_reply(attention: Attention) -> Iterator[Unjudged]:
    """Yield several datagrams whose replies are missing, to any port."""
    queries = pending_of_kind(attention.measurement, "unansweredQueries")
    too_long_ns = attention.bounds("udp.response").at_least(OPEN_TOO_LONG_NS)
    if queries.count >= MANY_FAILURES and queries.oldest_ns >= too_long_ns:
        yield Unjudged(describe(PENDING_BY_NAME["unansweredQueries"], queries), _NO_REPLIES)


def _resets(measurement: Measurement) -> Iterator[Unjudged]:
    """Yield the connections that ended by a reset, if they are no small part of the requests."""
    counters = measurement.counters
    received = counters.get("resetsReceived", 0) - counters.get("connectRefused", 0)
    resets = max(received, 0) + counters.get("resetsSent", 0)
    requests = max(measurement.stage(name).histogram.count for name in _REQUESTS)
    if are_many(resets, requests):  # some programs reset a connection to close it
        found = f"{resets:,} resets ended connections, beside {requests:,} requests or connections"
        yield Unjudged(of_count(resets, found), _RESETS)


def _few_answers(measurement: Measurement) -> Iterator[Unjudged]:
    """Yield answers that took long, also in all. Two streams that cross have none."""
    for name in _ANSWERS:
        answers, unmatched = measurement.stage(name).histogram, measurement.stage(name).unmatched
        is_long = answers.mean_ns >= LONG_ANSWER_NS and answers.sum_ns >= OPEN_TOO_LONG_NS
        if unmatched <= answers.count < MIN_SAMPLES and is_long:
            found = f"{answers.count} answers, {format_ns(answers.mean_ns)} on average"
            text = f"{name}: {found}; a verdict needs {MIN_SAMPLES}"
            yield Unjudged(of_time(answers.mean_ns, text), _FEW_ANSWERS)


def _late_ends(measurement: Measurement) -> Iterator[Unjudged]:
    """Yield answers whose last byte comes late, on average or once in a hundred times."""
    for name in _TRANSFERS:
        transfers = measurement.stage(name).histogram
        if transfers.count < MIN_SAMPLES:
            continue
        until = "from the first byte of an answer to the last"
        if transfers.mean_ns >= LONG_ANSWER_NS:
            line = f"{name}: {format_ns(transfers.mean_ns)} on average {until}"
            yield Unjudged(of_time(transfers.mean_ns, line), _ENDS_ARE_LATE)
        elif (
            transfers.max_ns >= LONG_IN_ALL_NS
            and (p99_ns := transfers.percentile(99)) >= LONG_IN_ALL_NS
        ):
            line = f"{name}: p99 {format_ns(p99_ns)} {until}"
            yield Unjudged(of_percentile(p99_ns, line), _ENDS_ARE_LATE)


def _late_connections(measurement: Measurement) -> Iterator[Unjudged]:
    """Yield connections whose first byte came late or never, or whose end did late.

    They have to be no small part of those that were opened. Where both roles opened some, that is
    the smaller number that is large enough.
    """
    for name, opened_by, what, next_step in _LATE_CONNECTIONS:
        count, ns = measurement.counters.get(name, 0), measurement.counters.get(f"{name}Ns", 0)
        opened = [measurement.stage(stage).histogram.count for stage in opened_by]
        if are_many(count, min((n for n in opened if n >= count), default=max(opened))):
            mean = format_ns(ns // count)
            text = f"{count:,} connections {what.format(mean)} on average"
            yield Unjudged(of_count(count, text), next_step)


def _untimed(measurement: Measurement) -> Iterator[Unjudged]:
    """Yield turns that were no requests with one answer each, if most were not."""
    for name in _TURNS:
        answers, untimed = measurement.stage(name).histogram, measurement.stage(name).unmatched
        turns = answers.count + untimed
        if untimed > answers.count and turns >= MIN_SAMPLES:
            found = f"{name}: {untimed:,} of {turns:,} turns were not one request with one answer"
            yield Unjudged(of_count(untimed, found), _OVERLAPS)
