"""Peers in readings of what is pending, from a map that a test fills as programs would."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address

import pytest

from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import PATIENCE_STEPS, PeerTurns, Role, Waits
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import MAX_PEERS, MAX_SLOTS, PEER, PEER_KEY, Room
from latencyprobe_agent.kernel.contract import SocketMemoryLimits, ThreadLimits
from latencyprobe_agent.kernel.runtime.bounds import TargetBounds
from latencyprobe_agent.kernel.runtime.mapped_array import signed
from latencyprobe_agent.kernel.runtime.peers import LOST_PEERS, MAX_PASTS, PAST_S, PeerTable
from tests.unit.agent.slot_rooms import empty_rooms

MAP = 7
SERVICE = Endpoint(IPv4Address("10.0.0.7"), 7000)
MAPPED = ip_address("::ffff:10.0.0.7").packed


class Kernel:
    """The map of the peers."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def keys(self, map_fd: int, key_bytes: int) -> Sequence[bytes]:
        assert (map_fd, key_bytes) == (MAP, PEER_KEY.size)
        return list(self.entries)

    def look_up(self, map_fd: int, key: bytes, value_bytes: int) -> bytes | None:
        assert (map_fd, value_bytes) == (MAP, PEER.size)
        return self.entries.get(key)

    def delete(self, map_fd: int, key: bytes) -> bool:
        assert map_fd == MAP
        return self.entries.pop(key, None) is not None

    def find(
        self, answers: int = 0, slowest_ns: int = 0, *, slot: int = 3, port: int = 7000
    ) -> None:
        """Have a client's peer be found, for whose first answer a request waits 5 ns."""
        waits = (1, 5, 5)
        steps = (*range(PATIENCE_STEPS), *range(100, 100 + PATIENCE_STEPS))
        key = PEER_KEY.packing.pack(slot, Role.CLIENT, 1, port, 0, MAPPED)
        self.entries[key] = PEER.packing.pack(
            *(int(answers > 0), answers, slowest_ns),
            *(*waits, *(0, 0, 0), *waits, *(2, 8, 9), *(3, 6, 7)),
            *steps,
        )


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    for name in ("keys", "look_up", "delete"):
        monkeypatch.setattr(libbpf, name, getattr(kernel, name))
    return kernel


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_entry_is_read_with_all_its_figures(kernel: Kernel) -> None:
    kernel.find(answers=12, slowest_ns=9)
    kernel.entries[PEER_KEY.packing.pack(4, Role.SERVER, 1, 443, 0, bytes(16))] = bytes(PEER.size)
    found = PeerTable(MAP, empty_rooms(), Clock()).read((3, 4))
    assert found[3] == [
        PeerTurns(
            role=Role.CLIENT,
            peer=SERVICE,
            answered=1,
            answers=12,
            slowest_ns=9,
            waiting=Waits(1, 5, 5),
            late=Waits(),
            first=Waits(1, 5, 5),
            connects=Waits(2, 8, 9),
            resent=Waits(3, 6, 7),
            first_from=tuple((step, 100 + step) for step in range(PATIENCE_STEPS)),
        )
    ]
    assert found[4] == [PeerTurns(role=Role.SERVER, peer=None)]


def test_a_reading_begins_with_an_empty_map(kernel: Kernel) -> None:
    kernel.find()
    PeerTable(MAP, empty_rooms(), Clock()).clear((3,))
    assert kernel.entries == {}


def past_of(table: PeerTable) -> tuple[int, int]:
    ((turns,),) = table.read((3,)).values()
    return turns.answers, turns.slowest_ns


def test_the_past_of_a_peer_counts_for_a_while(kernel: Kernel) -> None:
    clock = Clock()
    table = PeerTable(MAP, empty_rooms(), clock)
    kernel.find(answers=5, slowest_ns=9)
    table.read((3,))
    kernel.find()
    clock.now += PAST_S - 1
    assert past_of(table) == (5, 9)
    clock.now += 1
    assert past_of(table) == (0, 0)


def test_a_few_answers_do_not_replace_the_past(kernel: Kernel) -> None:
    table = PeerTable(MAP, empty_rooms(), Clock())
    kernel.find(answers=5, slowest_ns=9)
    table.read((3,))
    kernel.find(answers=1, slowest_ns=20)
    assert past_of(table) == (5, 20)
    kernel.find()
    assert past_of(table) == (5, 9)


def test_a_reading_that_fails_leaves_the_past_as_it_was(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PeerTable(MAP, empty_rooms(), Clock())
    kernel.find(answers=5, slowest_ns=9)
    table.read((3,))
    kernel.find(answers=7, slowest_ns=8)
    kernel.find(port=7001)
    *_, last = kernel.entries

    def refuse(map_fd: int, key: bytes, value_bytes: int) -> bytes | None:
        if key == last:
            raise libbpf.KernelRefusedError(errno.ENOMEM, "read an entry")
        return kernel.look_up(map_fd, key, value_bytes)

    with monkeypatch.context() as patched:
        patched.setattr(libbpf, "look_up", refuse)
        with pytest.raises(OSError, match="read an entry"):
            table.read((3,))
    kernel.entries.clear()
    kernel.find()
    assert past_of(table) == (5, 9)


def test_a_slot_of_another_target_has_no_past(kernel: Kernel) -> None:
    table = PeerTable(MAP, empty_rooms(), Clock())
    kernel.find(answers=5, slowest_ns=9)
    table.read((3,))
    kernel.find()
    table.forget((4,))
    assert past_of(table) == (5, 9)
    table.forget((3,))
    assert past_of(table) == (0, 0)
    kernel.find(answers=5, slowest_ns=9)
    table.read((3,))
    kernel.entries.clear()
    table.read(())
    kernel.find()
    assert past_of(table) == (0, 0)


def test_the_past_is_of_a_bounded_number_of_peers(kernel: Kernel) -> None:
    table = PeerTable(MAP, empty_rooms(), Clock())
    for port in range(1, MAX_PASTS + 3):
        kernel.entries.clear()
        kernel.find(answers=5, slowest_ns=port, port=port)
        table.read((3,))
    kernel.entries.clear()
    for port in (1, 2, 3, MAX_PASTS + 2):
        kernel.find(port=port)
    pasts = [turns.slowest_ns for turns in table.read((3,))[3]]
    assert pasts == [0, 0, 3, MAX_PASTS + 2]


def test_a_target_with_very_many_peers_leaves_the_past_of_another_ones(kernel: Kernel) -> None:
    table = PeerTable(MAP, empty_rooms(), Clock())
    kernel.find(answers=5, slowest_ns=9, slot=4)
    table.read((3, 4))
    for port in range(1, MAX_PASTS + 3):
        kernel.entries.clear()
        kernel.find(answers=5, slowest_ns=port, port=port)
        table.read((3, 4))
    kernel.entries.clear()
    kernel.find(slot=4)
    for port in (1, 2, 3, MAX_PASTS + 2):
        kernel.find(port=port)
    found = table.read((3, 4))
    assert [turns.slowest_ns for turns in found[4]] == [9]
    assert [turns.slowest_ns for turns in found[3]] == [0, 0, 0, MAX_PASTS + 2]


@pytest.mark.usefixtures("kernel")
def test_a_target_whose_peers_had_no_room_is_read_once_more_and_has_the_unused_room() -> None:
    rooms = empty_rooms()
    table = PeerTable(MAP, rooms, Clock())

    def find(peers: int, slot: int) -> None:
        """Take room for so many peers, as programs do."""
        place = Room.PEERS * MAX_SLOTS + slot
        room = signed(rooms.get(place, "allowed") - rooms.get(place, "taken"))
        rooms.add(place, "taken", min(peers, room))
        rooms.add(place, "refused", max(0, peers - room))

    for is_first in (True, False):
        table.clear((3, 4))
        find(MAX_PEERS, 3)
        find(5, 4)
        table.count()
        assert table.has_more_room is is_first
    assert table.crowded == {3: MAX_PEERS // 4}


def test_a_target_loses_what_had_no_room_and_another_one_nothing() -> None:
    bounds = TargetBounds(SocketMemoryLimits(), ThreadLimits())
    bounds.read((3, 4), {}, crowded=(3,))
    assert bounds.lost_parts == {3: [LOST_PEERS]}
    assert f"its part of {MAX_PEERS}" in LOST_PEERS.reason
    bounds.read((3, 4), {})
    assert not bounds.lost_parts
