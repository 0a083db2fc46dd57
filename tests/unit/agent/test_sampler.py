"""The ratios of an engine, over the life of its objects, without a kernel or a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from unittest.mock import Mock

import pytest

from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime import sampler as sampler_module
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory
from latencyprobe_agent.kernel.runtime.module_programs import ModulePrograms
from latencyprobe_agent.kernel.runtime.overhead import OverheadClock
from latencyprobe_agent.kernel.runtime.packet_programs import PacketPrograms
from latencyprobe_agent.kernel.runtime.run_statistics import RunStatistics
from latencyprobe_agent.kernel.runtime.sampler import SampledPrograms, Sampler
from latencyprobe_agent.kernel.runtime.statistics import SamplingRatios


@dataclass
class Slices:
    """Time slices whose periods end when the test says so."""

    end_period: Callable[[], int]
    started: list[int] = field(default_factory=list)
    is_stopped: bool = False

    def start(self, shift: int) -> None:
        self.started.append(shift)

    def stop(self) -> None:
        self.is_stopped = True


class Object:
    """An object, and the calls to its parts in their order."""

    def __init__(self) -> None:
        self.calls = Mock()
        self.programs = SampledPrograms(
            cast(ConfigMemory, self.calls.configuration),
            cast(PacketPrograms, self.calls.packets),
            cast(ModulePrograms, self.calls.modules),
            cast(RunStatistics, self.calls.run_statistics),
        )

    @property
    def shifts(self) -> list[int]:
        return [call.args[0] for call in self.calls.configuration.sample.call_args_list]


class Scene:
    """A sampler, with the ratios that it had measurements kept with, and where it was timed."""

    def __init__(self) -> None:
        self.kept: list[SamplingRatios] = []
        self.slices: list[Slices] = []
        self.clock = Mock()
        self.sampler = Sampler(
            cast(OverheadClock, self.clock), lambda: self.kept.append(self.sampler.ratios)
        )

    def make_slices(self, _programs: object, _clock: object, end: Callable[[], int]) -> Slices:
        self.slices.append(Slices(end))
        return self.slices[-1]

    def begin(self, programs: SampledPrograms) -> None:
        self.sampler.follow(programs)
        self.sampler.begin()

    def has_slices(self) -> bool:
        return self.sampler.slices is not None

    @property
    def is_timed_in_slices(self) -> list[bool]:
        return [call.kwargs["in_slices"] for call in self.clock.follow.call_args_list]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene()
    monkeypatch.setattr(sampler_module, "TimeSlices", made.make_slices)
    return made


def test_measurements_are_kept_with_the_ratio_that_they_were_measured_with(scene: Scene) -> None:
    present = Object()
    scene.begin(present.programs)
    scene.sampler.sample(4, 0)
    scene.sampler.sample(4, 0)
    scene.sampler.sample(2, 0)
    assert scene.kept == [SamplingRatios(), SamplingRatios(1 / 16)]
    assert present.shifts == [0, 4, 2]
    assert scene.sampler.ratios == SamplingRatios(1 / 4)


@pytest.mark.parametrize("slice_shift", [0, 2])
def test_the_ratio_is_written_at_once_and_the_cost_sampled_from_the_begin(
    scene: Scene, slice_shift: int
) -> None:
    present = Object()
    scene.sampler.sample(3, slice_shift)
    scene.sampler.follow(present.programs)
    assert present.shifts == [3]
    assert scene.is_timed_in_slices == []
    assert not scene.has_slices()
    scene.sampler.begin()
    assert scene.is_timed_in_slices == [slice_shift > 0]
    assert scene.has_slices() == (slice_shift > 0)


def test_ratios_are_remembered_for_the_next_object(scene: Scene) -> None:
    scene.sampler.sample(3, 2)
    following = Object()
    scene.begin(following.programs)
    assert following.shifts == [3]
    assert scene.sampler.ratios == SamplingRatios(1 / 8, 1 / 4)
    scene.sampler.leave()
    assert scene.slices[0].is_stopped
    assert scene.sampler.ratios == SamplingRatios(1 / 8)
    scene.begin(Object().programs)
    assert [each.started for each in scene.slices] == [[2], [2]]
    assert scene.kept == []


def test_another_ratio_of_time_holds_from_the_end_of_the_period(scene: Scene) -> None:
    present = Object()
    scene.begin(present.programs)
    scene.sampler.sample(0, 5)
    (slices,) = scene.slices
    scene.sampler.sample(0, 3)
    assert scene.sampler.ratios.of_time == 1 / 32
    assert slices.end_period() == 3
    assert slices.end_period() == 3
    assert scene.kept == [SamplingRatios(), SamplingRatios(of_time=1 / 32)]
    assert scene.sampler.ratios.of_time == 1 / 8


@pytest.mark.parametrize("refusal", [None, EngineError("no memory")])
def test_without_time_slices_the_programs_stay_attached_and_are_timed_all_the_time(
    scene: Scene, refusal: EngineError | None
) -> None:
    present = Object()
    present.calls.packets.end_slices.side_effect = refusal
    scene.begin(present.programs)
    scene.sampler.sample(0, 1)
    scene.sampler.sample(0, 0)
    assert scene.has_slices()
    assert scene.slices[0].end_period() == 0
    assert not scene.has_slices()
    present.calls.packets.end_slices.assert_called_once_with()
    assert scene.is_timed_in_slices == [False, True, False]
    assert scene.sampler.ratios == SamplingRatios()
