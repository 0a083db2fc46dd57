"""Verdicts by tables: a measurement in, a cause with its figures out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, NodeMeasurement, StageMeasurement
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe.domain.verdict import DOMINANT_SHARE, Verdict, judge
from latencyprobe_agent.evidence.cpu import parse_cpu_time, parse_steal
from tests.unit.equal_packets import MS, US, measured


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
        # the kernel's own work
        (measured(rx_stack=9 * MS, rx_socket=2 * MS), Bottleneck.NONE, None),
        # no cause stands out
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
def test_the_cause_of_most_waiting_is_the_bottleneck(
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
        (0, 100, 0, Bottleneck.CONGESTION),
        (0, 20, 80, Bottleneck.HELD_BACK),
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
    most = max(counters, key=lambda name: counters[name])
    assert f"{most} {counters[most]}" in verdict.evidence


@pytest.mark.parametrize(
    ("behind_window_ns", "held_back_ns", "bottleneck"),
    [(9 * MS, 1 * MS, Bottleneck.RECEIVE_WINDOW), (MS, 9 * MS, Bottleneck.HELD_BACK)],
)
def test_the_time_and_not_the_number_of_long_waits_to_be_sent_decides(
    behind_window_ns: int, held_back_ns: int, bottleneck: Bottleneck
) -> None:
    counters = {
        "sendsBehindWindow": 50,
        "sendsHeldBack": 50,
        "behindWindowNs": 50 * behind_window_ns,
        "heldBackNs": 50 * held_back_ns,
    }
    assert judge(measured(tx_socket=5 * MS, counters=counters)).bottleneck is bottleneck


@pytest.mark.parametrize(
    ("round_trips", "bottleneck"), [(600, Bottleneck.RECEIVE_WINDOW), (2, Bottleneck.NETWORK)]
)
def test_round_trips_in_which_peers_use_up_the_own_window_are_the_receive_windows(
    round_trips: int, bottleneck: Bottleneck
) -> None:
    counters = {"ownWindowFull": round_trips, "ownWindowFullNs": round_trips * 20 * MS}
    uploads = measured(38, tcp_rtt=20 * MS, app_response=70 * US, tx_stack=10 * US)
    verdict = judge(uploads + measured(4000, rx_socket=20 * US, counters=counters))
    assert verdict.bottleneck is bottleneck
    figure = "in 600 round trips the peer used up the receive window of this side"
    assert (figure in verdict.evidence) is (bottleneck is Bottleneck.RECEIVE_WINDOW)


def test_a_window_of_congestion_that_waits_for_the_own_queue_is_the_queues() -> None:
    counters = {"sendsBehindCongestion": 90, "behindCongestionNs": 90 * 40 * MS}
    waits = {"tx_socket": 36 * MS, "tx_stack": 10 * US, "rx_socket": 20 * US}
    far = measured(**waits, tx_qdisc=20 * US, tcp_rtt=20 * MS, counters=counters)
    queued = measured(**waits, tx_qdisc=18 * MS, tcp_rtt=20 * MS, counters=counters)
    queued += Measurement(counters={"rttLeastNs": 100 * MS})
    assert judge(far).bottleneck is Bottleneck.CONGESTION
    assert judge(queued).bottleneck is Bottleneck.QDISC_BACKLOG


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
        "rx.socket: 80ms on average, p50 80ms, p99 80ms, 100 times",
        "data waits in the socket until the application reads it",
        "in all 8s",
    )
    assert verdict.waiting_ns == {"SlowReader": 8000 * MS}


def test_a_reader_that_is_kept_from_running_is_cpu_contention() -> None:
    verdict = judge(measured(rx_stack=MS, rx_socket=9 * MS) + waits(rx_wakeup=6 * MS))
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.CPU_CONTENTION, "rx.wakeup")
    assert verdict.share_percent == 60
    assert verdict.evidence == (
        "rx.wakeup: 6ms on average, p50 6ms, p99 6ms, 100 times",
        "sched.runqueue of all its threads: p50 6ms, p99 6ms",
        "the application's threads can run, and wait for a CPU",
        "in all 600ms; also SlowReader 300ms",
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
    assert "rx.wakeup, the reader waiting for a CPU, is 10% of it" in verdict.evidence


@pytest.mark.parametrize(
    ("counters", "bottleneck", "culprit"),
    [
        ({"waitedForOwnNs": 90 * MS, "waitedForOthersNs": 50 * MS}, Bottleneck.SELF_CONTENTION, ""),
        ({"waitedThrottledNs": 90 * MS, "waitedForOthersNs": 5}, Bottleneck.CPU_THROTTLED, ""),
        (
            {
                "waitedForOthersNs": 90 * MS,
                "waitedForCgroup.7": 20 * MS,
                "waitedForCgroup.12": 60 * MS,
            },
            Bottleneck.NOISY_NEIGHBOUR,
            "cgroup 12",
        ),
        # of 800 ms
        ({"waitedForOwnNs": 79 * MS}, Bottleneck.CPU_CONTENTION, ""),
    ],
)
def test_the_cgroup_that_ran_instead_is_the_cause_of_waiting_for_a_cpu(
    counters: dict[str, int], bottleneck: Bottleneck, culprit: str
) -> None:
    read = measured(rx_socket=9 * MS) + waits(rx_wakeup=8 * MS)
    verdict = judge(read + Measurement(counters=counters))
    assert (verdict.bottleneck, verdict.culprit) == (bottleneck, culprit)
    if culprit:
        assert f"the longest for {culprit}" in verdict.evidence


def test_a_quota_that_stops_readers_and_answers_is_the_cause() -> None:
    quota = {"cpuPeriods": 60, "cpuThrottledPeriods": 40, "cpuThrottledNs": 40 * 70 * MS}
    stopped = measured(rx_socket=12 * MS, app_response=34 * MS, counters=quota)
    verdict = judge(stopped)
    assert verdict.bottleneck is Bottleneck.CPU_THROTTLED
    assert "the CPU limit stopped it in 40 of 60 periods, for 70ms each" in verdict.evidence
    assert "resources.limits.cpu" in verdict.next_step


def test_a_quota_that_hardly_stops_it_explains_no_late_reader() -> None:
    quota = {"cpuPeriods": 60, "cpuThrottledPeriods": 2, "cpuThrottledNs": 2 * 70 * MS}
    assert judge(measured(rx_socket=12 * MS, counters=quota)).bottleneck is Bottleneck.SLOW_READER


@pytest.mark.parametrize(
    ("delay_ms", "bottleneck"), [(6, Bottleneck.CPU_CONTENTION), (1, Bottleneck.SLOW_READER)]
)
def test_threads_that_wait_for_a_cpu_are_seen_without_the_module_sched(
    delay_ms: int, bottleneck: Bottleneck
) -> None:
    threads = {"readerDelayNs": 100 * delay_ms * MS}
    verdict = judge(measured(rx_socket=8 * MS, counters=threads))
    assert verdict.bottleneck is bottleneck
    assert "sched" in verdict.next_step


def test_quick_answers_are_not_charged_with_the_late_cpu_of_others() -> None:
    """One thread: reads behind a slow command wait long, and nearly all answers are quick."""
    threads = {"readerDelayNs": 10_000 * MS}
    slow = measured(15, app_response=200 * MS) + measured(4985, app_response=6 * US)
    late = measured(5000, rx_socket=5 * MS, tx_stack=10 * US, counters=threads)
    verdict = judge(late + slow)
    assert verdict.bottleneck is Bottleneck.SLOW_READER
    assert 10_000 * MS < verdict.waiting_ns["CPUContention"] < 10_100 * MS
    each = judge(late + measured(5000, app_response=5 * MS))
    assert each.waiting_ns["CPUContention"] == 20_000 * MS


def test_a_hypervisor_that_takes_the_cpu_is_the_cause() -> None:
    late = measured(rx_socket=8 * MS, counters={"readerDelayNs": 600 * MS})
    stolen = NodeMeasurement(counters={"cpuTimeNs": 10_000 * MS, "cpuStealNs": 3_000 * MS})
    assert judge(late, stolen).bottleneck is Bottleneck.NODE_STEAL
    assert "30%" in judge(late, stolen).evidence[2]


def test_a_neighbours_moment_hides_no_hypervisor() -> None:
    late = measured(rx_socket=9 * MS) + waits(rx_wakeup=8 * MS)
    own = Measurement(counters={"waitedForOwnNs": 79 * MS})
    assert judge(late + own, stolen(30)).bottleneck is Bottleneck.NODE_STEAL


def stolen(percent: int) -> NodeMeasurement:
    """A node of which the hypervisor took this part of the CPU time."""
    before = "cpu  1000 0 500 9000 0 0 0 100 0 0\ncpu0 1 2 3"
    after = f"cpu  1100 0 600 {9800 - 10 * percent} 0 0 0 {100 + 10 * percent} 0 0\ncpu0 1 2 3"
    counters = {}
    for name, parse in (("cpuStealNs", parse_steal), ("cpuTimeNs", parse_cpu_time)):
        begin, end = parse(before), parse(after)
        assert begin is not None
        assert end is not None
        counters[name] = end - begin
    return NodeMeasurement(counters=counters)


def test_answers_of_a_thread_whose_cpu_was_stolen_are_the_hypervisors() -> None:
    """It never waits behind another thread, so no account of the scheduler shows it."""
    slow = measured(rx_socket=20 * US, tx_stack=10 * US, app_response=10 * MS)
    verdict = judge(slow, stolen(60))
    assert verdict.bottleneck is Bottleneck.NODE_STEAL
    assert verdict.waiting_ns["NodeSteal"] == 600 * MS
    assert verdict.waiting_ns["Application"] == 400 * MS
    assert "the hypervisor took 60% of the node's CPU time (steal)" in verdict.evidence
    assert judge(slow, stolen(20)).bottleneck is Bottleneck.APPLICATION
    assert any("NodeSteal 200ms" in line for line in judge(slow, stolen(20)).evidence)


QUOTA = "the CPU limit stopped it in 2 of 100 periods, for 70ms each"
PRESSURE = "some thread of its cgroup waited for a CPU for 900ms (cpuPressureNs)"
STEAL = "the hypervisor took 3% of the node's CPU time (steal)"


@pytest.mark.parametrize(
    ("counters", "percent", "told"),
    [
        ({"cpuPeriods": 100, "cpuThrottledPeriods": 2, "cpuThrottledNs": 140 * MS}, 0, [QUOTA]),
        ({"cpuPeriods": 201, "cpuThrottledPeriods": 2, "cpuThrottledNs": 140 * MS}, 0, []),
        ({"cpuPressureNs": 900 * MS}, 3, [STEAL, PRESSURE]),
        # of 80 s
        ({"cpuPressureNs": 799 * MS}, 0, []),
        ({}, 3, [STEAL]),
        ({}, 0, []),
    ],
)
def test_less_waiting_for_a_cpu_than_a_cause_takes_is_noted(
    counters: dict[str, int], percent: int, told: list[str]
) -> None:
    slow = measured(1000, rx_socket=80 * MS)
    verdict = judge(slow + Measurement(counters=counters), stolen(percent))
    assert verdict.bottleneck is Bottleneck.SLOW_READER
    assert list(verdict.evidence[len(judge(slow).evidence) :]) == told
    quick = judge(QUICK_PACKETS + Measurement(counters=counters), stolen(percent))
    assert quick == judge(QUICK_PACKETS)


def test_the_account_that_names_the_cause_is_noted_once() -> None:
    quota = {"cpuPeriods": 60, "cpuThrottledPeriods": 40, "cpuThrottledNs": 40 * 70 * MS}
    verdict = judge(measured(rx_socket=12 * MS, counters=quota))
    assert sum("the CPU limit stopped" in line for line in verdict.evidence) == 1


def test_a_starved_target_without_packets_has_the_account_of_its_cpu() -> None:
    quota = {"cpuPeriods": 60, "cpuThrottledPeriods": 40, "cpuThrottledNs": 40 * 70 * MS}
    verdict = judge(Measurement(counters=quota))
    assert verdict.bottleneck is Bottleneck.INSUFFICIENT_DATA
    assert "the CPU limit stopped it in 40 of 60 periods, for 70ms each" in verdict.evidence


@pytest.mark.parametrize(
    ("measurement", "evidence"),
    [
        (Measurement(), "0 packets in the window; a verdict needs 100"),
        (measured(99, rx_socket=MS), "99 packets in the window; a verdict needs 100"),
        (measured(500, tcp_rtt=MS), "0 packets in the window; a verdict needs 100"),
    ],
)
def test_under_100_packets_there_is_no_verdict(measurement: Measurement, evidence: str) -> None:
    verdict = judge(measurement)
    assert verdict.bottleneck is Bottleneck.INSUFFICIENT_DATA
    assert verdict.evidence == (evidence,)


def test_without_data_the_verdict_has_the_reason() -> None:
    assert "UNIX sockets" in judge(Measurement()).next_step
    assert "--pid" in judge(Measurement()).next_step
    assert "more traffic" in judge(measured(9, rx_socket=MS)).next_step
    assert "module rx or tx" in judge(Measurement(), modules={Module.TCP}).next_step


def test_connections_without_data_are_counted_and_lead_to_their_clients() -> None:
    opened = replace(measured(8, tcp_handshake=MS), pending={})
    verdict = judge(opened)
    assert verdict.bottleneck is Bottleneck.INSUFFICIENT_DATA
    assert "8 connections of clients were opened, without any data seen" in verdict.evidence
    assert "measure the clients" in verdict.next_step
    unread = {"unreadSegments": Pending(3, 3, oldest_ns=MS, waiting_ns=MS)}
    for other in (
        opened + measured(8, rx_socket=US),
        opened + measured(8, app_response=US),
        replace(opened, pending=unread),
        replace(opened, pending=None),
    ):
        assert "more traffic" in judge(other).next_step
    assert "more traffic" in judge(opened, modules={Module.TX, Module.TCP}).next_step


def test_few_packets_that_wait_for_a_second_in_all_are_worth_a_verdict() -> None:
    assert judge(measured(30, rx_socket=40 * MS)).bottleneck is Bottleneck.SLOW_READER
    assert judge(measured(30, rx_socket=30 * MS)).bottleneck is Bottleneck.INSUFFICIENT_DATA


def test_a_round_trip_far_above_both_stacks_is_the_networks() -> None:
    verdict = judge(
        measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=40 * MS, counters={"retransmits": 3})
    )
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.NETWORK, "tcp.rtt")
    assert verdict.evidence[:2] == (
        "tcp.rtt: 40ms on average, p50 40ms, p99 40ms, 100 times",
        "the path's least round trip is 40ms; this node's stack takes 30us",
    )


def trips(least_ms: int, grown_ms: int, certain: int = 100) -> dict[str, int]:
    """Counters of 100 round trips: the least of the path, and how far they have grown."""
    return {
        "rttLeastNs": 100 * least_ms * MS,
        "rttGrowthNs": certain * grown_ms * MS,
        "rttGrowthSamples": certain,
    }


def test_a_round_trip_above_the_paths_own_minimum_is_queueing() -> None:
    counters = trips(least_ms=2, grown_ms=48)
    seen = measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=50 * MS, counters=counters)
    verdict = judge(seen)
    assert verdict.bottleneck is Bottleneck.NETWORK
    assert "the round trip has grown by 48ms on average: queueing" in verdict.evidence
    assert "Find the queue" in verdict.next_step


def test_the_peers_time_stamps_show_a_queue_if_all_acks_may_be_delayed() -> None:
    seen = measured(
        rx_socket=20 * US,
        tx_stack=10 * US,
        tcp_rtt=50 * MS,
        tcp_queueing=30 * MS,
        peer_response=50 * MS,
        counters=trips(least_ms=2, grown_ms=0, certain=0),
    )
    verdict = judge(seen)
    assert verdict.bottleneck is Bottleneck.NETWORK
    assert "queueing" in verdict.evidence[2]


def test_a_queue_of_this_node_is_not_the_networks() -> None:
    counters = trips(least_ms=1, grown_ms=20)
    seen = {"rx_socket": 20 * US, "tx_stack": 10 * US, "tx_qdisc": 20 * MS, "tcp_rtt": 21 * MS}
    assert judge(measured(**seen, counters=counters)).bottleneck is Bottleneck.QDISC_BACKLOG


@pytest.mark.parametrize(
    ("recovery_ms", "bottleneck"), [(200, Bottleneck.PACKET_LOSS), (20, Bottleneck.NETWORK)]
)
def test_distance_is_the_verdict_only_if_no_fault_adds_a_tenth(
    recovery_ms: int, bottleneck: Bottleneck
) -> None:
    far = measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=30 * MS, peer_response=36 * MS)
    lost = StageMeasurement(Histogram.of([recovery_ms * MS] * 3))
    verdict = judge(far + Measurement({"tcp.recovery": lost}))
    assert verdict.bottleneck is bottleneck


def test_the_network_is_not_blamed_for_acks_that_the_peer_holds_back() -> None:
    counters = {**trips(least_ms=0, grown_ms=0, certain=0), "delayedAcks": 200}
    waits = measured(200, rx_socket=3 * MS, tx_stack=10 * US, tcp_rtt=40 * MS, counters=counters)
    quick = Measurement({"tcp.rtt": StageMeasurement(Histogram.of([50 * US]))})
    assert judge(waits + quick).bottleneck is Bottleneck.SLOW_READER


def test_a_round_trip_that_both_stacks_explain_is_not_the_networks() -> None:
    verdict = judge(measured(rx_socket=20 * MS, tx_stack=10 * MS, tcp_rtt=140 * MS))
    assert verdict.bottleneck is Bottleneck.SLOW_READER


@pytest.mark.parametrize(
    "measurement",
    [
        measured(rx_socket=20 * US, tcp_rtt=40 * MS),
        measured(tx_qdisc=20 * US, tcp_rtt=40 * MS),
    ],
)
def test_the_network_is_not_blamed_where_one_direction_is_not_measured(
    measurement: Measurement,
) -> None:
    assert judge(measurement).bottleneck is Bottleneck.NONE


def test_a_few_packets_that_wait_very_long_are_not_outvoted_by_the_many() -> None:
    """The median read is quick; the sums say where the time went."""
    quick = measured(900, rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=6 * MS)
    slow = measured(100, rx_socket=500 * MS, tx_stack=10 * US, tcp_rtt=6 * MS)
    assert judge(quick).bottleneck is Bottleneck.NETWORK
    assert judge(quick + slow).bottleneck is Bottleneck.SLOW_READER


def test_a_slow_wake_up_on_an_idle_machine_is_no_bottleneck() -> None:
    verdict = judge(measured(rx_stack=US, rx_socket=80 * US, tx_stack=US, tcp_rtt=900 * US))
    assert verdict.bottleneck is Bottleneck.NONE
    assert verdict.next_step == "Nothing to do: no wait is worth a person's attention."


@pytest.mark.parametrize(
    ("modules", "unknown"),
    [
        ({Module.RX, Module.TX}, {"module tcp does not measure": "losses, drops, connects"}),
        (
            {Module.RX},
            {"module tx does not measure": "to be sent", "module tcp does not measure": "losses"},
        ),
        ({Module.TX, Module.TCP}, {"module rx does not measure": "to be read"}),
    ],
)
def test_figures_of_a_missing_module_are_not_known(
    modules: set[Module], unknown: dict[str, str]
) -> None:
    verdict = judge(QUICK_PACKETS, modules=modules)
    assert verdict.bottleneck is Bottleneck.NONE
    for module, figures in unknown.items():
        assert any(line.startswith(module) and figures in line for line in verdict.evidence)
    assert "spec.modules or --modules" in verdict.next_step
    failed = judge(QUICK_PACKETS + Measurement(counters={"rtos": 5}), modules=modules)
    assert "measure the peer too" in failed.next_step
    slow = judge(measured(rx_softirq=33 * MS, rx_host=33 * MS, rx_socket=34 * MS), modules=modules)
    assert slow.bottleneck is Bottleneck.NONE
    assert any("does not measure" in line for line in slow.evidence)


@pytest.mark.parametrize("more", [set(), {Module.SCHED}, {Module.IRQ}])
def test_modules_for_more_detail_are_not_missing(more: set[Module]) -> None:
    verdict = judge(QUICK_PACKETS, modules={*DEFAULT_MODULES, *more})
    assert verdict == judge(QUICK_PACKETS)
    assert verdict.next_step.startswith("Nothing to do")


@pytest.mark.parametrize(
    ("stages", "counters", "told"),
    [
        ({}, {"rtos": 5}, "failures: rtos 5"),
        ({}, {"drops.NETFILTER_DROP": 3}, "failures: drops.NETFILTER_DROP 3"),
        (
            {},
            {"requestsAbandoned": 2, "requestsAbandonedNs": 4000 * MS},
            "failures: requestsAbandoned 2",
        ),
        (
            {},
            {"connectAborted": 4, "connectAbortedNs": 4 * 3000 * MS},
            "failures: connectAborted 4",
        ),
        (
            {},
            {"dnsQueries": 100, "dnsQueriesEnded": 97},
            "failures: 3 of 100 queries to port 53 had no reply",
        ),
        (
            {},
            {"dnsQueries": 9, "dnsQueriesEnded": 9, "dnsQueriesRepeated": 1},
            "failures: dnsQueriesRepeated 1",
        ),
        (
            {"tx.total": StageMeasurement(unmatched=50)},
            {},
            "tx.total: 50 of 150 packets were not measured from end to end",
        ),
    ],
)
def test_the_verdict_lists_the_unknown_parts(
    stages: dict[str, StageMeasurement], counters: dict[str, int], told: str
) -> None:
    quick = measured(rx_socket=20 * US, tx_stack=10 * US)
    verdict = judge(replace(quick + Measurement(stages, counters), pending={}))
    assert verdict.bottleneck is Bottleneck.NONE
    assert told in verdict.evidence
    assert "Nothing to do" not in verdict.next_step


@pytest.mark.parametrize(
    ("counters", "stood_ms"),
    [
        # the loser of a race between two addresses
        ({"connectAborted": 4, "connectAbortedNs": 4 * 20 * MS}, 10),
        ({"connectAborted": 4, "connectAbortedNs": 4 * 150 * MS}, 140),
        # one query was under way between two readings
        ({"dnsQueries": 1000, "dnsQueriesEnded": 999}, 1),
        ({"dnsQueries": 10, "dnsQueriesEnded": 12}, 1),
        # an abandoned poll has a counter of its own
        ({"requestsUnanswered": 4, "requestsUnansweredNs": 4 * 30_000 * MS}, 1),
    ],
)
def test_counts_that_may_be_healthy_are_no_failure(counters: dict[str, int], stood_ms: int) -> None:
    quick = QUICK_PACKETS + measured(20, tcp_connect=stood_ms * MS, counters=counters)
    assert judge(quick).next_step.startswith("Nothing to do")


def test_a_query_that_is_not_due_is_no_failure() -> None:
    asked = QUICK_PACKETS + queries(20, 18)
    young = {"unansweredQueries": Pending(2, 2, oldest_ns=MS, waiting_ns=2 * MS)}
    assert judge(replace(asked, pending=young)).next_step.startswith("Nothing to do")
    # In a sum of pods it is not known: the replies may yet come.
    assert judge(replace(asked, pending=None)).next_step.startswith("Nothing to do")
    assert "Nothing to do" not in judge(replace(asked, pending={})).next_step


@pytest.mark.parametrize(
    ("drops", "told"),
    [
        ({"drops.TCP_OLD_SEQUENCE": 69, "dropsIn.tcp_validate_incoming": 69}, None),
        ({"drops.NOT_SPECIFIED": 3, "drops.TCP_OLD_DATA": 9}, "failures: drops.NOT_SPECIFIED 3"),
        ({"dropsIn.tcp_v4_rcv": 3}, "failures: dropsIn.tcp_v4_rcv 3"),
        ({"drops.TCP_OLD_DATA": 0}, None),
    ],
)
def test_drops_of_packets_that_are_not_needed_any_more_are_no_failures(
    drops: dict[str, int], told: str | None
) -> None:
    """Keep-alives repeat an old byte."""
    verdict = judge(measured(rx_socket=20 * US, tx_stack=10 * US) + Measurement(counters=drops))
    failures = [line for line in verdict.evidence if line.startswith("failures")]
    assert failures == ([told] if told else [])
    assert verdict.next_step.startswith("Nothing to do") is (told is None)


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


@pytest.mark.parametrize(("percent", "is_told"), [(79, False), (80, True), (100, True)])
@pytest.mark.parametrize(
    "window", [Measurement(), measured(rx_socket=9 * MS), measured(rx_socket=US)]
)
def test_a_nearly_full_table_of_connections_stands_with_every_verdict(
    window: Measurement, percent: int, is_told: bool
) -> None:
    node = NodeMeasurement(counters={"conntrackFullPercent": percent})
    fill = f"the node's table of tracked connections was {percent} % full at most"
    told = (f"{fill} (conntrackFullPercent)",) if is_told else ()
    assert judge(window, node).evidence == (*judge(window).evidence, *told)
    assert judge(window, None).evidence == judge(window).evidence


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
            measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=8 * MS, peer_response=9 * MS),
            Bottleneck.NETWORK,
            "tcp.rtt",
        ),
        # the way to the client is longer than the application takes
        (
            measured(rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=40 * MS, app_response=3 * MS),
            Bottleneck.NETWORK,
            "tcp.rtt",
        ),
        # a proxy before an application in the same pod waits for itself
        (
            measured(200, rx_socket=20 * US, tx_stack=10 * US, app_response=20 * MS)
            + measured(rx_socket=20 * US, tcp_rtt=100 * US, peer_response=21 * MS),
            Bottleneck.APPLICATION,
            "app.response",
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
    verdict = judge(waits + first)
    assert verdict.bottleneck is Bottleneck.PEER
    assert "the network accounts for about 50us of each (tcp.rtt)" in verdict.evidence


def test_two_streams_are_no_requests() -> None:
    turns = StageMeasurement(Histogram.of([10 * MS] * 330), unmatched=440)
    streams = measured(800, rx_socket=20 * US, tx_stack=10 * US)
    assert judge(streams + Measurement({"app.response": turns})).bottleneck is Bottleneck.NONE


def recovered(count: int, ms: int) -> Measurement:
    """So many retransmissions, each of which cost so long."""
    return Measurement({"tcp.recovery": StageMeasurement(Histogram.of([ms * MS] * count))})


def test_the_cost_of_losses_is_not_the_peers() -> None:
    asked = measured(585, rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=MS, peer_response=MS)
    late = measured(15, rx_socket=20 * US, tcp_rtt=MS, peer_response=208 * MS)
    verdict = judge(asked + late + recovered(15, 207))
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.PACKET_LOSS, "tcp.recovery")
    assert judge(asked + late).bottleneck is Bottleneck.PEER


@pytest.mark.parametrize(
    ("spurious", "bottleneck", "loss_ms"),
    [(0, Bottleneck.PACKET_LOSS, 960), (24, Bottleneck.PACKET_LOSS, 480), (48, Bottleneck.NONE, 0)],
)
def test_retransmissions_that_the_peer_did_not_need_are_no_loss(
    spurious: int, bottleneck: Bottleneck, loss_ms: int
) -> None:
    """A probe (TLP) repeats a segment that waits at a slow peer."""
    counters = {"retransmits": 48, "spuriousRetransmits": spurious}
    asked = measured(500, rx_socket=20 * US, tx_stack=10 * US, peer_response=100 * US)
    verdict = judge(asked + recovered(48, 20) + Measurement(counters=counters))
    assert verdict.bottleneck is bottleneck
    assert verdict.waiting_ns.get("PacketLoss", 0) == loss_ms * MS


def test_needless_retransmissions_leave_the_loss_of_handshakes() -> None:
    counters = {"retransmits": 30, "spuriousRetransmits": 30, "handshakeRetransmits": 30}
    verdict = judge(QUICK_PACKETS + recovered(60, 150) + Measurement(counters=counters))
    assert verdict.bottleneck is Bottleneck.PACKET_LOSS
    assert verdict.waiting_ns["PacketLoss"] == 30 * 150 * MS


def test_needless_probes_hide_no_time_outs() -> None:
    counters = {"retransmits": 36, "spuriousRetransmits": 30}
    both = recovered(30, 20) + recovered(6, 1000)
    verdict = judge(QUICK_PACKETS + both + Measurement(counters=counters))
    assert verdict.bottleneck is Bottleneck.PACKET_LOSS
    assert 6_000 * MS <= verdict.waiting_ns["PacketLoss"] <= 6_200 * MS


def test_needless_probes_of_one_connection_leave_most_of_the_losses_of_others() -> None:
    """Which recoveries were needless is not known; the shortest are taken for them."""
    counters = {"retransmits": 160, "spuriousRetransmits": 120}
    both = recovered(60, 5) + recovered(40, 50)
    verdict = judge(QUICK_PACKETS + both + Measurement(counters=counters))
    assert verdict.bottleneck is Bottleneck.PACKET_LOSS
    assert 1_200 * MS <= verdict.waiting_ns["PacketLoss"] <= 1_300 * MS


def test_lost_acks_are_losses_though_the_peer_had_the_data() -> None:
    """No ACK is delayed for as long."""
    counters = {"retransmits": 30, "spuriousRetransmits": 30}
    verdict = judge(QUICK_PACKETS + recovered(30, 207) + Measurement(counters=counters))
    assert verdict.bottleneck is Bottleneck.PACKET_LOSS


def test_sampled_packets_stand_for_all() -> None:
    """One packet in 16 is measured; losses always are."""
    late = StageMeasurement(Histogram.of([9 * MS] * 500), sampling_ratio=1 / 16)
    whole = Measurement({"rx.socket": late, "rx.total": late}) + recovered(200, 100)
    verdict = judge(whole)
    assert verdict.bottleneck is Bottleneck.SLOW_READER
    assert verdict.waiting_ns == {"SlowReader": 72_000 * MS, "PacketLoss": 20_000 * MS}


def test_one_loss_in_ten_thousand_requests_is_not_worth_attention() -> None:
    asked = measured(10_000, rx_socket=20 * US, tx_stack=10 * US, peer_response=MS // 2)
    assert judge(asked + recovered(1, 207)).bottleneck is Bottleneck.NONE


def connected(count: int, slow: int, longer_ms: int) -> Measurement:
    """Connects, some of which took longer than a round trip of their connection."""
    counters = {"slowConnects": slow, "slowConnectsNs": slow * longer_ms * MS}
    return measured(count, tcp_connect=longer_ms * MS) + Measurement(counters=counters)


@pytest.mark.parametrize(
    ("slow", "longer_ms", "bottleneck"),
    [
        (500, 300, Bottleneck.PEER),
        (20, 300, Bottleneck.PEER),
        (500, 2, Bottleneck.PEER),
        # a few; and few of many
        (4, 300, Bottleneck.NONE),
        (20, 2, Bottleneck.NONE),
    ],
)
def test_syns_that_are_answered_late_are_a_wait_for_the_peer(
    slow: int, longer_ms: int, bottleneck: Bottleneck
) -> None:
    near = measured(1000, rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=MS // 5)
    verdict = judge(near + connected(500, slow, longer_ms))
    assert verdict.bottleneck is bottleneck
    told = f"{slow} connects took {longer_ms}ms longer than a round trip: SYNs are answered late"
    assert (told in verdict.evidence) is (bottleneck is Bottleneck.PEER)


def test_connects_that_wait_in_a_queue_of_the_path_are_not_the_peers() -> None:
    grown = {"rttLeastNs": 1000 * 2 * MS, "rttGrowthSamples": 1000, "rttGrowthNs": 1000 * 48 * MS}
    trips = measured(1000, rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=50 * MS, counters=grown)
    verdict = judge(trips + connected(500, 500, 48))
    assert verdict.bottleneck is Bottleneck.NETWORK
    assert "Peer" not in verdict.waiting_ns


def test_connects_of_hours_ago_whose_connections_end_now_are_no_wait_of_this_window() -> None:
    near = measured(1000, rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=MS // 5)
    ended = Measurement(counters={"slowConnects": 50, "slowConnectsNs": 50 * 300 * MS})
    again = measured(50, tcp_connect=MS // 5)
    assert judge(near + ended).bottleneck is Bottleneck.NONE
    assert judge(near + ended + again).bottleneck is Bottleneck.NONE


def test_connects_that_wait_in_a_queue_of_this_node_are_not_the_peers() -> None:
    queued = measured(1000, rx_socket=20 * US, tx_stack=10 * US, tx_qdisc=48 * MS, tcp_rtt=MS)
    assert "Peer" not in judge(queued + connected(500, 500, 48)).waiting_ns


def test_few_slow_connects_leave_slow_answers_to_the_application() -> None:
    asked = QUICK_PACKETS + measured(100, app_response=80 * MS)
    verdict = judge(asked + connected(4, 4, 400))
    assert verdict.bottleneck is Bottleneck.APPLICATION
    assert verdict.waiting_ns["Application"] == 8000 * MS


def resent(count: int, each_ms: int) -> Measurement:
    """Segments that this node dropped, and that were sent again."""
    counters = {"droppedAndResent": count, "droppedAndResentNs": count * each_ms * MS}
    return Measurement(counters=counters)


def test_drops_of_this_node_are_the_cause_of_the_losses_that_they_make() -> None:
    asked = measured(585, rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=MS, peer_response=MS)
    drops = Measurement(counters={"drops.NETFILTER_DROP": 15, "dropsIn.nf_hook_slow": 15})
    verdict = judge(asked + recovered(15, 207) + drops + resent(15, 207))
    assert verdict.bottleneck is Bottleneck.DROPS
    assert verdict.waiting_ns["Drops"] == 15 * 207 * MS
    told = "15 of the dropped segments were sent again: their recovery took 3.1s in all"
    assert told in verdict.evidence
    assert "drops.NETFILTER_DROP 15" in verdict.evidence
    assert "dropsIn.nf_hook_slow 15" in verdict.evidence


@pytest.mark.parametrize(
    ("drops", "recoveries", "of_drops", "drops_ms", "loss_ms"),
    [
        # no recovery is of a datagram
        ({"receiveQueueOverflows": 5000}, 1, 0, 5_000_000, 207),
        ({"receiveQueueOverflows": 5000, "drops.SOCKET_RCVBUFF": 5000}, 3, 0, 5_000_000, 621),
        # the rule drops any protocol: a segment was sent again, the datagrams were not
        ({"drops.NETFILTER_DROP": 20}, 1, 1, 19_000 + 207, 0),
        ({"drops.NETFILTER_DROP": 20}, 20, 20, 20 * 207, 0),
        ({"drops.NETFILTER_DROP": 20}, 30, 20, 20 * 207, 10 * 207),
        # the path lost as many, of other connections
        ({"drops.NETFILTER_DROP": 20}, 20, 0, 20_000, 20 * 207),
        ({"drops.NETFILTER_DROP": 20, "droppedAcks": 5}, 15, 15, 15 * 207, 0),
        ({"drops.NETFILTER_DROP": 20, "drops.SOCKET_RCVBUFF": 9}, 25, 20, 9000 + 20 * 207, 1035),
    ],
)
def test_dropped_datagrams_and_recovered_segments_each_have_their_own_time(
    drops: dict[str, int], recoveries: int, of_drops: int, drops_ms: int, loss_ms: int
) -> None:
    sent = Measurement(counters={**drops, "retransmits": recoveries}) + resent(of_drops, 207)
    verdict = judge(QUICK_PACKETS + recovered(recoveries, 207) + sent)
    assert verdict.bottleneck is Bottleneck.DROPS
    assert verdict.waiting_ns["Drops"] == drops_ms * MS
    assert verdict.waiting_ns.get("PacketLoss", 0) == loss_ms * MS


def test_segments_that_are_dropped_again_and_again_have_the_time_of_their_recovery() -> None:
    """Each of 20 recoveries sent five segments, all of which a rule of this node dropped once."""
    counters = {"drops.NETFILTER_DROP": 100, "retransmits": 100, "droppedAndResent": 100}
    drops = Measurement(counters={**counters, "droppedAndResentNs": 10_000 * MS})
    verdict = judge(QUICK_PACKETS + recovered(20, 500) + drops)
    assert verdict.waiting_ns == {"Drops": 10_000 * MS, **judge(QUICK_PACKETS).waiting_ns}


def test_a_stray_probe_leaves_dropped_queries_to_the_drops() -> None:
    """Queries of names that this node drops have no reply; the probe (TLP) is another peer's."""
    stray = recovered(1, 20) + Measurement(counters={"retransmits": 1})
    verdict = judge(QUICK_PACKETS + queries(70, 0, dropped=70) + stray)
    assert verdict.bottleneck is Bottleneck.DROPS
    assert verdict.waiting_ns["Drops"] == 70_000 * MS
    assert verdict.waiting_ns["PacketLoss"] == 20 * MS


@pytest.mark.parametrize("reason", ["FQ_FLOW_LIMIT", "QDISC_OVERLIMIT", "OTHER", "OVS_METER"])
def test_a_segment_that_was_sent_again_was_needed_for_any_reason_of_its_drop(reason: str) -> None:
    asked = measured(585, rx_socket=20 * US, tx_stack=10 * US, tcp_rtt=MS, peer_response=MS)
    drops = Measurement(counters={f"drops.{reason}": 15})
    verdict = judge(asked + recovered(15, 207) + drops + resent(15, 207))
    assert verdict.bottleneck is Bottleneck.DROPS
    assert verdict.waiting_ns["Drops"] == 15 * 207 * MS


@pytest.mark.parametrize("counter", ["droppedAcks", "droppedAndResent"])
def test_drops_of_a_reason_that_is_not_known_excuse_no_harmful_ones(counter: str) -> None:
    drops = {"drops.OTHER": 400, "drops.NETFILTER_DROP": 20, counter: 400}
    verdict = judge(QUICK_PACKETS + Measurement(counters=drops))
    assert verdict.bottleneck is Bottleneck.DROPS
    assert verdict.waiting_ns["Drops"] == 20_000 * MS


@pytest.mark.parametrize("acks", [20, 400])
def test_dropped_acks_cost_nothing(acks: int) -> None:
    asked = measured(500, rx_socket=20 * US, tx_stack=10 * US)
    drops = Measurement(counters={"drops.NETFILTER_DROP": 20, "droppedAcks": acks})
    verdict = judge(asked + drops)
    assert verdict.bottleneck is Bottleneck.NONE
    assert "Drops" not in verdict.waiting_ns
    assert not verdict.next_step.startswith("Nothing to do")


def test_a_connection_whose_segments_this_node_drops_is_no_loss_of_the_path() -> None:
    """They wait for 30 s, in which each was dropped some five times."""
    waits = Pending(9, 9, oldest_ns=30_000 * MS, waiting_ns=9 * 30_000 * MS)
    drops = Measurement(counters={"drops.NETFILTER_DROP": 50, "droppedAndResent": 41})
    verdict = judge(QUICK_PACKETS + drops + Measurement(pending={"unacknowledgedDrops": waits}))
    assert verdict.bottleneck is Bottleneck.DROPS
    assert "PacketLoss" not in verdict.waiting_ns


def test_packets_that_are_not_needed_any_more_are_no_drops() -> None:
    asked = measured(500, rx_socket=20 * US, tx_stack=10 * US)
    old = Measurement(counters={"drops.TCP_OLD_DATA": 400})
    assert judge(asked + old).bottleneck is Bottleneck.NONE


@pytest.mark.parametrize(
    ("counters", "bottleneck"),
    [
        ({"connectRefused": 50}, Bottleneck.CONNECT_FAILURES),
        ({"connectTimedOut": 50}, Bottleneck.CONNECT_FAILURES),
        ({"connectAborted": 50, "connectRetransmits": 50}, Bottleneck.CONNECT_FAILURES),
        ({"acceptQueueOverflows": 50}, Bottleneck.ACCEPT_QUEUE),
        ({"receiveQueueOverflows": 50}, Bottleneck.DROPS),
        # the faster of two addresses won
        ({"connectAborted": 50}, Bottleneck.NONE),
        # one pod was replaced
        ({"connectRefused": 4}, Bottleneck.NONE),
    ],
)
def test_a_failure_is_charged_a_second(counters: dict[str, int], bottleneck: Bottleneck) -> None:
    well = measured(200, rx_socket=20 * US, tx_stack=10 * US, tcp_connect=MS)
    assert judge(well + Measurement(counters=counters)).bottleneck is bottleneck


def gave_up(count: int, each_ns: int, stood_ns: list[int]) -> Measurement:
    """Quick packets, and connects: so many given up after `each_ns`, and others that stood."""
    counters = {"connectAborted": count, "connectAbortedNs": count * each_ns}
    connects = {"tcp.connect": StageMeasurement(Histogram.of(stood_ns))} if stood_ns else {}
    well = measured(200, rx_socket=20 * US, tx_stack=10 * US)
    return well + Measurement(connects, counters)


@pytest.mark.parametrize(
    ("stood", "given_up", "each_ns", "bottleneck"),
    [
        (176, 176, 250 * MS, Bottleneck.CONNECT_FAILURES),
        (176, 90, 800 * MS, Bottleneck.CONNECT_FAILURES),
        (0, 20, 250 * MS, Bottleneck.CONNECT_FAILURES),
        # the loser of a race ends with it
        (176, 176, MS, Bottleneck.NONE),
        # the other address was nearly as slow
        (176, 176, 9 * MS, Bottleneck.NONE),
        # one pod was replaced
        (176, 4, 250 * MS, Bottleneck.NONE),
        (10_000, 60, 250 * MS, Bottleneck.NONE),
    ],
)
def test_connects_that_are_given_up_late_count_with_their_time(
    stood: int, given_up: int, each_ns: int, bottleneck: Bottleneck
) -> None:
    verdict = judge(gave_up(given_up, each_ns, [MS] * stood))
    assert verdict.bottleneck is bottleneck
    if bottleneck is Bottleneck.CONNECT_FAILURES:
        assert verdict.waiting_ns["ConnectFailures"] == given_up * each_ns


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([30 * MS] * 200, id="a round trip of 30 ms"),
        pytest.param([MS] * 197 + [1030 * MS] * 3, id="some whose SYN was lost"),
    ],
)
def test_connects_are_given_up_late_by_the_time_of_most_others(others: list[int]) -> None:
    verdict = judge(gave_up(200, 250 * MS, others))
    assert verdict.bottleneck is Bottleneck.CONNECT_FAILURES
    assert verdict.waiting_ns["ConnectFailures"] == 200 * 250 * MS


def test_the_loser_of_a_race_over_a_long_path_is_no_failure() -> None:
    raced = gave_up(200, 150 * MS, [140 * MS] * 200)
    assert "ConnectFailures" not in judge(raced).waiting_ns


def test_early_ends_of_connects_hide_no_lost_syns_of_others() -> None:
    lost = [1001 * MS] * 30
    stages = {
        "tcp.connect": StageMeasurement(Histogram.of([MS] * 3970 + lost)),
        "tcp.recovery": StageMeasurement(Histogram.of(lost)),
    }
    counters = {
        "connectAborted": 400,
        "connectAbortedNs": 400 * 250 * MS,
        "connectRetransmits": 30,
        "retransmits": 30,
    }
    verdict = judge(measured(200, rx_socket=20 * US) + Measurement(stages, counters))
    assert verdict.waiting_ns["ConnectFailures"] == 400 * 250 * MS
    assert verdict.waiting_ns["PacketLoss"] == sum(lost)


def test_connects_that_are_given_up_after_their_syns_repetition_count_once() -> None:
    """16 connects of 1.5 s: each SYN was sent again after 1 s."""
    recovery = {"tcp.recovery": StageMeasurement(Histogram.of([1500 * MS] * 16))}
    counters = {
        "connectAborted": 16,
        "connectAbortedNs": 16 * 1500 * MS,
        "connectRetransmits": 16,
        "retransmits": 16,
    }
    verdict = judge(measured(200, rx_socket=20 * US) + Measurement(recovery, counters))
    assert verdict.waiting_ns["ConnectFailures"] == 16 * 1500 * MS
    assert "PacketLoss" not in verdict.waiting_ns


def test_connects_that_were_given_up_are_not_the_applications() -> None:
    """A proxy tries an address that does not answer, and then the next one."""
    well = measured(rx_socket=20 * US, tx_stack=10 * US, tcp_connect=MS, app_response=252 * MS)
    answers = well.stage("app.response").histogram.count
    counters = {"connectAborted": answers, "connectAbortedNs": answers * 250 * MS}
    verdict = judge(well + Measurement(counters=counters))
    assert verdict.bottleneck is Bottleneck.CONNECT_FAILURES
    assert verdict.waiting_ns["Application"] == answers * 2 * MS


def test_connections_that_wait_to_be_accepted_are_not_a_slow_readers() -> None:
    waited = measured(rx_socket=80 * MS, tx_stack=10 * US, tcp_accept=79 * MS)
    assert judge(waited).bottleneck is Bottleneck.ACCEPT_QUEUE


@pytest.mark.parametrize(
    ("kind", "bottleneck"),
    [
        ("unreadSegments", Bottleneck.SLOW_READER),
        ("unacceptedConnections", Bottleneck.ACCEPT_QUEUE),
        ("unacknowledgedRetransmits", Bottleneck.PACKET_LOSS),
        ("unansweredConnects", Bottleneck.CONNECT_FAILURES),
    ],
)
def test_waiting_that_has_not_ended_is_named_without_any_packet(
    kind: str, bottleneck: Bottleneck
) -> None:
    hung = Pending(20, sockets=4, oldest_ns=6000 * MS, waiting_ns=90_000 * MS)
    assert judge(Measurement(pending={kind: hung})).bottleneck is bottleneck
    young = Pending(20, sockets=4, oldest_ns=900 * MS, waiting_ns=9_000 * MS)
    verdict = judge(Measurement(pending={kind: young}))
    assert verdict.bottleneck is Bottleneck.INSUFFICIENT_DATA


def test_unread_data_of_connections_that_are_not_accepted_is_not_the_readers() -> None:
    """It waits in both places; there is no reader before accept()."""
    unaccepted = Pending(16, 16, oldest_ns=8000 * MS, waiting_ns=128_000 * MS)
    unread = Pending(20, 20, oldest_ns=8000 * MS, waiting_ns=138_000 * MS)
    pending = {"unreadSegments": unread, "unacceptedConnections": unaccepted}
    verdict = judge(Measurement(pending=pending))
    assert (verdict.bottleneck, verdict.share_percent) == (Bottleneck.ACCEPT_QUEUE, 93)
    assert verdict.waiting_ns == {"AcceptQueue": 128_000 * MS, "SlowReader": 10_000 * MS}


@pytest.mark.parametrize(("drops", "drops_ns"), [(30, 0), (36, 6000 * MS)])
def test_connects_to_an_absent_neighbour_are_no_drops_as_well(drops: int, drops_ns: int) -> None:
    counters = {"connectUnreachable": 30, "drops.NEIGH_FAILED": drops}
    verdict = judge(QUICK_PACKETS + Measurement(counters=counters))
    assert verdict.bottleneck is Bottleneck.CONNECT_FAILURES
    assert verdict.waiting_ns["ConnectFailures"] == 30_000 * MS
    assert verdict.waiting_ns.get("Drops", 0) == drops_ns


@pytest.mark.parametrize(
    ("failed", "drops", "drops_ns"),
    [
        ({"connectRejected": 30}, 30, 0),
        ({"connectRejected": 30}, 36, 6000 * MS),
        ({"connectRejected": 30, "connectRetransmits": 30}, 60, 0),
        ({"connectUnreachable": 30}, 30, 0),
        ({"connectRefused": 30}, 30, 0),
    ],
)
def test_connects_that_a_rule_of_the_node_rejects_are_no_drops_as_well(
    failed: dict[str, int], drops: int, drops_ns: int
) -> None:
    verdict = judge(QUICK_PACKETS + Measurement(counters={**failed, "drops.NETFILTER_DROP": drops}))
    assert verdict.bottleneck is Bottleneck.CONNECT_FAILURES
    assert verdict.waiting_ns["ConnectFailures"] == 30_000 * MS
    assert verdict.waiting_ns.get("Drops", 0) == drops_ns


def test_the_second_after_which_a_rejected_syn_is_sent_again_is_no_loss_of_the_path() -> None:
    recovered = measured(30, tcp_recovery=1010 * MS)
    counters = {"connectRejected": 30, "connectRetransmits": 30}
    verdict = judge(QUICK_PACKETS + recovered + Measurement(counters=counters))
    assert verdict.bottleneck is Bottleneck.CONNECT_FAILURES
    assert verdict.waiting_ns["ConnectFailures"] >= 30_000 * MS
    assert verdict.waiting_ns.get("PacketLoss", 0) == 0


def test_calls_of_connect_that_are_never_sent_are_failures() -> None:
    calls = Measurement(counters={"connectCalls": 140, "connectsSent": 100})
    verdict = judge(QUICK_PACKETS + calls)
    assert verdict.bottleneck is Bottleneck.CONNECT_FAILURES
    assert "connectsNotSent 40" in verdict.evidence
    few = judge(QUICK_PACKETS + Measurement(counters={"connectCalls": 103, "connectsSent": 100}))
    assert few.bottleneck is Bottleneck.NONE
    assert "failures: connectsNotSent 3" in few.evidence
    assert "Nothing to do" not in few.next_step


@pytest.mark.parametrize("sent", [100, 104])
def test_connects_that_are_all_sent_are_no_failures(sent: int) -> None:
    """More are sent than called for where the kernel opens subflows."""
    healthy = judge(
        QUICK_PACKETS + Measurement(counters={"connectCalls": 100, "connectsSent": sent})
    )
    assert "Nothing to do" in healthy.next_step


@pytest.mark.parametrize(
    ("closed", "cause"),
    [(25, Bottleneck.RECEIVE_WINDOW), (15, Bottleneck.CONGESTION), (0, Bottleneck.CONGESTION)],
)
def test_pacing_at_the_rate_of_a_reader_that_closes_its_window_is_the_readers(
    closed: int, cause: Bottleneck
) -> None:
    counters = {"sendsPaced": 1900, "pacedNs": 10_000 * MS, "zeroWindowsReceived": closed}
    assert judge(QUICK_PACKETS + Measurement(counters=counters)).bottleneck is cause


def unanswered(kind: str, count: int, seconds: int) -> Measurement:
    """Requests that wait for an answer of one peer."""
    oldest_ns, waiting_ns = seconds * 1000 * MS, count * seconds * 1000 * MS
    waits = Pending(count, count, oldest_ns=oldest_ns, waiting_ns=waiting_ns)
    peer = Peer(Endpoint(IPv4Address("10.0.0.7"), 5432), kind, count, oldest_ns, waiting_ns)
    return Measurement(pending={kind: waits}, peers=(peer,))


@pytest.mark.parametrize(
    ("measurement", "bottleneck"),
    [
        (unanswered("missingAnswers", 9, 2), Bottleneck.PEER),
        # it may be a frame that wants no answer
        (unanswered("missingAnswers", 1, 60), Bottleneck.INSUFFICIENT_DATA),
        (unanswered("firstAnswers", 20, 6), Bottleneck.PEER),
        # it may be a long poll
        (unanswered("firstAnswers", 1, 60), Bottleneck.INSUFFICIENT_DATA),
        (unanswered("firstAnswers", 20, 2), Bottleneck.INSUFFICIENT_DATA),
        # the peer answers others
        (
            measured(rx_socket=20 * US, tx_stack=US, peer_response=MS // 2)
            + unanswered("firstAnswers", 20, 6),
            Bottleneck.NONE,
        ),
        (unanswered("stuckRequests", 2, 2), Bottleneck.APPLICATION),
        # neither is late: see domain/patience.py
        (unanswered("unansweredRequests", 9, 60), Bottleneck.INSUFFICIENT_DATA),
        (unanswered("requestsInService", 9, 60), Bottleneck.INSUFFICIENT_DATA),
    ],
)
def test_several_answers_that_are_late_are_missing(
    measurement: Measurement, bottleneck: Bottleneck
) -> None:
    verdict = judge(measurement)
    assert verdict.bottleneck is bottleneck
    assert verdict.culprit == ("10.0.0.7:5432" if bottleneck is Bottleneck.PEER else "")


@pytest.mark.parametrize(
    ("of_names_ns", "bottleneck"), [(30_000 * MS, Bottleneck.PEER), (31_000 * MS, Bottleneck.DNS)]
)
def test_late_replies_from_name_servers_are_dns(of_names_ns: int, bottleneck: Bottleneck) -> None:
    replies = measured(200, udp_response=300 * MS, counters={"dnsResponseNs": of_names_ns})
    assert judge(replies).bottleneck is bottleneck


def queries(asked: int, ended: int, dropped: int = 0) -> Measurement:
    counts = {"dnsQueries": asked, "dnsQueriesEnded": ended}
    return Measurement(counters={**counts, "drops.NETFILTER_DROP": dropped})


def test_name_servers_that_do_not_reply_are_dns() -> None:
    verdict = judge(queries(70, 0))
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.DNS, None)
    assert "70 of 70 queries to port 53 had no reply" in verdict.evidence
    assert "network policies allow UDP to port 53" in verdict.next_step
    assert judge(queries(4, 0)).bottleneck is Bottleneck.INSUFFICIENT_DATA


def test_replies_that_are_not_needed_any_more_are_no_fault() -> None:
    """Of two name servers that are asked at once, or of A and AAAA, one reply may be enough."""
    assert judge(queries(70, 35)).bottleneck is Bottleneck.INSUFFICIENT_DATA


def repeated(count: int, replied_ns: int = 0, each_ns: int = 1000 * MS) -> Measurement:
    """Look-ups of A and AAAA, of which one was asked again after this time."""
    counts = {"dnsQueriesRepeated": count, "dnsQueriesRepeatedNs": count * each_ns}
    return queries(2 * count, 2 * count) + Measurement(
        counters={**counts, "dnsResponseNs": replied_ns}
    )


def test_questions_that_are_asked_again_are_dns_beside_replies_to_others() -> None:
    verdict = judge(repeated(48))
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.DNS, "udp.response")
    line = "48 of 96 queries to port 53 had no reply until sent again"
    assert line in verdict.evidence
    assert verdict.waiting_ns == {"DNS": 48_000 * MS}
    assert judge(repeated(4)).bottleneck is Bottleneck.INSUFFICIENT_DATA


def test_questions_with_a_reply_in_the_end_count_once() -> None:
    replies = measured(200, udp_response=1200 * MS)
    verdict = judge(replies + repeated(200, replied_ns=240_000 * MS))
    assert verdict.bottleneck is Bottleneck.DNS
    assert verdict.waiting_ns["DNS"] == 240_000 * MS


def test_replies_to_other_questions_leave_the_wait_for_those_that_were_sent_again() -> None:
    replies = measured(1000, udp_response=60 * MS)
    verdict = judge(replies + repeated(50, replied_ns=60_000 * MS, each_ns=5000 * MS))
    assert verdict.bottleneck is Bottleneck.DNS
    assert verdict.waiting_ns["DNS"] == (60_000 + 50 * 5000) * MS
    assert "50 of 100 queries to port 53 had no reply until sent again" in verdict.evidence


def test_answers_that_wait_for_questions_asked_again_are_not_the_applications() -> None:
    slow = measured(100, app_response=2000 * MS)
    assert judge(repeated(100) + slow).bottleneck is Bottleneck.DNS


def test_questions_asked_again_hide_no_slow_application() -> None:
    slow = measured(100, app_response=2000 * MS)
    verdict = judge(repeated(60, each_ns=600 * MS) + slow)
    assert verdict.bottleneck is Bottleneck.APPLICATION
    assert verdict.waiting_ns["Application"] == (200_000 - 2 * 36_000) * MS


def test_queries_that_wait_or_were_dropped_here_are_not_the_name_servers() -> None:
    young = {"unansweredQueries": Pending(70, 70, oldest_ns=MS, waiting_ns=70 * MS)}
    asked = queries(70, 0)
    assert judge(replace(asked, pending=young)).bottleneck is Bottleneck.INSUFFICIENT_DATA
    old = {"unansweredQueries": Pending(70, 70, oldest_ns=4000 * MS, waiting_ns=70_000 * MS)}
    assert judge(replace(asked, pending=old)).bottleneck is Bottleneck.DNS
    assert judge(queries(70, 0, dropped=70)).bottleneck is Bottleneck.DROPS


def test_answers_that_wait_for_an_absent_name_server_are_not_the_applications() -> None:
    slow = measured(100, app_response=5000 * MS)
    assert judge(queries(100, 0) + slow).bottleneck is Bottleneck.DNS
    own = measured(1000, app_response=200 * MS)
    assert judge(queries(70, 30) + own).bottleneck is Bottleneck.APPLICATION


def test_the_time_in_which_an_answer_waits_for_names_is_not_the_applications() -> None:
    asked = measured(200, udp_response=300 * MS, counters={"dnsResponseNs": 60_000 * MS})
    verdict = judge(asked + measured(200, app_response=310 * MS))
    assert verdict.bottleneck is Bottleneck.DNS
    assert verdict.waiting_ns["Application"] == 2_000 * MS


def test_replies_that_came_late_since_this_node_dropped_queries_are_drops() -> None:
    late = {"udp.response": StageMeasurement(Histogram.of([MS] * 900 + [1001 * MS] * 20))}
    dropped = {"drops.NETFILTER_DROP": 20, "dnsResponseNs": 21_000 * MS}
    assert judge(Measurement(late, dropped)).bottleneck is Bottleneck.DROPS


def test_answers_that_losses_delay_are_not_the_peers() -> None:
    lost = Pending(9, 9, oldest_ns=2000 * MS, waiting_ns=18_000 * MS)
    missing = unanswered("missingAnswers", 9, 2)
    pending = {**(missing.pending or {}), "unacknowledgedRetransmits": lost}
    assert judge(replace(missing, pending=pending)).bottleneck is Bottleneck.PACKET_LOSS


def test_a_single_late_request_is_no_accusation_and_is_said() -> None:
    hung = unanswered("missingAnswers", 1, 24)
    few = judge(replace(hung, stages={}))
    assert few.bottleneck is Bottleneck.INSUFFICIENT_DATA
    assert "1 missing answer for 24s" in few.evidence
    assert few.next_step.startswith("One request waits far longer than answers usually take")
    busy = measured(1000, rx_socket=20 * US, tx_stack=10 * US)
    beside = judge(replace(busy, pending=hung.pending))
    assert beside.bottleneck is Bottleneck.NONE
    assert "1 missing answer for 24s" in beside.evidence
    assert beside.next_step == few.next_step
    stuck = judge(replace(busy, pending=unanswered("stuckRequests", 1, 24).pending))
    assert "1 stuck request for 24s" in stuck.evidence
    assert stuck.next_step.startswith("One request was read")


QUICK_PACKETS = measured(200, rx_socket=20 * US, tx_stack=10 * US)


def test_few_slow_answers_are_no_accusation_and_never_nothing_to_do() -> None:
    slow = measured(48, app_response=800 * MS)
    line = "app.response: 48 answers, 800ms on average; a verdict needs 100"
    for packets in (QUICK_PACKETS, measured(48, rx_stack=US)):
        verdict = judge(packets + slow)
        assert verdict.bottleneck in {Bottleneck.NONE, Bottleneck.INSUFFICIENT_DATA}
        assert line in verdict.evidence
        assert "Few answers" in verdict.next_step
    crossing = slow + Measurement({"app.response": StageMeasurement(unmatched=49)})
    assert line not in judge(QUICK_PACKETS + crossing).evidence
    assert "Nothing to do" in judge(QUICK_PACKETS + measured(48, app_response=MS)).next_step


@pytest.mark.parametrize(
    ("name", "transfers"),
    [
        ("app.transfer", measured(240, app_transfer=300 * MS)),
        ("peer.transfer", measured(240, peer_transfer=300 * MS)),
    ],
)
def test_answers_that_end_late_are_never_nothing_to_do(name: str, transfers: Measurement) -> None:
    verdict = judge(QUICK_PACKETS + transfers)
    assert verdict.bottleneck is Bottleneck.NONE
    line = f"{name}: 300ms on average from the first byte of an answer to the last"
    assert line in verdict.evidence
    assert verdict.next_step.startswith("The first byte of an answer comes soon")


@pytest.mark.parametrize("late", [8, 4])
def test_one_answer_in_fifty_that_ends_late_is_never_nothing_to_do(late: int) -> None:
    ends = measured(400 - late, peer_transfer=MS // 2) + measured(late, peer_transfer=2000 * MS)
    verdict = judge(QUICK_PACKETS + ends)
    assert verdict.bottleneck is Bottleneck.NONE
    is_often = late == 8
    line = "peer.transfer: p99 1.92s from the first byte of an answer to the last"
    assert (line in verdict.evidence) is is_often
    assert verdict.next_step.startswith("Nothing to do") is not is_often


def test_many_quick_requests_for_each_answer_are_the_applications() -> None:
    slow = QUICK_PACKETS + measured(200, app_response=44 * MS)
    verdict = judge(slow + measured(60_000, peer_response=130 * US))
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.APPLICATION, "app.response")
    assert "300 requests to peers for each answer, 130us each" in verdict.evidence
    few = judge(slow + measured(200, peer_response=43 * MS))
    assert few.bottleneck is Bottleneck.PEER
    beside = judge(slow + measured(60_000, peer_response=10 * US))
    assert beside.bottleneck is Bottleneck.APPLICATION
    assert not any("requests to peers for each" in line for line in beside.evidence)


def test_waits_for_several_peers_at_once_leave_the_own_part_unknown() -> None:
    verdict = judge(
        QUICK_PACKETS + measured(300, app_response=72 * MS) + measured(2400, peer_response=11 * MS)
    )
    assert verdict.bottleneck is Bottleneck.PEER
    assert any(
        line.startswith("its own answers take 72ms (app.response)") for line in verdict.evidence
    )


@pytest.mark.parametrize("answered", [0, 1000])
def test_several_requests_that_were_given_up_late_are_the_peers(answered: int) -> None:
    given_up = {"requestsAbandoned": 20, "requestsAbandonedNs": 20 * 500 * MS}
    requests = QUICK_PACKETS + (measured(answered, peer_response=US) if answered else Measurement())
    verdict = judge(requests + Measurement(counters=given_up))
    assert (verdict.bottleneck, verdict.stage) == (Bottleneck.PEER, None)
    line = "20 requests had no answer when this side closed, after 500ms on average"
    assert line in verdict.evidence


@pytest.mark.parametrize(("count", "answered"), [(4, 0), (20, 2001)])
def test_few_requests_that_were_given_up_are_no_accusation(count: int, answered: int) -> None:
    """They may be polls."""
    given_up = {"requestsAbandoned": count, "requestsAbandonedNs": count * 30_000 * MS}
    requests = QUICK_PACKETS + (measured(answered, peer_response=US) if answered else Measurement())
    assert judge(requests + Measurement(counters=given_up)).bottleneck is Bottleneck.NONE


def test_answers_that_wait_for_requests_that_are_given_up_are_not_the_applications() -> None:
    given_up = {"requestsAbandoned": 20, "requestsAbandonedNs": 20 * 500 * MS}
    slow = measured(1000, app_response=11 * MS) + measured(980, peer_response=MS)
    assert judge(slow + Measurement(counters=given_up)).bottleneck is Bottleneck.PEER


def test_requests_that_were_lost_and_given_up_are_losses() -> None:
    given_up = {"requestsAbandoned": 20, "requestsAbandonedNs": 20 * 2000 * MS}
    lost = {"tcp.recovery": StageMeasurement(Histogram.of([1400 * MS] * 20))}
    verdict = judge(QUICK_PACKETS + Measurement(lost, given_up))
    assert verdict.bottleneck is Bottleneck.PACKET_LOSS


def test_requests_that_ended_without_an_answer_are_no_accusation_and_are_said() -> None:
    """They may be logs or metrics, which want no answer."""
    requests = QUICK_PACKETS + measured(400, peer_response=US)

    def with_unanswered(count: int) -> Verdict:
        counters = {"requestsUnanswered": count, "requestsUnansweredNs": count * 500 * MS}
        return judge(requests + Measurement(counters=counters))

    verdict = with_unanswered(5)
    assert verdict.bottleneck is Bottleneck.NONE
    line = "5 requests had no answer when their connection ended, after 500ms on average"
    assert line in verdict.evidence
    assert verdict.next_step.startswith("Connections ended before their request had any answer")
    assert "Nothing to do" in with_unanswered(4).next_step


@pytest.mark.parametrize(
    ("name", "line", "next_step"),
    [
        (
            "lateGreetings",
            "5 connections had no byte until 500ms after the handshake on average",
            "On these connections the server speaks first, and late",
        ),
        (
            "lateEnds",
            "5 connections ended 500ms after their last byte on average",
            "The server ends these connections long after their last byte",
        ),
        (
            "connectionsWithoutData",
            "5 connections had no byte in 500ms on average",
            "This side closed connections without a byte",
        ),
    ],
)
def test_late_greetings_and_ends_are_no_accusation_and_are_said(
    name: str, line: str, next_step: str
) -> None:
    """They may be subscriptions or idle connections."""
    requests = QUICK_PACKETS + measured(400, peer_response=US, tcp_connect=US)
    requests += measured(6000, tcp_handshake=US)

    def with_late(count: int) -> Verdict:
        counters = {name: count, f"{name}Ns": count * 500 * MS}
        return judge(requests + Measurement(counters=counters))

    verdict = with_late(5)
    assert verdict.bottleneck is Bottleneck.NONE
    assert line in verdict.evidence
    assert verdict.next_step.startswith(next_step)
    assert "Nothing to do" in with_late(4).next_step


def test_many_resets_are_not_nothing_to_do() -> None:
    requests = QUICK_PACKETS + measured(400, app_response=US)

    def with_counts(**counts: int) -> Verdict:
        return judge(requests + Measurement(counters=counts))

    verdict = with_counts(resetsReceived=74, resetsSent=30, connectRefused=4)
    assert verdict.bottleneck is Bottleneck.NONE
    assert "100 resets ended connections, beside 400 requests or connections" in verdict.evidence
    assert verdict.next_step.startswith("Resets ended connections")
    late = with_counts(resetsReceived=74, lateEnds=90, lateEndsNs=90 * 500 * MS)
    assert late.next_step.startswith("Resets ended connections")
    assert "Nothing to do" in with_counts(resetsReceived=4).next_step


def test_a_few_answers_are_no_verdict() -> None:
    packets = measured(1000, rx_socket=20 * US, tx_stack=10 * US)
    assert judge(packets + measured(99, app_response=50 * MS)).bottleneck is Bottleneck.NONE


def test_readers_without_node_figures_learn_where_those_would_help() -> None:
    backlog, reader = measured(rx_softirq=9 * MS), measured(rx_socket=9 * MS)
    hint = "operator.nodeFiguresNamespaces"

    assert "softnet counters are not shown" in judge(backlog, None).next_step
    assert hint in judge(backlog, None).next_step
    waiting = measured(rx_socket=9 * MS, rx_wakeup=9 * MS)
    assert "steal, the CPU time that its hypervisor takes, is not" in judge(waiting, None).next_step
    assert hint not in judge(waiting).next_step
    assert judge(reader, None) == judge(reader)
    assert hint not in judge(backlog).next_step
    assert judge(backlog, None).evidence == judge(backlog).evidence
