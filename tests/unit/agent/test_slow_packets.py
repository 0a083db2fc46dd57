"""Traced packets as exemplars: of the right pod and stages, for some minutes, within bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from latencyprobe.domain.histogram import bounds_of
from latencyprobe.domain.packets import Endpoint, TracedPacket
from latencyprobe.domain.stages import Module
from latencyprobe.exposition.families import MAX_EXEMPLAR_LENGTH
from latencyprobe_agent.desired import EVERY_PROBE, Desired
from latencyprobe_agent.plan import TargetKey
from latencyprobe_agent.serving.figures import exemplar_of
from latencyprobe_agent.slow_packets import SlowPackets
from latencyprobe_agent.totals import KEPT_S, MAX_SLOW_PACKETS, Subject, Totals
from tests.unit.agent.totals_of import probe_on
from tests.unit.traced_packets import RECEIVED, SENT

A, B = Subject("shop", "checkout", "a"), Subject("shop", "checkout", "b")
ALL = Subject("shop", "all")
LIMITS_NS = {"rx.total": 1_000_000, "rx.stack": 1_000_000}
START_NS = RECEIVED.ended_unix_ns - 1


class Traced:
    """Two probes on the pods `a` and `b`, in the slots 0 and 1."""

    def __init__(self) -> None:
        self.probe = probe_on("a", "b")
        others = probe_on("a", "b", name="shop/all", per_pod=False)
        self.totals = Totals()
        self.totals.follow(Desired(1, (self.probe, others)), now=0.0)
        self.slow = SlowPackets(self.totals)
        self.owners = {
            slot: tuple(
                TargetKey(probe.id, probe.targets[slot].id) for probe in (self.probe, others)
            )
            for slot in (0, 1)
        }
        self.slow.own(self.owners, START_NS)

    def note(self, *packets: TracedPacket, now: float = 0.0) -> None:
        self.slow.note(self.probe.id, LIMITS_NS, packets, now)

    def shown(self, now: float = 0.0) -> dict[tuple[Subject, str], list[TracedPacket]]:
        """All packets that are kept."""
        return {
            (subject, name): packets
            for subject, total in self.totals.current(now)
            for name, stage in total.stages.items()
            if (packets := stage.slow_packets(now))
        }


def packet_of(*slots: int, **changes: Any) -> TracedPacket:
    return replace(RECEIVED, slots=frozenset(slots), **changes)


def test_a_packet_is_kept_for_its_pod_and_the_stages_that_were_slow() -> None:
    traced = Traced()
    packet = packet_of(1)

    traced.note(packet)

    assert traced.shown() == {(B, "rx.total"): [packet]}


def test_a_packet_of_another_probe_or_of_no_known_target_is_not_kept() -> None:
    traced = Traced()

    traced.slow.note("another probe", LIMITS_NS, [packet_of(0)], now=0.0)
    traced.note(packet_of(), packet_of(7))

    assert traced.shown() == {}


def test_a_packet_of_the_agents_own_trace_is_kept_for_every_probe() -> None:
    traced = Traced()
    packet = packet_of(1)

    traced.slow.note(EVERY_PROBE, LIMITS_NS, [packet, packet_of(7)], now=0.0)

    assert traced.shown() == {(B, "rx.total"): [packet], (ALL, "rx.total"): [packet]}


def test_a_packet_is_not_kept_for_a_probe_that_does_not_measure_its_stages() -> None:
    received = probe_on("a", per_pod=False, modules=frozenset({Module.RX}))
    tcp = probe_on("a", name="shop/tcp", per_pod=False, modules=frozenset({Module.TCP}))
    totals = Totals()
    totals.follow(Desired(1, (received, tcp)), now=0.0)
    slow = SlowPackets(totals)
    slow.own({0: [TargetKey(each.id, each.targets[0].id) for each in (received, tcp)]}, START_NS)

    slow.note(EVERY_PROBE, LIMITS_NS, [packet_of(0)], now=0.0)

    stages = {subject.probe: set(total.stages) for subject, total in totals.current(0.0)}
    assert stages == {"checkout": {"rx.total"}, "tcp": set()}


def test_a_packet_that_ended_before_its_slot_changed_hands_is_not_kept() -> None:
    traced = Traced()
    early = packet_of(0)
    swapped = {0: traced.owners[1], 1: traced.owners[1]}

    traced.slow.own(swapped, early.ended_unix_ns + 1)
    traced.note(early, packet_of(1))
    assert traced.shown() == {(B, "rx.total"): [packet_of(1)]}

    later = packet_of(0, ended_unix_ns=early.ended_unix_ns + 1)
    traced.note(later)
    assert traced.shown() == {(B, "rx.total"): [later]}


def test_a_packet_is_kept_for_some_minutes() -> None:
    traced = Traced()
    traced.note(packet_of(0))

    assert traced.shown(now=KEPT_S - 1)
    assert traced.shown(now=KEPT_S) == {}


def test_the_newest_packet_of_a_bucket_is_kept_and_the_number_of_buckets_is_bounded() -> None:
    traced = Traced()
    durations = [math.floor(bounds_of(position)[1]) for position in range(120, 120 + 30)]
    packets = [packet_of(0, stages_ns={"rx.total": ns}) for ns in durations]
    again = packet_of(0, stages_ns={"rx.total": durations[-2]}, cpu=7)

    traced.note(*packets, again)

    (kept,) = traced.shown().values()
    assert len(kept) == MAX_SLOW_PACKETS
    assert kept == [*packets[-MAX_SLOW_PACKETS:-2], packets[-1], again]


def test_an_exemplar_has_both_ends_and_the_parts_of_the_packet_the_longest_first() -> None:
    exemplar = exemplar_of(RECEIVED, "rx.total")

    assert list(exemplar.labels.items()) == [
        ("remote", "198.51.100.1:40752"),
        ("local", "198.51.100.2:7000"),
        ("rx_socket", "5ms"),
        ("rx_stack", "1.5us"),
        ("rx_softirq", "500ns"),
    ]
    assert exemplar.duration_ns == 5_002_000
    assert exemplar.unix_ns == RECEIVED.ended_unix_ns
    assert exemplar_of(SENT, "tx.total").labels == {"tx_qdisc": "16ms"}


def test_long_addresses_leave_room_for_the_longest_parts() -> None:
    addresses = ("2001:db8:aaaa:bbbb:cccc:dddd:eeee:1111", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:2222")
    local, remote = (Endpoint(ip_address(each), 54321) for each in addresses)

    labels = exemplar_of(replace(RECEIVED, local=local, remote=remote), "rx.total").labels

    assert list(labels) == ["remote", "local", "rx_socket", "rx_stack"]
    assert sum(len(name) + len(value) for name, value in labels.items()) <= MAX_EXEMPLAR_LENGTH
