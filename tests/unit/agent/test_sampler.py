"""The ratios of an engine, over the life of its objects, without a kernel or a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast
from unittest.mock import Mock, call

import pytest

from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime import sampler as sampler_module
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory
from latencyprobe_agent.kernel.runtime.overhead import OverheadClock
from latencyprobe_agent.kernel.runtime.packet_programs import PacketPrograms
from latencyprobe_agent.kernel.runtime.run_statistics import RunStatistics
from latencyprobe_agent.kernel.runtime.sampler import SampledPrograms, Sampler
from latencyprobe_agent.kernel.runtime.statistics import SamplingRatios


class Scene:
    """A sampler, and its calls to all other parts, in their order.

    `programs`: of one object. `end_period`: what time slices call at the end of each period.
    """

    def __init__(self) -> None:
        self.calls = Mock()
        self.programs = SampledPrograms(
            cast(ConfigMemory, self.calls.configuration),
            cast(PacketPrograms, self.calls.packets),
            cast(RunStatistics, self.calls.run_statistics),
        )
        self.sampler = Sampler(
            cast(OverheadClock, self.calls.clock), lambda: self.calls.keep(self.sampler.ratios)
        )
        self.end_period: Callable[[], int] = int

    def make_slices(self, programs: object, clock: object, end_period: Callable[[], int]) -> Mock:
        assert (programs, clock) == (self.calls.packets, self.calls.clock)
        self.end_period = end_period
        return cast(Mock, self.calls.slices)

    def begin(self) -> None:
        self.sampler.follow(self.programs)
        self.sampler.begin()

    def has_slices(self) -> bool:
        return self.sampler.slices is not None

    def taken(self) -> list[object]:
        """Return the calls since the last time."""
        taken: list[object] = list(self.calls.mock_calls)
        self.calls.reset_mock()
        return taken

    def timed(self, *, in_slices: bool = False) -> object:
        """Return the call by which the cost is sampled from then on."""
        of_packets = self.calls.packets.functions
        return call.clock.follow(self.calls.run_statistics, of_packets, in_slices=in_slices)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene()
    monkeypatch.setattr(sampler_module, "TimeSlices", made.make_slices)
    return made


def test_the_ratio_is_written_at_once_and_the_cost_sampled_from_the_begin(scene: Scene) -> None:
    scene.sampler.sample(3, 0)
    scene.sampler.follow(scene.programs)
    assert scene.taken() == [call.configuration.sample(3)]
    scene.sampler.begin()
    assert scene.taken() == [scene.timed()]


def test_time_slices_begin_where_the_cost_would_be_sampled(scene: Scene) -> None:
    scene.sampler.sample(3, 2)
    scene.sampler.follow(scene.programs)
    assert scene.taken() == [call.configuration.sample(3)]
    scene.sampler.begin()
    assert scene.taken() == [scene.timed(in_slices=True), call.slices.start(2)]


def test_measurements_are_kept_with_the_ratio_that_they_were_measured_with(scene: Scene) -> None:
    scene.begin()
    assert scene.taken() == [call.configuration.sample(0), scene.timed()]
    scene.sampler.sample(4, 0)
    assert scene.taken() == [
        call.keep(SamplingRatios()),
        call.configuration.sample(4),
        scene.timed(),
    ]
    scene.sampler.sample(4, 0)
    assert scene.taken() == []
    scene.sampler.sample(2, 0)
    assert scene.taken() == [
        call.keep(SamplingRatios(1 / 16)),
        call.configuration.sample(2),
        scene.timed(),
    ]
    assert scene.sampler.ratios == SamplingRatios(1 / 4)


def test_ratios_are_remembered_for_the_next_object(scene: Scene) -> None:
    scene.sampler.sample(3, 2)
    assert scene.taken() == []
    scene.begin()
    assert scene.sampler.ratios == SamplingRatios(1 / 8, 1 / 4)
    begun = scene.taken()
    scene.sampler.leave()
    assert scene.taken() == [call.slices.stop(), call.clock.stop()]
    assert scene.sampler.ratios == SamplingRatios(1 / 8)
    scene.begin()
    assert scene.taken() == begun


def test_another_ratio_of_packets_holds_at_once_within_time_slices(scene: Scene) -> None:
    scene.begin()
    scene.sampler.sample(0, 5)
    scene.taken()
    scene.sampler.sample(3, 5)
    assert scene.taken() == [
        call.keep(SamplingRatios(of_time=1 / 32)),
        call.configuration.sample(3),
    ]
    assert scene.sampler.ratios == SamplingRatios(1 / 8, 1 / 32)


def test_another_ratio_of_time_holds_from_the_end_of_the_period(scene: Scene) -> None:
    scene.begin()
    scene.taken()
    scene.sampler.sample(0, 5)
    assert scene.taken() == [
        call.keep(SamplingRatios()),
        scene.timed(in_slices=True),
        call.slices.start(5),
    ]
    scene.sampler.sample(0, 3)
    assert scene.taken() == []
    assert scene.sampler.ratios.of_time == 1 / 32
    assert scene.end_period() == 3
    assert scene.end_period() == 3
    assert scene.taken() == [call.keep(SamplingRatios(of_time=1 / 32))]
    assert scene.sampler.ratios.of_time == 1 / 8


@pytest.mark.parametrize("refusal", [None, EngineError("no memory")])
def test_without_time_slices_the_programs_stay_attached_and_are_timed_all_the_time(
    scene: Scene, refusal: EngineError | None
) -> None:
    scene.calls.packets.end_slices.side_effect = refusal
    scene.begin()
    scene.sampler.sample(0, 1)
    scene.sampler.sample(0, 0)
    assert scene.has_slices()
    scene.taken()
    assert scene.end_period() == 0
    assert scene.taken() == [
        call.keep(SamplingRatios(of_time=1 / 2)),
        call.packets.end_slices(),
        scene.timed(),
    ]
    assert not scene.has_slices()
    assert scene.sampler.ratios == SamplingRatios()
