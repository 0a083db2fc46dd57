"""The peers of targets in the readings of pending waits: see bpf/modules/peers.bpf.c.

The programs see open connections only. The past of those that have closed is kept here. A client
may make a connection for each request, and then only those that wait are open.

A target may have as many peers as it wants. So both the map and the past are divided between the
targets.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import PATIENCE_STEPS, PeerTurns, Role, Waits
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import MAX_PEERS, PEER, PEER_KEY, Room
from latencyprobe_agent.kernel.contract import LostPart
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray
from latencyprobe_agent.kernel.runtime.slot_rooms import SlotRooms, fair_parts

# The past of a peer counts for so long, and of no more peers than this.
PAST_S = 600.0
MAX_PASTS = 4 * MAX_PEERS
# Of five kinds, with three figures each.
_FIGURES_OF_WAITS = 15
LOST_PEERS = LostPart(
    frozenset({Module.TCP}),
    "some connections are not compared with others to the same peer, because the target has more "
    f"peers than its part of {MAX_PEERS} for the node",
)


class _Past(NamedTuple):
    turns: PeerTurns
    slot: int
    at: float


class PeerTable:
    """The map of the peers, which programs fill during a reading, and the past of each peer.

    `rooms`: the elements of `slot_rooms`. `clock`: of seconds.
    """

    def __init__(self, map_fd: int, rooms: MappedArray, clock: Callable[[], float]) -> None:
        self._map_fd = map_fd
        self._rooms = SlotRooms(rooms, Room.PEERS)
        self._unheard_rooms = SlotRooms(rooms, Room.UNHEARD_PEERS)
        self._clock = clock
        self._pasts: dict[bytes, _Past] = {}  # the newest last

    def clear(self, slots: Collection[int]) -> None:
        """Delete what programs have found, and divide the map between these slots."""
        for key in libbpf.keys(self._map_fd, PEER_KEY.size):
            libbpf.delete(self._map_fd, key)
        for rooms in (self._rooms, self._unheard_rooms):
            rooms.divide(slots, {})

    def count(self) -> None:
        """Count the peers that programs have found, and those that had no room."""
        for rooms in (self._rooms, self._unheard_rooms):
            rooms.count()

    @property
    def has_more_room(self) -> bool:
        """True if another reading would find more peers, by the last count."""
        return self._rooms.has_more_room or self._unheard_rooms.has_more_room

    @property
    def crowded(self) -> Mapping[int, int]:
        """The number of sockets whose peers had no room, by slot."""
        return self._rooms.refused

    def read(self, slots: Collection[int]) -> Mapping[int, Sequence[PeerTurns]]:
        """Return what programs have found, by slot, with the past of the peers of these slots.

        Raises OSError, and then has changed nothing.
        """
        keys = libbpf.keys(self._map_fd, PEER_KEY.size)
        contents = {key: libbpf.look_up(self._map_fd, key, PEER.size) for key in keys}
        now = self._clock()
        self._keep(slots, now)
        found: dict[int, list[PeerTurns]] = defaultdict(list)
        for key, content in contents.items():
            if content is not None:
                slot, turns = decode_peer(key, content)
                found[slot].append(self._with_past(key, slot, turns, now))
        return found

    def _with_past(self, key: bytes, slot: int, turns: PeerTurns, now: float) -> PeerTurns:
        past = self._pasts.get(key)
        known = turns if past is None else turns.after(past.turns)
        if turns.has_past:
            self._pasts.pop(key, None)
            self._pasts[key] = _Past(turns, slot, now)
        return known

    def forget(self, slots: Collection[int]) -> None:
        """Forget the past of the peers of these slots."""
        self._pasts = {key: past for key, past in self._pasts.items() if past.slot not in slots}

    def _keep(self, slots: Collection[int], now: float) -> None:
        kept = {
            key: past
            for key, past in self._pasts.items()
            if past.slot in slots and now - past.at < PAST_S
        }
        counts = Counter(past.slot for past in kept.values())
        parts = fair_parts(MAX_PASTS, counts)
        self._pasts = {}
        for key, past in kept.items():
            if counts[past.slot] <= parts[past.slot]:
                self._pasts[key] = past
            counts[past.slot] -= 1


def decode_peer(key: bytes, content: bytes) -> tuple[int, PeerTurns]:
    """Return the slot of an entry, and the entry."""
    slot, role, _, port, _, address = PEER_KEY.packing.unpack(key)
    answered, answers, slowest_ns, *figures = PEER.packing.unpack(content)
    waiting, late, first, connects, resent = (
        Waits(*figures[at : at + 3]) for at in range(0, _FIGURES_OF_WAITS, 3)
    )
    steps = figures[_FIGURES_OF_WAITS:]
    return slot, PeerTurns(
        role=Role(role),
        peer=Endpoint.of(address, port) if role == Role.CLIENT else None,
        answered=answered,
        answers=answers,
        slowest_ns=slowest_ns,
        waiting=waiting,
        late=late,
        first=first,
        connects=connects,
        resent=resent,
        first_from=tuple(zip(steps[:PATIENCE_STEPS], steps[PATIENCE_STEPS:], strict=True)),
    )
