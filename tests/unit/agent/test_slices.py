"""Time slices: the programs of packets are attached for their part of the time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.stages import BY_NAME, STAGES, Module
from latencyprobe_agent.kernel.contract import (
    LEAST_COST_SAMPLE_S,
    EngineError,
    attached_share,
    slice_s,
)
from latencyprobe_agent.kernel.hooks import (
    EVENTS,
    EVENTS_OF_PACKETS,
    functions_of_packets,
    functions_without,
)
from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason
from latencyprobe_agent.kernel.runtime.slices import TimeSlices
from latencyprobe_agent.kernel.runtime.statistics import SamplingRatios

ALL = frozenset(Module)


@dataclass
class Timer:
    """A call of the scripted loop."""

    call: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Loop:
    """An event loop whose timers are late by as much as the test says."""

    late: Callable[[], float] = lambda: 0.0
    now: float = 100.0
    calls: list[tuple[float, int, Timer]] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self.calls, (max(when, self.now) + self.late(), next(self.numbers), timer))
        return timer

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        return self.call_at(self.now + delay, call)

    def run(self, until: float) -> None:
        while self.calls and self.calls[0][0] <= until:
            when, _, timer = heapq.heappop(self.calls)
            self.now = max(self.now, when)
            if not timer.is_cancelled:
                timer.call()
        self.now = until


@dataclass
class Programs:
    """Programs that note when they were attached and measured."""

    loop: Loop
    fails: bool = False
    is_attached: bool = True
    measured_s: float = 0.0
    attached_s: float = 0.0
    _since: float = 0.0
    _attached_at: float = 0.0

    def begin_slice(self) -> None:
        if self.fails:
            raise EngineError("cannot attach the eBPF programs: no memory")
        self.is_attached = True
        self._attached_at = self.loop.now

    def measure_packets(self, wanted: bool) -> None:
        assert self.is_attached or self.fails
        if wanted:
            self._since = self.loop.now
        else:
            self.measured_s += self.loop.now - self._since

    def end_slice(self) -> None:
        self.is_attached = False
        self.attached_s += self.loop.now - self._attached_at

    def end_slices(self) -> None:
        self.is_attached = True


@dataclass
class Clock:
    """Samples of the cost, by the shifts of their time slices, and how long they took."""

    loop: Loop
    shifts: list[int] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    _began: float | None = None

    def begin(self) -> None:
        self._began = self.loop.now

    def end(self, slice_shift: int) -> None:
        self.shifts.append(slice_shift)
        if self._began is not None:
            self.samples.append(self.loop.now - self._began)
            self._began = None


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    made = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


def started(
    loop: Loop, programs: Programs, shift: int, wanted: Callable[[], int] | None = None
) -> tuple[TimeSlices, Clock]:
    clock = Clock(loop)
    made = TimeSlices(programs, clock, wanted or (lambda: shift))  # type: ignore[arg-type]
    made.start(shift)
    return made, clock


@pytest.mark.parametrize("shift", range(1, 8))
def test_packets_are_measured_for_one_part_of_the_time_in_two_to_the_shift(
    loop: Loop, shift: int
) -> None:
    programs = Programs(loop)
    made, clock = started(loop, programs, shift)
    loop.run(loop.now + 10 * made.period_s - 0.001)
    assert programs.measured_s == pytest.approx(10 * made.period_s / 2**shift)
    assert programs.attached_s == pytest.approx(10 * made.period_s * attached_share(shift))
    assert clock.shifts == [shift] * 10
    # the kernel's statistics lengthen the stages of packets
    sampled_s = sum(clock.samples)
    assert sampled_s == pytest.approx(10 * max(slice_s(shift) / 8, LEAST_COST_SAMPLE_S))
    assert sampled_s < programs.measured_s / 2


@given(st.lists(st.floats(0, 0.05), min_size=7, max_size=7), st.integers(1, 5))
def test_late_timers_change_no_ratio_and_make_no_sample_of_no_time(
    delays: list[float], shift: int
) -> None:
    turn = count()
    loop = Loop(lambda: delays[next(turn) % len(delays)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: loop)
        programs = Programs(loop)
        made, clock = started(loop, programs, shift)
        began, rounds = loop.now, 40
        loop.run(began + rounds * (made.period_s + 1))
    # The last period may have begun just now, with its slice.
    assert programs.measured_s == pytest.approx(
        (loop.now - began) / 2**shift, abs=0.1 + slice_s(shift)
    )
    assert min(clock.samples) >= LEAST_COST_SAMPLE_S / 2 - 1e-9


def test_another_ratio_holds_from_the_next_period(loop: Loop) -> None:
    programs, wanted = Programs(loop), [1]
    made, clock = started(loop, programs, 1, lambda: wanted[0])
    loop.run(loop.now + 0.5)
    wanted[0] = 3
    loop.run(loop.now + 1.4)
    assert programs.measured_s == pytest.approx(slice_s(1))
    loop.run(loop.now + 2)
    assert clock.shifts == [1, 3]
    assert programs.measured_s == pytest.approx(slice_s(1) + slice_s(3))
    wanted[0] = 0
    loop.run(loop.now + 10)
    assert len(clock.shifts) == 2
    assert not loop.calls
    made.stop()


def test_no_phase_begins_after_the_stop(loop: Loop) -> None:
    programs = Programs(loop)
    made, clock = started(loop, programs, 2)
    made.stop()
    made.stop()
    loop.run(loop.now + 100)
    assert programs.measured_s == 0
    assert not clock.shifts


def test_programs_that_cannot_be_attached_are_tried_again_in_the_next_period(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    programs = Programs(loop, fails=True)
    _, clock = started(loop, programs, 1)
    loop.run(loop.now + 1.9)
    assert "no memory; trying again with the next time slice" in caplog.text
    assert not clock.samples
    programs.fails = False
    loop.run(loop.now + 2)
    assert len(clock.shifts) == 2
    assert clock.samples
    assert programs.attached_s > 0


# The programs


def first_hooks(modules: frozenset[Module]) -> Mapping[str, str]:
    """Each event of these modules with its first hook."""
    return {
        event.name: event.hooks[0].name(typed=True) for event in EVENTS if event.modules & modules
    }


def test_programs_of_packets_are_those_that_no_rare_event_needs() -> None:
    modules = frozenset({Module.RX, Module.TX, Module.TCP})
    functions = functions_of_packets(modules, first_hooks(modules), typed=True)
    assert {"on_tcp_probe", "on_tcp_sendmsg_locked", "on_net_dev_queue"} <= set(functions)
    rare = {"on_inet_sock_set_state", "on_tcp_retransmit_skb", "on_kfree_skb", "on_drop_sent"}
    assert not rare & set(functions)
    assert not [f for f in functions if "sched" in f or "destroy" in f or "process" in f]


def test_the_softirq_is_seen_after_its_interrupt_was_seen_for_the_last_time() -> None:
    modules = frozenset({Module.RX})
    functions = functions_of_packets(modules, first_hooks(modules), typed=True)
    assert functions[0] == "on_irq_handler_entry"
    assert functions[-1] == "on_softirq_entry"


def test_the_module_irq_keeps_its_programs() -> None:
    functions = functions_of_packets(ALL, first_hooks(ALL), typed=True)
    assert not [f for f in functions if "irq" in f]
    assert "on_netif_receive_skb" in functions


def test_each_event_of_packets_exists() -> None:
    assert set(EVENTS_OF_PACKETS) <= {event.name for event in EVENTS}


@pytest.mark.parametrize("module", Module)
def test_programs_of_other_modules_stay_attached_without_a_module(module: Module) -> None:
    hooks = first_hooks(ALL)
    gone = functions_without(ALL, frozenset({module}), hooks, typed=True)
    assert gone
    rest = ALL - {module}
    assert not set(gone) & set(functions_of_packets(rest, hooks, typed=True))
    assert functions_without(ALL, frozenset(), hooks, typed=True) == ()


# Ratios


def test_stages_of_packets_have_the_ratio_of_the_time_slices() -> None:
    ratios = SamplingRatios(1 / 8, 1 / 4)
    found = {stage.name: ratios.of_stage(stage) for stage in STAGES}
    assert found["rx.total"] == found["tx.qdisc"] == 1 / 32
    assert found["tcp.rtt"] == found["app.response"] == found["peer.response"] == 1 / 4
    for name in ("tcp.connect", "tcp.handshake", "tcp.accept", "sched.runqueue"):
        assert found[name] == 1
    assert SamplingRatios().of_stage(BY_NAME["rx.total"]) == 1


# What keeps programs off


@dataclass
class Attached:
    """Programs that are attached one by one."""

    functions: set[str]
    refused: str = ""

    def attach_one(self, function: str) -> None:
        if function == self.refused:
            raise OSError("no memory")
        self.functions.add(function)

    def detach_one(self, function: str) -> None:
        if function == self.refused:
            raise OSError("no memory")
        self.functions.discard(function)


def test_a_program_is_attached_again_with_its_last_reason() -> None:
    programs = Attached({"a", "b", "c"})
    attachments = Attachments(programs)
    attachments.keep_off(OffReason.BETWEEN_SLICES, ["a", "b"])
    attachments.keep_off(OffReason.ON_DEVICES, ["b"])
    assert programs.functions == {"c"}
    attachments.keep_off(OffReason.BETWEEN_SLICES, [])
    assert programs.functions == {"a", "c"}
    attachments.keep_off(OffReason.ON_DEVICES, [])
    assert programs.functions == {"a", "b", "c"}


def test_a_reason_whose_programs_are_refused_stays() -> None:
    programs = Attached({"a", "b"})
    attachments = Attachments(programs)
    attachments.keep_off(OffReason.STOPPED, ["a", "b"])
    programs.refused = "b"
    with pytest.raises(EngineError, match="no memory"):
        attachments.keep_off(OffReason.STOPPED, [])
    programs.refused = ""
    attachments.keep_off(OffReason.STOPPED, [])
    assert programs.functions == {"a", "b"}


def test_programs_that_cannot_be_detached_are_detached_with_the_next_call() -> None:
    programs = Attached({"a", "b"}, refused="b")
    attachments = Attachments(programs)
    with pytest.raises(EngineError, match="cannot detach the eBPF programs: no memory"):
        attachments.keep_off(OffReason.STOPPED, ["a", "b"])
    assert programs.functions == {"b"}
    programs.refused = ""
    attachments.keep_off(OffReason.STOPPED, ["a", "b"])
    assert programs.functions == set()
    attachments.keep_off(OffReason.STOPPED, [])
    assert programs.functions == {"a", "b"}
