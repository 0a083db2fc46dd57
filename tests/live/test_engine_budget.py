"""The cost of the programs, and the budget that they are kept to."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.histogram import position_of
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.contract import ASSUMED_DISPATCH_NS
from latencyprobe_agent.kernel.runtime import dispatch
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.loaded_programs import links_of, programs_of
from tests.live.measuring import CLIENT, SERVER, both, count, measure
from tests.live.pods import Pod
from tests.patience import patient
from tests.unit.agent.running import until

Start = Callable[..., KernelEngine]
PERIODS = 4


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
def even_load(client: Pod, server: Pod, *, late_ms: float = 0) -> Iterator[None]:
    """Requests at an even pace, until the end; `late_ms`: the server reads them so late."""
    where = (server.address, "7000", "1000000")
    serving = server.start("server", *where, "--read-delay-ms", str(late_ms))
    asking = client.start("client", *where, "--gap-ms", "0" if late_ms else "0.5")
    try:
        asking.go()
        yield
    finally:
        asking.stop()
        serving.stop()


@dataclass(frozen=True)
class Seen:
    """The measurements of whole periods, by an engine in time slices and by one beside it."""

    in_slices: Mapping[int, Measurement]
    always: Mapping[int, Measurement]

    def stages(self, name: str) -> Iterator[tuple[StageMeasurement, StageMeasurement]]:
        """Yield what both have of a stage, for each slot that has some of it."""
        for slot, always in self.always.items():
            if always.stage(name).histogram.count:
                yield self.in_slices[slot].stage(name), always.stage(name)


async def seen_in_slices(
    start: Start, client: Pod, server: Pod, *, shift: int = 0, late_ms: float = 0
) -> Seen:
    """Measure an even load for four periods of time slices, a quarter of the time."""
    always = await both(start, client, server)
    sliced = await both(start, client, server)
    in_slices: defaultdict[int, Measurement] = defaultdict(Measurement)
    in_full: defaultdict[int, Measurement] = defaultdict(Measurement)
    read = 0
    begin_period = sliced._begin_period

    def read_both() -> None:
        for engine, sums in ((sliced, in_slices), (always, in_full)):
            for slot, measurement in engine.read().items():
                sums[slot] += measurement

    def read_period() -> int:
        nonlocal read
        if read < PERIODS:
            read_both()
        read += 1
        return begin_period()

    sliced._begin_period = read_period  # type: ignore[method-assign]
    with even_load(client, server, late_ms=late_ms):
        await until(always.read, "traffic")
        sliced.sample(shift, 2)
        sliced.read()
        always.read()
        await until(lambda: read >= PERIODS, f"{PERIODS} periods", seconds=patient(30))
    return Seen(in_slices, in_full)


SLICED = ("rx.total", "rx.socket", "tx.total", "tcp.rtt", "app.response", "peer.response")


async def test_time_slices_measure_their_part_of_the_packets(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    seen = await seen_in_slices(start_engine, *pair)
    for name in SLICED:
        found = list(seen.stages(name))
        assert found
        for in_slices, always in found:
            assert in_slices.sampling_ratio == 0.25
            assert 0.2 < in_slices.histogram.count / always.histogram.count < 0.3
            assert in_slices.lost == 0
            assert in_slices.unmatched <= 0.01 * in_slices.histogram.count


async def test_one_packet_in_16_has_the_percentiles_of_all(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    seen = await seen_in_slices(start_engine, *pair, shift=2, late_ms=0.5)
    sampled, whole = (each[SERVER].stage("rx.total") for each in (seen.in_slices, seen.always))
    assert sampled.sampling_ratio == 1 / 16
    assert sampled.histogram.count > 50
    for percent in (50, 90):
        expected = position_of(whole.histogram.percentile(percent))
        assert abs(position_of(sampled.histogram.percentile(percent)) - expected) <= 1


async def test_connections_are_counted_between_time_slices(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    engine.sample(0, 5)
    slices = engine._slices
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
    await until(lambda: engine._slices is None, "the end of the period")
    measured, _ = await measure(engine, client, server, 50)
    for slot, name in ((SERVER, "rx.total"), (CLIENT, "tx.total"), (SERVER, "app.response")):
        assert count(measured[slot], name) == 50
        assert measured[slot].stage(name).sampling_ratio == 1
        assert measured[slot].stage(name).unmatched == 0


@pytest.mark.parametrize("module", [Module.RX, Module.TX])
async def test_a_stopped_module_has_no_program_and_a_reason(
    start_engine: Start, pair: tuple[Pod, Pod], module: Module
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    links = len(links_of(os.getpid()))
    coverage = engine.coverage
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
    assert engine.coverage == coverage
    again, _ = await measure(engine, client, server, 20)
    assert count(again[SERVER], f"{module}.total") == 20
