"""Module irq: the node's hard IRQs and softirqs, against the kernel's own counts of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from latencyprobe.domain.measurement import NodeMeasurement
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import TRIES, counts_of
from tests.live.measuring import CLIENT, SERVER, count, measure
from tests.live.pods import Pod

Start = Callable[..., KernelEngine]
Counts = Mapping[str, int]
Moments = tuple[Counts, Counts, Counts, Counts]
# One a CPU: the kernel counts them when they begin, and a sample is there at their end.
RUNNING = os.cpu_count() or 1

pytestmark = pytest.mark.unscoped


def softirqs() -> Counts:
    """By vector, of all CPUs."""
    _, *lines = Path("/proc/softirqs").read_text().splitlines()
    return {line.split()[0].rstrip(":"): sum(map(int, line.split()[1:])) for line in lines}


def interrupts() -> Counts:
    """By handler, of all CPUs: those that a device's driver asked for."""
    head, *lines = Path("/proc/interrupts").read_text().splitlines()
    cpus = len(head.split())
    counts: Counter[str] = Counter()
    for line in lines:
        number, *fields = line.split()
        if number.rstrip(":").isdigit() and len(fields) > cpus:
            # Those on one line are called one after another, each for every interrupt.
            for name in line.rpartition("  ")[2].split(", "):
                counts[name.strip()[:31]] += sum(map(int, fields[:cpus]))
    return counts


def of_node(engine: KernelEngine) -> NodeMeasurement:
    engine.read()
    return engine.read_node()


def runs(measured: NodeMeasurement, stage: str) -> Counts:
    """Samples of a stage by its detail."""
    return {
        key.detail: one.histogram.count for key, one in measured.stages.items() if key.name == stage
    }


def assert_none_is_made_up(measured: Counts, moments: Moments) -> None:
    """No more than what the kernel counted around it."""
    before, _, _, after = moments
    for name in before:
        assert measured.get(name, 0) <= after[name] - before[name] + RUNNING, name


def missed(measured: Counts, moments: Moments) -> set[str]:
    """Those of which more than a tenth is missing of what was counted while it was measured.

    A thread that is hidden from tracers hides what interrupts it: see agrees() in
    test_engine_sched.py. For a while that may be most of what a device has to tell.
    """
    _, begun, ending, _ = moments
    return {
        name
        for name in begun
        if measured.get(name, 0) < 0.9 * (ending[name] - begun[name]) - RUNNING
    }


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param(True, id="tp_btf", marks=pytest.mark.every_kernel),
        pytest.param(False, id="raw_tp"),
    ],
)
async def test_softirqs_and_interrupts_are_as_many_as_the_kernel_counts(
    start_engine: Start, pair: tuple[Pod, Pod], tmp_path: Path, typed: bool
) -> None:
    client, server = pair
    engine = start_engine(typed=typed)
    await engine.use(frozenset({Module.IRQ}))
    hidden: set[str] = set()
    for _ in TRIES:
        before = softirqs(), interrupts()
        of_node(engine)
        begun = softirqs(), interrupts()
        await measure(engine, client, server, 2000)
        write_to_disk(tmp_path)
        ending = softirqs(), interrupts()
        measured = of_node(engine)
        after = softirqs(), interrupts()
        vectors, handlers = zip(before, begun, ending, after, strict=True)
        assert vectors[3]["NET_RX"] - vectors[0]["NET_RX"] >= 4000
        ran, handled = runs(measured, "irq.softrun"), runs(measured, "irq.hard")
        assert_none_is_made_up(ran, vectors)
        assert_none_is_made_up(handled, handlers)
        hidden = missed(ran, vectors) | missed(handled, handlers)
        assert "NET_RX" not in hidden  # it runs in the threads that send
        if not hidden:
            assert sum(handled.values()) > 0
            return
    raise AssertionError(f"too few of {hidden} were seen, in each round")


def write_to_disk(folder: Path) -> None:
    """Something for a device's interrupt to tell of."""
    for index in range(20):
        with (folder / str(index)).open("wb") as file:
            file.write(os.urandom(100_000))
            os.fsync(file.fileno())


@pytest.mark.every_kernel
async def test_every_raised_softirq_ran(start_engine: Start, pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    engine = start_engine()
    await engine.use(frozenset({Module.IRQ}))
    of_node(engine)
    await measure(engine, client, server, 1000)
    measured = of_node(engine)
    ran = runs(measured, "irq.softrun")
    for key, stage in measured.stages.items():
        if key.name == "irq.softwait":
            assert stage.histogram.count + stage.unmatched == pytest.approx(ran[key.detail], abs=2)
            assert stage.unmatched <= 0.02 * ran[key.detail] + 2
    assert ran["NET_RX"] >= 2000


@pytest.mark.every_kernel
async def test_a_packet_that_no_interrupt_brought_has_no_rx_irq(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: client.spec(), SERVER: server.spec()})
    await engine.use(frozenset({Module.RX, Module.IRQ}))
    over_veth, _ = await measure(engine, client, server, 300)
    over_loopback, _ = await measure(engine, server, server, 300)
    assert count(over_veth[SERVER], "rx.total") in counts_of(300)
    assert count(over_loopback[SERVER], "rx.total") in counts_of(2 * 300)
    for measured in (over_veth[SERVER], over_veth[CLIENT], over_loopback[SERVER]):
        assert "rx.irq" not in measured.stages
        assert "rx.softirq" in measured.stages


async def test_the_node_is_measured_only_while_it_is_asked_for(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = start_engine()
    await engine.use(frozenset({Module.RX, Module.IRQ}))
    await measure(engine, client, server, 50)
    await engine.use(frozenset({Module.RX}))
    assert runs(engine.read_node(), "irq.softrun")["NET_RX"] > 50
    await measure(engine, client, server, 50)
    assert of_node(engine) == NodeMeasurement()
