"""Verdicts by tables: a measurement in, a cause with its figures out."""

from __future__ import annotations

import pytest

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, NodeMeasurement, StageMeasurement
from latencyprobe.domain.verdict import DOMINANT_SHARE, Bottleneck, judge

MS = 1_000_000
US = 1_000


def measured(
    packets: int = 100, *, counters: dict[str, int] | None = None, **stages_ns: int
) -> Measurement:
    """A measurement of so many equal packets; `rx_socket=5` is 5 ns of rx.socket each.

    Totals are added up from their parts.
    """
    parts = {name.replace("_", ".", 1): ns for name, ns in stages_ns.items()}
    for module in ("rx", "tx"):
        of_module = [ns for name, ns in parts.items() if name.startswith(module + ".")]
        if of_module:
            parts[f"{module}.total"] = sum(of_module)
    return Measurement(
        {name: StageMeasurement(Histogram.of([ns] * packets)) for name, ns in parts.items()},
        counters or {},
    )


def waits(rx_wakeup: int, packets: int = 100) -> Measurement:
    """What the module sched adds: so many reads whose reader waited so long for its CPU."""
    measured = StageMeasurement(Histogram.of([rx_wakeup] * packets))
    return Measurement({"rx.wakeup": measured, "sched.runqueue": measured})


@pytest.mark.parametrize(
    ("measurement", "bottleneck", "stage"),
    [
        (measured(rx_stack=4 * MS, rx_socket=6 * MS), Bottleneck.SLOW_READER, "rx.socket"),
        (measured(rx_softirq=9 * MS, rx_stack=2 * MS), Bottleneck.SOFTIRQ_BACKLOG, "rx.softirq"),
        (measured(rx_host=9 * MS, rx_stack=2 * MS), Bottleneck.HOST_PATH, "rx.host"),
        (measured(tx_host=9 * MS, tx_stack=2 * MS), Bottleneck.HOST_PATH, "tx.host"),
        (measured(tx_qdisc=9 * MS, tx_stack=2 * MS), Bottleneck.QDISC_BACKLOG, "tx.qdisc"),
        (measured(tx_driver=9 * MS, tx_stack=2 * MS), Bottleneck.DRIVER, "tx.driver"),
        (measured(rx_stack=9 * MS, rx_socket=2 * MS), Bottleneck.NONE, None),
        (
            measured(rx_softirq=33 * MS, rx_host=33 * MS, rx_stack=0, rx_socket=34 * MS),
            Bottleneck.NONE,
            None,
        ),
        (
            measured(rx_socket=4 * MS, tx_stack=MS, tx_qdisc=9 * MS),
            Bottleneck.QDISC_BACKLOG,
            "tx.qdisc",
        ),
    ],
)
def test_the_largest_part_of_the_larger_total_is_the_bottleneck(
    measurement: Measurement, bottleneck: Bottleneck, stage: str | None
) -> None:
    verdict = judge(measurement)
    assert (verdict.bottleneck, verdict.stage) == (bottleneck, stage)
    assert verdict.next_step


@pytest.mark.parametrize(
    ("window", "congestion", "held_back", "bottleneck"),
    [
        (100, 0, 0, Bottleneck.RECEIVE_WINDOW),
        (60, 40, 0, Bottleneck.RECEIVE_WINDOW),
        (40, 60, 10, Bottleneck.CONGESTION),
        (0, 1, 0, Bottleneck.CONGESTION),
        (0, 20, 80, Bottleneck.APPLICATION),
    ],
)
def test_the_limit_that_held_most_segments_back_is_the_cause_of_waiting_to_be_sent(
    window: int, congestion: int, held_back: int, bottleneck: Bottleneck
) -> None:
    counters = {
        "sendsBehindWindow": window,
        "sendsBehindCongestion": congestion,
        "sendsHeldBack": held_back,
    }
    verdict = judge(measured(tx_socket=9 * MS, tx_stack=MS, counters=counters))
    assert (verdict.bottleneck, verdict.stage) == (bottleneck, "tx.socket")
    for name, count in counters.items():
        assert (f"{name} {count}" in verdict.evidence[-1]) is (count > 0)


def test_short_waits_to_be_sent_have_no_cause() -> None:
    assert judge(measured(tx_socket=9 * MS, tx_stack=MS)).bottleneck is Bottleneck.NONE


@pytest.mark.parametrize(
    ("socket_ns", "bottleneck"),
    [(400 * MS, Bottleneck.SLOW_READER), (390 * MS, Bottleneck.NONE)],
)
def test_a_stage_is_a_bottleneck_from_40_percent_on(socket_ns: int, bottleneck: Bottleneck) -> None:
    rest = (1000 * MS - socket_ns) // 2
    verdict = judge(measured(rx_socket=socket_ns, rx_host=rest, rx_softirq=rest))
    assert DOMINANT_SHARE == 0.40
    assert verdict.bottleneck is bottleneck


def test_the_verdict_carries_share_and_figures() -> None:
    verdict = judge(measured(rx_stack=20 * MS, rx_socket=80 * MS))
    assert verdict.share_percent == 80
    assert verdict.evidence == (
        "rx.socket holds 80% of rx.total",
        "rx.socket p50 80ms, p99 80ms; rx.total p99 100ms",
        "data waited in the socket until the application read it",
    )


def test_a_part_longer_than_its_total_holds_all_of_it() -> None:
    stages = dict(measured(rx_stack=20 * MS, rx_socket=80 * MS).stages)
    stages["rx.total"] = StageMeasurement(Histogram.of([50 * MS] * 100))
    assert judge(Measurement(stages)).share_percent == 100


def test_a_reader_that_is_kept_from_running_is_cpu_contention() -> None:
    verdict = judge(measured(rx_stack=MS, rx_socket=9 * MS) + waits(rx_wakeup=6 * MS))
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.CPU_CONTENTION, "rx.wakeup")
    assert verdict.share_percent == 60
    assert verdict.evidence == (
        "rx.socket holds 90% of rx.total",
        "rx.socket p50 9ms, p99 9ms; rx.total p99 10ms",
        "the reader was runnable, but other threads had its CPU",
        "rx.wakeup, the reader waiting for a CPU, is 67% of rx.socket",
        "sched.runqueue of all its threads: p50 6ms, p99 6ms",
    )


@pytest.mark.parametrize(
    ("wakeup_ns", "bottleneck"),
    [
        (4 * MS, Bottleneck.SLOW_READER),
        (5 * MS, Bottleneck.SLOW_READER),
        (5 * MS + 10, Bottleneck.CPU_CONTENTION),
    ],
)
def test_the_larger_part_of_the_time_in_the_socket_names_the_cause(
    wakeup_ns: int, bottleneck: Bottleneck
) -> None:
    verdict = judge(measured(rx_stack=MS, rx_socket=10 * MS) + waits(rx_wakeup=wakeup_ns))
    assert verdict.bottleneck is bottleneck


def test_a_slow_reader_that_was_seen_to_get_its_cpu_says_so() -> None:
    verdict = judge(measured(rx_socket=10 * MS) + waits(rx_wakeup=MS))
    assert verdict.bottleneck is Bottleneck.SLOW_READER
    assert verdict.stage == "rx.socket"
    assert "rx.wakeup, the reader waiting for a CPU, is 10% of rx.socket" in verdict.evidence


def test_work_of_the_kernel_is_named_but_is_no_bottleneck() -> None:
    verdict = judge(measured(tx_stack=9 * MS, tx_qdisc=MS))
    assert verdict.bottleneck is Bottleneck.NONE
    assert verdict.evidence[0] == "tx.stack holds 90% of tx.total"
    assert "tx.stack is mostly the kernel's own work" in verdict.next_step


@pytest.mark.parametrize(
    ("measurement", "evidence"),
    [
        (
            Measurement(),
            "0 packets in the window; a verdict needs 100 (no rx.total and no tx.total seen)",
        ),
        (measured(99, rx_socket=MS), "99 packets in the window; a verdict needs 100"),
        (
            measured(500, tcp_rtt=MS),
            "0 packets in the window; a verdict needs 100 (no rx.total and no tx.total seen)",
        ),
    ],
)
def test_under_100_packets_there_is_no_verdict(measurement: Measurement, evidence: str) -> None:
    verdict = judge(measurement)
    assert verdict.bottleneck is Bottleneck.INSUFFICIENT_DATA
    assert verdict.evidence == (evidence,)


def test_a_total_of_too_few_packets_is_not_judged_by() -> None:
    """Three reads of a second each, against a thousand transmits."""
    verdict = judge(measured(3, rx_socket=1000 * MS) + measured(1000, tx_qdisc=9 * MS, tx_stack=MS))
    assert verdict.stage == "tx.qdisc"


def test_a_round_trip_far_above_both_stacks_is_the_networks() -> None:
    verdict = judge(
        measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=40 * MS, counters={"retransmits": 3})
    )
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.NETWORK, "tcp.rtt")
    assert verdict.evidence == (
        "tcp.rtt: 40ms on average; this node's stack: 30us",
        "3 retransmits",
    )


@pytest.mark.parametrize(
    ("delayed", "bottleneck"), [(100, Bottleneck.NETWORK), (101, Bottleneck.SLOW_READER)]
)
def test_the_network_is_not_blamed_for_acks_that_the_peer_holds_back(
    delayed: int, bottleneck: Bottleneck
) -> None:
    waits = measured(200, rx_socket=3 * MS, tx_stack=10 * US, tcp_rtt=40 * MS)
    verdict = judge(waits + Measurement(counters={"delayedAcks": delayed}))
    assert verdict.bottleneck is bottleneck


def test_a_round_trip_that_both_stacks_explain_is_not_the_networks() -> None:
    verdict = judge(measured(rx_socket=20 * MS, tx_stack=10 * MS, tcp_rtt=140 * MS))
    assert verdict.bottleneck is Bottleneck.SLOW_READER


@pytest.mark.parametrize(
    "measurement",
    [measured(rx_socket=MS, tcp_rtt=40 * MS), measured(tx_qdisc=MS, tcp_rtt=40 * MS)],
)
def test_the_network_is_not_blamed_where_one_direction_is_not_measured(
    measurement: Measurement,
) -> None:
    assert judge(measurement).bottleneck is not Bottleneck.NETWORK


def test_a_few_packets_that_wait_very_long_are_not_outvoted_by_the_many() -> None:
    """The median read is quick; the sums say where the time went."""
    quick = measured(900, rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=4 * MS)
    slow = measured(100, rx_socket=500 * MS, tx_stack=10 * US, tcp_rtt=4 * MS)
    assert judge(quick).bottleneck is Bottleneck.NETWORK
    assert judge(quick + slow).bottleneck is Bottleneck.SLOW_READER


def test_a_slow_wake_up_on_an_idle_machine_is_no_bottleneck() -> None:
    verdict = judge(measured(rx_stack=US, rx_socket=80 * US, tx_stack=US, tcp_rtt=900 * US))
    assert verdict.bottleneck is Bottleneck.NONE
    assert verdict.evidence[0] == "rx.socket holds 99% of rx.total"
    assert verdict.next_step == "Nothing to do: 99 % of the packets take under 1ms."


def test_one_slow_packet_in_fifty_is_worth_a_verdict() -> None:
    verdict = judge(measured(980, rx_socket=20 * US) + measured(20, rx_socket=40 * MS))
    assert verdict.bottleneck is Bottleneck.SLOW_READER


@pytest.mark.parametrize(
    ("measurement", "counters", "told"),
    [
        (
            measured(rx_softirq=9 * MS),
            {"softnetTimeSqueezed": 1234, "softnetDropped": 5, "eth0:rx_dropped": 6},
            "during the window on its node: softnetDropped 5, softnetTimeSqueezed 1,234",
        ),
        (
            measured(rx_socket=9 * MS),
            {"softnetTimeSqueezed": 1234, "softnetDropped": 5},
            "during the window on its node: softnetDropped 5",
        ),
        (Measurement(), {"softnetDropped": 5}, "during the window on its node: softnetDropped 5"),
    ],
)
def test_drops_of_the_node_are_reported_and_its_squeezes_where_they_matter(
    measurement: Measurement, counters: dict[str, int], told: str
) -> None:
    alone = judge(measurement)
    verdict = judge(measurement, NodeMeasurement(counters=counters))
    assert verdict.evidence == (*alone.evidence, told)
    assert verdict.bottleneck is alone.bottleneck


@pytest.mark.parametrize(
    ("stages", "counters", "told"),
    [
        (
            measured(rx_socket=9 * MS),
            {"TcpExtTCPToZeroWindowAdv": 2, "TcpExtTCPTimeouts": 4, "UdpRcvbufErrors": 3},
            (
                "during the window in its network namespace: "
                "UdpRcvbufErrors 3, TcpExtTCPToZeroWindowAdv 2"
            ),
        ),
        (
            measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=40 * MS),
            {"TcpExtTCPToZeroWindowAdv": 2, "TcpExtTCPTimeouts": 4},
            "during the window in its network namespace: TcpExtTCPTimeouts 4",
        ),
        (
            Measurement(),
            {"TcpExtListenOverflows": 7, "TcpExtListenDrops": 7, "IpInDiscards": 1},
            (
                "during the window in its network namespace: "
                "TcpExtListenOverflows 7, TcpExtListenDrops 7"
            ),
        ),
    ],
)
def test_counts_of_the_network_namespace_are_reported_where_they_are_evidence(
    stages: Measurement, counters: dict[str, int], told: str
) -> None:
    verdict = judge(stages + Measurement(netns_counters=counters))
    assert verdict.evidence == (*judge(stages).evidence, told)


@pytest.mark.parametrize(
    ("measurement", "told"),
    [
        (
            measured(rx_socket=9 * MS, counters={"zeroWindowsSent": 3, "rtos": 1}),
            "during the window at its own sockets: zeroWindowsSent 3",
        ),
        (
            measured(
                rx_socket=20 * US,
                tx_stack=10 * US,
                tcp_rtt=40 * MS,
                counters={"zeroWindowsSent": 3, "rtos": 1},
            ),
            "during the window at its own sockets: rtos 1",
        ),
        (
            Measurement(counters={"acceptQueueOverflows": 4, "receiveQueueOverflows": 2}),
            "during the window at its own sockets: acceptQueueOverflows 4, receiveQueueOverflows 2",
        ),
    ],
)
def test_counts_of_own_sockets_are_reported_before_those_of_others(
    measurement: Measurement, told: str
) -> None:
    netns = Measurement(netns_counters={"TcpExtListenDrops": 9})
    evidence = judge(measurement + netns).evidence
    assert evidence[-2:] == (
        told,
        "during the window in its network namespace: TcpExtListenDrops 9",
    )


@pytest.mark.parametrize(
    ("measurement", "bottleneck", "stage"),
    [
        (
            measured(rx_socket=20 * US, tx_stack=10 * US, app_response=5 * MS),
            Bottleneck.APPLICATION,
            "app.response",
        ),
        (
            measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=MS, peer_response=5 * MS),
            Bottleneck.PEER,
            "peer.response",
        ),
        # it answers in good time
        (
            measured(rx_socket=20 * US, tx_stack=10 * US, app_response=900 * US),
            Bottleneck.NONE,
            None,
        ),
        # packets wait longer than the application takes
        (
            measured(rx_socket=20 * MS, tx_stack=10 * US, app_response=5 * MS),
            Bottleneck.SLOW_READER,
            "rx.socket",
        ),
        # most of the peer's time is the network's
        (
            measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=4 * MS, peer_response=5 * MS),
            Bottleneck.NETWORK,
            "tcp.rtt",
        ),
        # the way to the client is longer than the application takes
        (
            measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=40 * MS, app_response=5 * MS),
            Bottleneck.NETWORK,
            "tcp.rtt",
        ),
        # without tcp.rtt nobody knows whose time it is
        (
            measured(rx_socket=20 * US, tx_stack=10 * US, peer_response=5 * MS),
            Bottleneck.NONE,
            None,
        ),
        # an application that waits for another
        (
            measured(
                rx_socket=20 * US,
                tx_stack=10 * US,
                tcp_rtt=100 * US,
                app_response=10 * MS,
                peer_response=9 * MS,
            ),
            Bottleneck.PEER,
            "peer.response",
        ),
        # one that waits for another, but not for long
        (
            measured(
                rx_socket=20 * US,
                tx_stack=10 * US,
                tcp_rtt=100 * US,
                app_response=10 * MS,
                peer_response=2 * MS,
            ),
            Bottleneck.APPLICATION,
            "app.response",
        ),
    ],
)
def test_slow_answers_are_the_applications_or_the_peers(
    measurement: Measurement, bottleneck: Bottleneck, stage: str | None
) -> None:
    verdict = judge(measurement)
    assert (verdict.bottleneck, verdict.stage) == (bottleneck, stage)


def test_acks_that_ride_on_a_late_answer_do_not_hide_the_peer() -> None:
    waits = measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=6 * MS, peer_response=6 * MS)
    first = Measurement({"tcp.rtt": StageMeasurement(Histogram.of([50 * US]))})
    delayed = Measurement(counters={"delayedAcks": 90})
    verdict = judge(waits + first + delayed)
    assert verdict.bottleneck is Bottleneck.PEER
    assert verdict.evidence == (
        "peer.response: 6ms on average, p50 6ms, p99 6ms; a packet in this node's stack: 30us",
        "the network accounts for about 50us of it (tcp.rtt)",
    )


def test_a_few_answers_are_no_verdict() -> None:
    packets = measured(1000, rx_socket=20 * US, tx_stack=10 * US)
    assert judge(packets + measured(99, app_response=50 * MS)).bottleneck is Bottleneck.NONE


def test_readers_without_node_figures_learn_where_those_would_help() -> None:
    backlog, reader = measured(rx_softirq=9 * MS), measured(rx_socket=9 * MS)
    hint = "operator.nodeFiguresNamespaces"

    assert hint in judge(backlog, None).next_step
    assert judge(reader, None) == judge(reader)
    assert hint not in judge(backlog).next_step
    assert judge(backlog, None).evidence == judge(backlog).evidence
