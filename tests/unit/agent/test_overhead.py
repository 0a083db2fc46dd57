"""The cost of our programs: their run time and their calls, as far as the kernel reports them."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from itertools import count
from types import SimpleNamespace

import pytest

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import (
    ASSUMED_DISPATCH_NS,
    Dispatch,
    HookCost,
    Overhead,
    attached_share,
)
from latencyprobe_agent.kernel.runtime import dispatch, overhead
from latencyprobe_agent.kernel.runtime.dispatch import DispatchMeasurement, judge
from latencyprobe_agent.kernel.runtime.overhead import OverheadClock, costs_of_hooks
from latencyprobe_agent.kernel.runtime.run_statistics import Runs
from tests.unit.agent.running import until


def sliced() -> tuple[str, ...]:
    return ("on_send",)


class Programs:
    """Programs that have run for a while, each time that they are read."""

    def __init__(self, missed_runs: int = 0) -> None:
        self._runs = Runs(0, 0)
        self.missed = missed_runs

    def runs(self) -> Mapping[str, Runs]:
        self._runs = Runs(self._runs.number + 10_000, self._runs.time_ns + 100_000)
        return {"on_send": self._runs, "on_reset": self._runs}

    def hook_of(self, function: str) -> str:
        return f"tp_btf/{function}"

    def missed_runs(self) -> int:
        return self.missed


async def test_statistics_that_lack_a_descriptor_are_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts: list[int] = []

    def enable() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise libbpf.KernelRefusedError(errno.EMFILE, "enable the statistics")
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(libbpf, "enable_run_time_statistics", enable)
    monkeypatch.setattr(overhead, "PAUSE_S", 0.01)
    monkeypatch.setattr(overhead, "SAMPLE_S", 0.01)
    clock = OverheadClock()
    clock.follow(Programs(), sliced)
    await until(lambda: clock.overhead().cpu_percent is not None, "a figure")
    clock.stop()


async def test_missed_runs_are_kept_when_other_programs_are_loaded() -> None:
    clock, first, second = OverheadClock(), Programs(missed_runs=2), Programs(missed_runs=5)
    assert clock.overhead().missed_runs == 0
    clock.follow(first, sliced)
    first.missed = 4
    assert clock.overhead().missed_runs == 4
    clock.follow(second, sliced)
    assert clock.overhead().missed_runs == 9
    clock.stop()
    clock.stop()
    assert clock.overhead() == Overhead(None, missed_runs=9)


def cost(runs: Runs, dispatch_ns: float, seconds: float, *, of_packets: bool = True) -> HookCost:
    """What packets paid at a hook with one program."""
    (found,) = costs_of_hooks(
        {"on_send": runs},
        {"on_send": "tp_btf/send"},
        {"on_send": seconds},
        {"on_send"} if of_packets else (),
        Dispatch(dispatch_ns),
    )
    return found


def test_a_packet_pays_for_the_calls_of_programs_too() -> None:
    runs = Runs(100_000, 5_000_000)
    assert cost(runs, 50.0, 1).cpu_percent == pytest.approx(1)
    assert cost(runs, 150.0, 1).cpu_percent == pytest.approx(2)
    assert cost(runs, 150.0, 2).cpu_percent == pytest.approx(1)
    assert cost(runs, 150.0, 1).run_percent == pytest.approx(0.5)
    assert cost(runs, 150.0, 1).call_percent == pytest.approx(1.5)


def test_programs_that_stay_attached_are_named_apart_and_the_most_expensive_first() -> None:
    names = ("on_read", "on_send", "on_sent", "on_reset")
    hooks = ("tp_btf/read", "tp_btf/send", "tp_btf/send", "tp_btf/send")
    costs = costs_of_hooks(
        {name: Runs(1000, 1_000_000) for name in names},
        dict(zip(names, hooks, strict=True)),
        dict.fromkeys(names, 1.0),
        {"on_read", "on_send", "on_sent"},
        Dispatch(1000.0),
    )
    assert [(each.hook, each.is_permanent) for each in costs] == [
        ("tp_btf/send", False),
        ("tp_btf/read", False),
        ("tp_btf/send", True),
    ]
    assert costs[0].cpu_percent == pytest.approx(0.4)
    assert not cost(Runs(1, 1), 1.0, 1).is_permanent
    assert cost(Runs(1, 1), 1.0, 1, of_packets=False).is_permanent


async def test_a_sample_stands_for_the_time_in_which_programs_are_attached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = count(100, 0.05)
    monkeypatch.setattr(overhead, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(
        libbpf, "enable_run_time_statistics", lambda: os.open(os.devnull, os.O_RDONLY)
    )
    clock, programs = OverheadClock(), Programs()
    clock.follow(programs, sliced, in_slices=True)
    assert clock.overhead().cpu_percent is None
    clock.end(7)
    assert clock.overhead().figure == 0
    clock.begin()
    clock.end(7)
    figure = clock.overhead()
    of_packets, permanent = sorted(figure.hooks, key=lambda each: each.is_permanent)
    # 10,000 calls and 100 µs in 0.05 s
    in_sample = 100 * (10_000 * ASSUMED_DISPATCH_NS + 1e5) / 5e7
    assert permanent.cpu_percent == pytest.approx(in_sample)
    assert of_packets.cpu_percent == pytest.approx(in_sample * attached_share(7))
    assert figure.cpu_percent == of_packets.cpu_percent + permanent.cpu_percent
    assert figure.figure == 1
    clock.stop()


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([90.0, 100.0, 110.0] * 4, 100.0),
        ([40.0] * 8, 40.0),
        ([400.0] * 8, 400.0),
        ([100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 9000.0], 100.0),
    ],
)
def test_the_middle_of_the_rounds_is_the_dispatch(
    differences: list[float], expected: float
) -> None:
    assert judge(differences) == Dispatch(expected)


@pytest.mark.parametrize(
    ("differences", "reason"),
    [
        ([], "only 0 rounds were measured"),
        ([100.0] * 7, "only 7 rounds were measured"),
        ([39.0] * 8, "39 ns were measured, outside 40 to 400 ns"),
        ([401.0] * 8, "401 ns were measured, outside 40 to 400 ns"),
        ([-5.0] * 8, "-5 ns were measured, outside 40 to 400 ns"),
        ([60.0] * 4 + [160.0] * 4, "the measured values spread from 60 to 160 ns"),
        ([-10.0] * 3 + [100.0] * 6, "the measured values spread from -10 to 100 ns"),
    ],
)
def test_a_dispatch_that_is_noise_is_assumed_and_the_reason_reported(
    differences: list[float], reason: str
) -> None:
    assert judge(differences) == Dispatch(ASSUMED_DISPATCH_NS, reason)


async def test_a_refusal_of_the_kernel_is_the_reason_for_an_assumed_dispatch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise libbpf.KernelRefusedError(errno.EPERM, "load dispatch")

    monkeypatch.setattr(libbpf, "load_program", refuse)
    measurement = DispatchMeasurement()
    assert measurement.dispatch == Dispatch(reason="it was not measured")
    measurement.begin()
    refused = "cannot load dispatch: Operation not permitted"
    await until(lambda: measurement.dispatch.reason == refused, "the refusal")
    assert measurement.dispatch.ns == ASSUMED_DISPATCH_NS
    assert dispatch.measure() == measurement.dispatch
