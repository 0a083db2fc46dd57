"""The cost of the programs, and the budget that they are kept to."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.histogram import Histogram, position_of
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.budget import Budget
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import ASSUMED_DISPATCH_NS
from latencyprobe_agent.kernel.runtime import dispatch
from latencyprobe_agent.kernel.runtime.attachments import OffReason
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.sampling import Governor
from tests.live.loaded_programs import links_of, programs_of
from tests.live.measuring import (
    CLIENT,
    SERVER,
    both,
    count,
    lasting_coverage,
    measure,
    sent_counts,
    watch,
)
from tests.live.pods import Pod
from tests.live.sockets import exchange, open_between
from tests.patience import patient
from tests.unit.agent.running import until

Start = Callable[..., KernelEngine]
PERIODS = 4
SLICES_OF_A_LONG_CONNECTION = 8  # more than OVERLAPS_OF_A_MULTIPLEX, bpf/modules/turns.bpf.c


def name_of_this_thread() -> bytes:
    return Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_bytes()


def test_the_cost_of_a_call_is_measured_and_leaves_nothing() -> None:
    name, programs, links = name_of_this_thread(), programs_of(os.getpid()), links_of(os.getpid())
    found = dispatch.measure()
    if found.reason:
        assert found.ns == ASSUMED_DISPATCH_NS
        assert found.reason.endswith(" ns"), "neither a figure nor noise"
    else:
        assert dispatch.LEAST_NS <= found.ns <= dispatch.MOST_NS
    assert name_of_this_thread() == name
    assert (programs_of(os.getpid()), links_of(os.getpid())) == (programs, links)


@contextmanager
def even_load(
    client: Pod, server: Pod, *, gap_ms: float = 0.5, late_ms: float = 0
) -> Iterator[None]:
    """Requests at an even pace, until the end; `late_ms`: the server reads them so late."""
    where = (server.address, "7000", "1000000")
    serving = server.start("server", *where, "--read-delay-ms", str(late_ms))
    asking = client.start("client", *where, "--gap-ms", str(gap_ms))
    try:
        asking.go()
        yield
    finally:
        asking.stop()
        serving.stop()


class SlicesSeen:
    """What an engine measures in time slices, and what one beside it measures in the same time.

    The other is read before a slice opens and after that, and so again where the slice closes.
    `within`: what ends between the inner readings; `around`: between the outer ones.
    """

    def __init__(self, sliced: KernelEngine, always: KernelEngine) -> None:
        assert sliced._object is not None
        self._sliced, self._always = sliced, always
        self._measure_packets = sliced._object.packets.measure_packets
        self._begin_period = sliced._sampler._begin_period
        sliced._object.packets.measure_packets = self._change_and_read  # type: ignore[method-assign]
        sliced._sampler._begin_period = self._end_period  # type: ignore[method-assign]
        self.in_slices: defaultdict[int, Measurement] = defaultdict(Measurement)
        self.within: defaultdict[int, Measurement] = defaultdict(Measurement)
        self.around: defaultdict[int, Measurement] = defaultdict(Measurement)
        self.periods = 0
        self.open_s = self.whole_s = 0.0
        # The slices may differ from a quarter by how late timers were, and by what readings took.
        self.late_s = self.reading_s = 0.0
        self._is_open = False
        self._began_s = self._opened_s = 0.0

    def begin(self, shift: int) -> None:
        """Begin time slices, a quarter of the time."""
        self._began_s = time.monotonic()
        self._sliced.sample(shift, 2)
        self._sliced.read()

    def stages(
        self, name: str
    ) -> Iterator[tuple[StageMeasurement, StageMeasurement, StageMeasurement]]:
        """Yield this stage in slices, within and around them, for each slot that has some of it."""
        for slot, around in self.around.items():
            if around.stage(name).histogram.count:
                yield (
                    self.in_slices[slot].stage(name),
                    self.within[slot].stage(name),
                    around.stage(name),
                )

    def _change_and_read(self, wanted: bool) -> None:
        if wanted == self._is_open or self.periods == PERIODS:
            self._measure_packets(wanted)
            return
        self._is_open = wanted
        began_s = time.monotonic()
        if wanted:
            self._always.read()
            self._opened_s = time.monotonic()
        else:
            self.late_s += self._lateness_s()
            self._read_always(self.within, self.around)
            self.open_s += time.monotonic() - self._opened_s
        self._measure_packets(wanted)
        self._read_always(self.around)
        self.reading_s += time.monotonic() - began_s

    def _end_period(self) -> int:
        if self.periods < PERIODS:
            self.periods += 1
            self.whole_s = time.monotonic() - self._began_s
            if self.periods == PERIODS:
                self.late_s += self._lateness_s()
            add_all(self.in_slices, self._sliced.read())
        return self._begin_period()

    def _lateness_s(self) -> float:
        """How late the timer is that has just called the slices."""
        slices = self._sliced._sampler.slices
        assert slices is not None
        assert slices._timer is not None
        return time.monotonic() - slices._timer.when()

    def _read_always(self, *sums: defaultdict[int, Measurement]) -> None:
        read = self._always.read()
        for each in sums:
            add_all(each, read)


def add_all(sums: defaultdict[int, Measurement], measurements: Mapping[int, Measurement]) -> None:
    for slot, measurement in measurements.items():
        sums[slot] += measurement


async def seen_in_slices(
    start: Start, client: Pod, server: Pod, *, shift: int = 0, late_ms: float = 0
) -> SlicesSeen:
    """Measure an even load for four periods of time slices, a quarter of the time."""
    always = await both(start, client, server)
    sliced = await both(start, client, server)
    seen = SlicesSeen(sliced, always)
    with even_load(client, server, gap_ms=0 if late_ms else 0.5, late_ms=late_ms):
        await until(always.read, "traffic")
        seen.begin(shift)
        await until(lambda: seen.periods >= PERIODS, f"{PERIODS} periods", seconds=patient(30))
    return seen


SLICED = ("rx.total", "rx.socket", "tx.total", "tcp.rtt", "app.response", "peer.response")


async def test_time_slices_measure_their_part_of_the_packets(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    seen = await seen_in_slices(start_engine, *pair)
    for name in SLICED:
        found = list(seen.stages(name))
        assert found
        for in_slices, within, around in found:
            assert in_slices.sampling_ratio == 0.25
            # at each edge, one is under way: it began before a slice, or ends after the reading
            least, most = within.histogram.count - PERIODS, around.histogram.count + PERIODS
            assert 100 < least <= in_slices.histogram.count <= most, name
            assert in_slices.lost == 0
            assert in_slices.unmatched <= 0.01 * in_slices.histogram.count


def where_percentile_is(
    percent: float, samples: int, within: Histogram, around: Histogram
) -> range:
    """The positions of a percentile of random samples: of all, by four standard errors.

    One bucket more on each side. What is around, and not within, may be among the samples or not.
    """
    error = 4 * math.sqrt(percent * (100 - percent) / samples)
    error += 100 * (around.count - within.count) / within.count
    lowest, highest = max(percent - error, 0), min(percent + error, 100)
    first, last = (position_of(within.percentile(each)) for each in (lowest, highest))
    return range(first - 1, last + 2)


@pytest.mark.thorough
async def test_time_slices_are_a_quarter_of_the_time(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    seen = await seen_in_slices(start_engine, *pair)
    assert abs(seen.open_s - 0.25 * seen.whole_s) <= seen.late_s + seen.reading_s


async def test_one_packet_in_16_has_the_percentiles_of_all(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    seen = await seen_in_slices(start_engine, *pair, shift=2, late_ms=0.5)
    sampled, within, around = (
        each[SERVER].stage("rx.total") for each in (seen.in_slices, seen.within, seen.around)
    )
    assert sampled.sampling_ratio == 1 / 16
    samples = sampled.histogram.count
    assert samples > 50
    assert around.histogram.count < 1.2 * within.histogram.count  # else it says nothing
    for percent in (50, 90):
        found = position_of(sampled.histogram.percentile(percent))
        assert found in where_percentile_is(percent, samples, within.histogram, around.histogram)


async def test_connections_are_counted_between_time_slices(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    engine.sample(0, 5)
    slices = engine._sampler.slices
    assert slices is not None
    await until(lambda: engine.overhead().figure, "the end of a time slice")
    measured, _ = await measure(engine, client, server, 30)
    assert count(measured[CLIENT], "tcp.connect") == 1
    assert count(measured[SERVER], "tcp.handshake") == 1
    assert measured[CLIENT].stage("tcp.connect").sampling_ratio == 1
    assert count(measured[SERVER], "rx.total") == 0


async def test_without_time_slices_each_packet_is_measured_again(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    engine.sample(0, 1)
    await until(lambda: engine.overhead().figure, "the end of a time slice")
    engine.sample(0, 0)
    await until(lambda: engine._sampler.slices is None, "the end of the period")
    measured, _ = await measure(engine, client, server, 50)
    assert count(measured[SERVER], "rx.total") == count(measured[SERVER], "app.response") == 50
    assert count(measured[CLIENT], "tx.total") in sent_counts(50, measured[CLIENT])
    for slot, name in ((SERVER, "rx.total"), (CLIENT, "tx.total"), (SERVER, "app.response")):
        assert measured[slot].stage(name).sampling_ratio == 1
        assert measured[slot].stage(name).unmatched == 0


async def test_turns_while_a_slice_is_attached_never_cost_a_connection_its_responses(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    """The programs of a slice come one after another: a read is seen, and its answer not yet."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    loaded = engine._object
    assert loaded is not None
    sends = tuple(name for name in loaded.modules.of_packets() if "sendmsg" in name)
    assert sends
    with open_between(client, server) as opened:
        for _ in range(SLICES_OF_A_LONG_CONNECTION):
            loaded.packets.end_slice()
            loaded.packets.begin_slice()
            loaded.packets._attachments.keep_off(OffReason.BETWEEN_SLICES, sends)
            exchange(opened, 1)
            loaded.packets._attachments.keep_off(OffReason.BETWEEN_SLICES, ())
            loaded.packets.measure_packets(True)
            exchange(opened, 3)
            loaded.packets.measure_packets(False)
    measured = engine.read()[SERVER].stage("app.response")
    # The first of a slice may be the answer to what was asked before it.
    assert measured.histogram.count >= 2 * SLICES_OF_A_LONG_CONNECTION
    assert measured.unmatched <= SLICES_OF_A_LONG_CONNECTION


@pytest.mark.parametrize("module", [Module.RX, Module.TX])
async def test_a_stopped_module_has_no_program_and_a_reason(
    start_engine: Start, pair: tuple[Pod, Pod], module: Module
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    links = len(links_of(os.getpid()))
    coverage = lasting_coverage(engine)
    engine.stop(frozenset({module}))
    assert len(links_of(os.getpid())) < links
    stages = {stage.name: stage for stage in engine.coverage}
    total = stages[f"{module}.total"]
    assert total.state is CoverageState.UNAVAILABLE
    assert total.reason == (
        f"module {module} is stopped: the eBPF programs would exceed their budget"
    )
    measured, _ = await measure(engine, client, server, 20)
    assert count(measured[SERVER], f"{module}.total") == 0
    assert count(measured[SERVER], "app.response") == 20
    engine.stop(frozenset())
    assert lasting_coverage(engine) == coverage
    again, _ = await measure(engine, client, server, 20)
    counts = sent_counts(20, again[SERVER]) if module is Module.TX else [20]
    assert count(again[SERVER], f"{module}.total") in counts


@dataclass
class Paid:
    """What packets have paid until the beginnings of periods, by the kernel's own counts."""

    engine: KernelEngine
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    # What the engine says of the slice of the period that ends.
    figures: list[float | None] = field(default_factory=list)

    def note(self) -> None:
        assert self.engine._object is not None
        self.figures.append(self.engine.overhead().cpu_percent)
        runs = self.engine._object.run_statistics.runs().values()
        spent_ns = sum(each.time_ns + each.number * ASSUMED_DISPATCH_NS for each in runs)
        self.seconds.append(time.monotonic())
        self.cpu_seconds.append(spent_ns / 1e9)

    def percent(self, periods: int) -> float:
        """The cost of the last periods, in percent of one core."""
        spent = self.cpu_seconds[-1] - self.cpu_seconds[-1 - periods]
        return 100 * spent / (self.seconds[-1] - self.seconds[-1 - periods])

    def reported_percent(self, periods: int) -> float:
        """The same by the engine's figures."""
        return mean(figure for figure in self.figures[-periods:] if figure is not None)


BUDGET_PERCENT = 1.0


@pytest.mark.thorough
async def test_the_budget_is_kept_under_a_saturating_load(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    governor, paid = Governor(), Paid(engine)
    governor.keep_to(Budget(BUDGET_PERCENT), DEFAULT_MODULES)
    begin_period = engine._sampler._begin_period
    settled = 0

    def note_period() -> int:
        paid.note()
        return begin_period()

    def is_kept() -> bool:
        """Judge as the agent does; true after three whole periods without a change."""
        nonlocal settled
        if governor.judge(engine.overhead()):
            engine.sample(governor.effort.packets, governor.effort.slices)
            settled = len(paid.seconds) + 1
        return governor.effort.slices > 0 and len(paid.seconds) - settled > 2

    engine._sampler._begin_period = note_period  # type: ignore[method-assign]
    statistics = libbpf.enable_run_time_statistics()
    try:
        with even_load(client, server, gap_ms=0):
            await until(is_kept, "three periods without a change", seconds=patient(60))
    finally:
        os.close(statistics)
    overhead = engine.overhead()
    assert overhead.cpu_percent is not None
    assert overhead.cpu_percent <= BUDGET_PERCENT
    assert paid.percent(2) <= 1.2 * BUDGET_PERCENT
    assert paid.percent(2) == pytest.approx(paid.reported_percent(2), rel=0.5)
    assert governor.stopped == frozenset()
