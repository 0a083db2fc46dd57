"""The time that loss costs, against a wire that loses chosen segments and times all of them.

An episode is at least as long as the wire saw it, from the lost segment to its ACK, and not longer
than the program that waited.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import counts_of
from tests.live.lossy_wire import Carried, LossyWire, Segment, lossy_wire
from tests.live.measuring import CLIENT, SERVER, account_for, are_bound_by_btf
from tests.live.pods import Namespace, cgroup, inside_cgroup
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    Connection,
    connect,
    connection,
    inside,
    listen,
    read_all,
    sent_again,
    tcp_figures,
)
from tests.live.targets import until

Start = Callable[..., KernelEngine]
pytestmark = [
    pytest.mark.every_kernel,
    pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"]),
]

RECOVERY = "tcp.recovery"
EPISODES = 3
BURST = 10
SEQUENCE_NUMBERS = 1 << 32


@dataclass(frozen=True, slots=True)
class Scene:
    """A wire, and an engine that measures both of its ends."""

    wire: LossyWire
    engine: KernelEngine

    @property
    def near(self) -> Namespace:
        return self.wire.near.namespace

    @property
    def far(self) -> Namespace:
        return self.wire.far.namespace

    @property
    def address(self) -> str:
        return self.wire.far.address

    def connection(self) -> AbstractContextManager[Connection]:
        return connection(self.near, self.far, self.address)


@asynccontextmanager
async def measured(start: Start, *, typed: bool) -> AsyncIterator[Scene]:
    with lossy_wire() as wire:
        engine = start(typed=typed)
        ends = {CLIENT: wire.near.namespace.inode, SERVER: wire.far.namespace.inode}
        engine.assign(
            {
                slot: SlotSpec(netns_wide=frozenset({inode}), netns=frozenset({inode}))
                for slot, inode in ends.items()
            }
        )
        await engine.use(frozenset(DEFAULT_MODULES))
        yield Scene(wire, engine)


class Waits:
    """The bounds of the episodes that a test made."""

    def __init__(self) -> None:
        self._at_least_ns: list[int] = []
        self._at_most_ns: list[int] = []

    def add(self, at_least_ns: int, at_most_ns: int) -> None:
        self._at_least_ns.append(at_least_ns)
        self._at_most_ns.append(at_most_ns)

    def assert_are_in(self, measurement: Measurement, *, others: int = 0, hidden: int = 0) -> None:
        """As many episodes, and their sum; a timer's may be hidden.

        `others`: segments that the kernel sent again since a busy machine was late with their ACK.
        `hidden`: episodes that are unmatched since their begin was hidden.
        """
        histogram = measurement.stage(RECOVERY).histogram
        count = len(self._at_most_ns)
        assert min(counts_of(count)) - hidden <= histogram.count <= count + others
        hidden_ns = max(self._at_least_ns) if histogram.count < count else 0
        assert sum(self._at_least_ns) - hidden_ns <= histogram.sum_ns
        assert others or histogram.sum_ns <= sum(self._at_most_ns)
        assert measurement.stage(RECOVERY).unmatched == hidden


class Reading:
    """What an engine has measured, over several readings."""

    def __init__(self, engine: KernelEngine) -> None:
        self._engine = engine
        self._so_far: dict[int, Measurement] = {}

    def of(self, slot: int) -> Measurement:
        for each, measurement in self._engine.read().items():
            self._so_far[each] = self._so_far.get(each, NOTHING) + measurement
        return self._so_far.get(slot, NOTHING)


def has_data(segment: Segment) -> bool:
    return segment.is_from_near and segment.size > 0


def answer_to(carried: list[Carried], lost: Carried) -> Carried:
    """The first segment that acknowledges a lost one."""
    end = lost.segment.seq + lost.segment.size + lost.segment.is_opening
    return next(
        each
        for each in carried
        if each.segment.is_from_near != lost.segment.is_from_near
        and not each.is_lost
        and each.taken_ns > lost.taken_ns
        and (each.segment.ack - end) % SEQUENCE_NUMBERS < SEQUENCE_NUMBERS // 2
    )


def ask(both: Connection) -> int:
    """Ask once; returns how long the client waited."""
    began_ns = time.monotonic_ns()
    both.client.sendall(b"q" * 64)
    read_all(both.server, 64)
    both.server.sendall(b"r" * 64)
    read_all(both.client, 64)
    return time.monotonic_ns() - began_ns


def move(source: socket.socket, target: socket.socket, amount: int) -> None:
    """Send as much as is read."""
    sending = threading.Thread(target=source.sendall, args=(bytes(amount),))
    sending.start()
    read_all(target, amount)
    sending.join()


def hook_of_recovery(engine: KernelEngine) -> str:
    (row,) = (each for each in engine.coverage if each.name == RECOVERY)
    return row.hook


def least_wait(scene: Scene, lost: Carried) -> int:
    """From a lost segment until its ACK, where others follow it.

    Before 5.19 no hook has the time of the lost one, if others were acknowledged before it: then it
    is from the last of these on.
    """
    carried = scene.wire.carried
    ack = answer_to(carried, lost)
    if "tcp_cong_state_set" in hook_of_recovery(scene.engine):
        return ack.given_ns - lost.taken_ns
    others = (
        each.taken_ns
        for each in carried
        if each.segment.is_from_near
        and (each.segment.size or each.segment.is_ending)
        and each.segment.seq != lost.segment.seq
        and each.taken_ns < ack.given_ns
    )
    return ack.given_ns - max(others, default=lost.taken_ns)


def waited(wire: LossyWire, already: int) -> int:
    """From the first loss after those that were there already until its ACK, as the wire saw it."""
    first = wire.lost[already]
    return answer_to(wire.carried, first).given_ns - first.taken_ns


async def test_a_time_out_costs_the_time_until_the_ack(start_engine: Start, typed: bool) -> None:
    waits = Waits()
    async with measured(start_engine, typed=typed) as scene:
        scene.near.execute("sysctl", "-qw", "net.ipv4.tcp_early_retrans=0")  # no probes
        with scene.connection() as both:
            ask(both)
            for _ in range(EPISODES):
                already = len(scene.wire.lost)
                scene.wire.lose_first(2, has_data)
                asked_ns = ask(both)
                waits.add(waited(scene.wire, already), asked_ns)
            kernel = tcp_figures(scene.near)
        client = Reading(scene.engine).of(CLIENT)
    assert kernel["TCPTimeouts"] == kernel["RetransSegs"] >= 2 * EPISODES
    assert client.counters["rtos"] in counts_of(kernel["TCPTimeouts"])
    waits.assert_are_in(client, others=kernel["RetransSegs"] - 2 * EPISODES)


async def test_a_tail_loss_probe_costs_the_time_until_the_ack(
    start_engine: Start, typed: bool
) -> None:
    waits = Waits()
    async with measured(start_engine, typed=typed) as scene:
        with scene.connection() as both:
            for _ in range(EPISODES):
                ask(both)  # else the kernel takes the probe before for one under way
                already = len(scene.wire.lost)
                scene.wire.lose_first(1, has_data)
                asked_ns = ask(both)
                waits.add(waited(scene.wire, already), asked_ns)
            kernel = tcp_figures(scene.near)
        client = Reading(scene.engine).of(CLIENT)
    assert kernel["TCPLossProbes"] > 0
    # After a halt of the machine, the timer may have expired, too.
    assert kernel["TCPLossProbes"] + kernel["TCPTimeouts"] == kernel["RetransSegs"] >= EPISODES
    waits.assert_are_in(client, others=kernel["RetransSegs"] - EPISODES)


async def test_a_lost_segment_among_others_costs_the_time_until_its_ack(
    start_engine: Start, typed: bool
) -> None:
    """Those behind it are acknowledged selectively, so it is sent again at once."""
    waits = Waits()
    async with measured(start_engine, typed=typed) as scene:
        with scene.connection() as both:
            for _ in range(EPISODES):
                ask(both)
                already = len(scene.wire.lost)
                scene.wire.lose_number(3, has_data)
                began_ns = time.monotonic_ns()
                for _ in range(BURST):
                    both.client.sendall(b"q" * 64)
                read_all(both.server, BURST * 64)
                both.server.sendall(b"r")
                read_all(both.client, 1)
                lost = scene.wire.lost[already]
                waits.add(least_wait(scene, lost), time.monotonic_ns() - began_ns)
            kernel = tcp_figures(scene.near)
        client = Reading(scene.engine).of(CLIENT)
    # A sender that this machine halts among its segments has a probe sent instead, or its timer
    # expires.
    by_timer = kernel["TCPLossProbes"] + kernel["TCPTimeouts"]
    assert EPISODES - by_timer <= kernel["TCPFastRetrans"] > 0
    waits.assert_are_in(client, others=kernel["RetransSegs"] - EPISODES)
    assert not client.counters.get("droppedAndResent")  # the wire has lost them, not the node


async def test_a_black_hole_that_ends_is_one_episode(start_engine: Start, typed: bool) -> None:
    async with measured(start_engine, typed=typed) as scene:
        waits, reading = Waits(), Reading(scene.engine)
        with scene.connection() as both:
            ask(both)
            scene.wire.loses = lambda segment: True
            began_ns = time.monotonic_ns()
            both.client.sendall(b"q" * 64)
            until(lambda: tcp_figures(scene.near)["TCPTimeouts"] >= 2, "two time-outs")
            read_at_ns = time.monotonic_ns()
            under_way = reading.of(CLIENT)
            # A bare ACK may have been lost before it.
            data = next(each for each in scene.wire.lost if has_data(each.segment))
            if are_bound_by_btf(scene.engine):
                pending = (under_way.pending or {})["unacknowledgedRetransmits"]
                assert pending.oldest_ns - (read_at_ns - data.taken_ns) >= 0
            assert RECOVERY not in under_way.stages
            scene.wire.loses = lambda segment: False
            read_all(both.server, 64)
            both.server.sendall(b"r")
            read_all(both.client, 1)
            ack = answer_to(scene.wire.carried, data)
            waits.add(ack.given_ns - data.taken_ns, time.monotonic_ns() - began_ns)
            waits.assert_are_in(reading.of(CLIENT))


async def test_a_connection_that_gives_up_has_waited_until_then(
    start_engine: Start, typed: bool
) -> None:
    async with measured(start_engine, typed=typed) as scene:
        waits = Waits()
        with scene.connection() as both:
            ask(both)
            both.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 700)
            both.client.settimeout(None)
            scene.wire.loses = lambda segment: True
            began_ns = time.monotonic_ns()
            both.client.sendall(b"q" * 64)
            with pytest.raises(TimeoutError) as raised:
                both.client.recv(1)
            ended_ns = time.monotonic_ns()
            assert raised.value.errno == errno.ETIMEDOUT
            lost = [each for each in scene.wire.lost if has_data(each.segment)]
            waits.add(lost[-1].taken_ns - lost[0].taken_ns, ended_ns - began_ns)
            waits.assert_are_in(Reading(scene.engine).of(CLIENT))


async def test_an_answer_lost_after_close_costs_the_time_until_its_ack(
    start_engine: Start, typed: bool
) -> None:
    async with measured(start_engine, typed=typed) as scene:
        waits, reading = Waits(), Reading(scene.engine)
        with scene.connection() as both:
            ask(both)
            scene.wire.lose_first(2, lambda segment: segment.is_from_near)
            began_ns = time.monotonic_ns()
            both.client.sendall(b"a" * 64)
            both.client.close()
            read_all(both.server, 64)
            assert both.server.recv(1) == b""
            data = next(each for each in scene.wire.lost if each.segment.size)
            until(lambda: RECOVERY in reading.of(CLIENT).stages, "the episode's end")
            waits.add(least_wait(scene, data), time.monotonic_ns() - began_ns)
            waits.assert_are_in(reading.of(CLIENT))


async def test_a_connect_whose_syn_was_repeated_costs_all_of_its_time(
    start_engine: Start, typed: bool
) -> None:
    async with measured(start_engine, typed=typed) as scene:
        waits = Waits()
        scene.wire.lose_first(1, lambda segment: segment.is_syn)
        began_ns = time.monotonic_ns()
        with scene.connection() as both:
            waits.add(waited(scene.wire, 0), time.monotonic_ns() - began_ns)
            ask(both)
        client = Reading(scene.engine).of(CLIENT)
        kernel = tcp_figures(scene.near)
    assert client.counters["connectRetransmits"] == kernel["TCPSynRetrans"] == 1
    waits.assert_are_in(client)
    connects = client.stage("tcp.connect").histogram
    assert connects.sum_ns == client.stage(RECOVERY).histogram.sum_ns


async def test_a_connect_that_times_out_costs_its_time(start_engine: Start, typed: bool) -> None:
    async with measured(start_engine, typed=typed) as scene:
        waits = Waits()
        scene.near.execute("sysctl", "-qw", "net.ipv4.tcp_syn_retries=1")
        scene.wire.loses = lambda segment: segment.is_syn
        with inside(scene.near):
            asking = socket.socket()
        with asking:
            began_ns = time.monotonic_ns()
            error = asking.connect_ex((scene.address, PORT))
            ended_ns = time.monotonic_ns()
        sent = scene.wire.lost
        waits.add(sent[-1].taken_ns - sent[0].taken_ns, ended_ns - began_ns)
        client = Reading(scene.engine).of(CLIENT)
        kernel = tcp_figures(scene.near)
    assert error == errno.ETIMEDOUT
    for counter in ("connectTimedOut", "connectRetransmits"):
        assert client.counters.get(counter, 0) in counts_of(1), counter
    assert kernel["TCPSynRetrans"] == len(sent) - 1
    waits.assert_are_in(client)


async def test_passive_opens_whose_syn_ack_was_repeated_cost_all_of_their_time(
    start_engine: Start, typed: bool
) -> None:
    waits = Waits()
    async with measured(start_engine, typed=typed) as scene:
        for already in range(EPISODES):
            scene.wire.lose_first(1, lambda segment: segment.is_syn_ack)
            began_ns = time.monotonic_ns()
            with scene.connection() as both:
                waits.add(waited(scene.wire, already), time.monotonic_ns() - began_ns)
                ask(both)
        server = Reading(scene.engine).of(SERVER)
        kernel = tcp_figures(scene.far)
    assert kernel["TCPSynRetrans"] >= EPISODES
    assert server.counters["handshakeRetransmits"] == EPISODES
    assert "tcp.handshake" not in server.stages
    # The second SYN-ACK is a timer's, and one of them was hidden in a guest, too.
    recovery = server.stage(RECOVERY)
    assert recovery.unmatched <= 1
    assert recovery.histogram.count + recovery.unmatched == EPISODES
    waits.assert_are_in(server, hidden=recovery.unmatched)


@asynccontextmanager
async def measured_by_cgroup(
    start: Start, *, typed: bool
) -> AsyncIterator[tuple[Scene, Connection]]:
    """With programs on the target's cgroup, where the engine may use them."""
    with lossy_wire() as wire, cgroup(wire.near.namespace.name) as directory:
        engine = start(typed=typed, on_devices=True)
        spec = SlotSpec(
            cgroup_ids=frozenset({directory.stat().st_ino}),
            cgroup_directories=frozenset({str(directory)}),
            netns=frozenset({wire.near.namespace.inode}),
        )
        engine.assign({CLIENT: spec})
        await engine.use(frozenset(DEFAULT_MODULES))
        scene = Scene(wire, engine)
        with inside_cgroup(directory), scene.connection() as both:
            yield scene, both


def sees_all_acks(engine: KernelEngine) -> bool:
    return "cgroup_skb/ingress" in hook_of_recovery(engine)


@pytest.mark.second_choice
async def test_episodes_of_a_target_by_cgroup_are_as_long(start_engine: Start, typed: bool) -> None:
    waits = Waits()
    async with measured_by_cgroup(start_engine, typed=typed) as (scene, both):
        for _ in range(EPISODES):
            ask(both)
            already = len(scene.wire.lost)
            scene.wire.lose_first(2, has_data)
            asked_ns = ask(both)
            waits.add(waited(scene.wire, already), asked_ns)
        others = sent_again(scene.near) - 2 * EPISODES
        waits.assert_are_in(Reading(scene.engine).of(CLIENT), others=others)


@pytest.mark.second_choice
async def test_an_end_that_no_hook_saw_is_unmatched(start_engine: Start, typed: bool) -> None:
    """The peer has closed its side, so the connection is not established any more."""
    async with measured_by_cgroup(start_engine, typed=typed) as (scene, both):
        reading = Reading(scene.engine)
        ask(both)
        both.server.shutdown(socket.SHUT_WR)
        assert both.client.recv(1) == b""
        scene.wire.lose_first(2, has_data)
        both.client.sendall(b"q" * 64)
        read_all(both.server, 64)
        scene.wire.loses = lambda segment: False
        for _ in range(2):  # the first of them is not what directly precedes the end
            both.client.sendall(b"q" * 64)
            read_all(both.server, 64)
        both.client.close()
        assert both.server.recv(1) == b""
        both.server.close()
        until(lambda: account_for(reading.of(CLIENT), RECOVERY) != (0, 0), "the episode's end")
        is_seen = sees_all_acks(scene.engine)
        assert account_for(reading.of(CLIENT), RECOVERY) == ((1, 0) if is_seen else (0, 1))


async def test_segments_that_the_peer_had_already_are_counted(
    start_engine: Start, typed: bool
) -> None:
    """Its ACK was lost, and it says so of what is sent again."""
    async with measured(start_engine, typed=typed) as scene:
        waits = Waits()
        with scene.connection() as both:
            ask(both)
            scene.wire.lose_first(1, lambda segment: not segment.is_from_near)
            before = len(scene.wire.carried)
            began_ns = time.monotonic_ns()
            both.client.sendall(b"q" * 64)
            read_all(both.server, 64)
            until(lambda: tcp_figures(scene.near)["TCPDSACKRecv"] >= 1, "the peer's report")
            sent = next(each for each in scene.wire.carried[before:] if has_data(each.segment))
            ack = answer_to(scene.wire.carried, sent)
            waits.add(ack.given_ns - sent.taken_ns, time.monotonic_ns() - began_ns)
            both.server.sendall(b"r")
            read_all(both.client, 1)
            ask(both)
            kernel = tcp_figures(scene.near)
        client = Reading(scene.engine).of(CLIENT)
    assert client.counters.get("spuriousRetransmits", 0) in counts_of(kernel["TCPDSACKRecv"])
    waits.assert_are_in(client, others=kernel["RetransSegs"] - 1)


async def test_healthy_load_has_no_episode(start_engine: Start, typed: bool) -> None:
    async with measured(start_engine, typed=typed) as scene:
        reading = Reading(scene.engine)
        with listen(scene.far, scene.address) as listener:
            for _ in range(20):
                asking = connect(scene.near, scene.address)
                answering = listener.accept()[0]
                with asking, answering:
                    answering.settimeout(PATIENCE_SECONDS)
                    for _ in range(20):
                        ask(Connection(asking, answering))
                    move(asking, answering, 1 << 18)
                    move(answering, asking, 1 << 18)
        for slot, namespace in ((CLIENT, scene.near), (SERVER, scene.far)):
            kernel = tcp_figures(namespace)
            measurement = reading.of(slot)
            assert measurement.stage("tcp.rtt").histogram.count >= 20 * 20
            episodes = measurement.stage(RECOVERY)
            assert episodes.histogram.count <= kernel["RetransSegs"]
            assert episodes.unmatched == episodes.lost == 0
            assert "connectRetransmits" not in measurement.counters
