"""The obstacles that programs met in network namespaces of pods: they are those of their targets.

What is on the path of all pods, in the host's namespace, is in the configuration: `obstacles`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from latencyprobe_agent.kernel.abi import NETNS_OBSTACLES, Obstacle, kind_name
from latencyprobe_agent.kernel.contract import EngineError, SlotSpec
from latencyprobe_agent.kernel.runtime.named_maps import MapEntries

log = logging.getLogger(__name__)

_NAME = NETNS_OBSTACLES.name
_KNOWN = frozenset(Obstacle)
_OBSTACLE_BITS = 32


class SlotObstacle(NamedTuple):
    """An obstacle of one slot. `detail`: the kind of the device, if that is the obstacle."""

    slot: int
    obstacle: Obstacle
    detail: str


class PodObstacles:
    """The obstacles of one loaded object, whose maps are new."""

    def __init__(self, maps: MapEntries) -> None:
        self._maps = maps

    def take(self, slots: Mapping[int, SlotSpec]) -> Collection[SlotObstacle]:
        """Return what programs met since the last call where these slots have sockets.

        Where the map cannot be read now, the next call returns all.
        """
        try:
            return [
                SlotObstacle(slot, obstacle, detail)
                for inum, obstacle, detail in self._taken()
                for slot in _slots_in(inum, slots)
            ]
        except EngineError as error:
            log.warning("cannot read obstacles: %s; the next reading tries again", error)
            return ()

    def _taken(self) -> Collection[tuple[int, Obstacle, str]]:
        notes = []
        keys = self._maps.keys(_NAME, NETNS_OBSTACLES.key.size)
        for key in keys:
            (number,) = NETNS_OBSTACLES.key.unpack(key)
            inum, obstacle = number >> _OBSTACLE_BITS, number % (1 << _OBSTACLE_BITS)
            kind = self._maps.look_up(_NAME, key, NETNS_OBSTACLES.value.size)
            if kind is not None and obstacle in _KNOWN:
                notes.append((inum, Obstacle(obstacle), kind_name(kind)))
        self._maps.erase(_NAME, keys)
        return notes


def _slots_in(inum: int, slots: Mapping[int, SlotSpec]) -> Iterator[int]:
    """Yield the slots with sockets in a namespace.

    Those that may be anywhere are in namespaces of no other slot.
    """
    own = [slot for slot, spec in slots.items() if inum in spec.netns | spec.netns_wide]
    yield from own or (slot for slot, spec in slots.items() if spec.any_netns)
