"""The two halves of the measurements: programs write one of them, and the other one is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory
from latencyprobe_agent.kernel.runtime.grace_period import wait_for_running_programs
from latencyprobe_agent.kernel.runtime.shards import Shards


class InactiveHalf(NamedTuple):
    """The half of the measurements that no program writes, and the shards of its slots."""

    epoch: int
    shards: Mapping[int, Shards]


class Halves:
    """The halves of one object, whose maps are new, and the shards of the slots in each."""

    def __init__(self, configuration: ConfigMemory) -> None:
        self._configuration = configuration
        self._shards: list[Mapping[int, Shards]] = [{}, {}]
        for epoch in (0, 1):
            configuration.write_shards(epoch, {})

    def begin(self, shards: Mapping[int, Shards]) -> None:
        """Set the shards of an object without any slot: no program counts yet."""
        self._use(self._configuration.settings.epoch, shards)

    def flip(self, shards: Mapping[int, Shards]) -> InactiveHalf:
        """Make programs write the other half, with these shards; return the inactive half."""
        settings = self._configuration.settings
        inactive, active = settings.epoch, 1 - settings.epoch
        self._use(active, shards)
        self._configuration.configure(replace(settings, epoch=active))
        wait_for_running_programs()
        return InactiveHalf(inactive, self._shards[inactive])

    def _use(self, epoch: int, shards: Mapping[int, Shards]) -> None:
        self._shards[epoch] = shards
        self._configuration.write_shards(epoch, shards)
