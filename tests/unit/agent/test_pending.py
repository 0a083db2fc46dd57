"""Readings of what is pending, on maps that a test fills as the kernel would."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.pending import KINDS_OF_SOCKETS, Pending
from latencyprobe.domain.report import report_on
from latencyprobe.domain.stages import PENDING as ROW
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import (
    MAX_PEERS,
    MAX_SLOTS,
    PENDING,
    PENDING_READING,
    SLOT_PENDING,
    U64,
    Room,
)
from latencyprobe_agent.kernel.hooks import READ_PENDING, READ_PENDING_STATES
from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory, ProgramSettings
from latencyprobe_agent.kernel.runtime.optional_events import OptionalEvents
from latencyprobe_agent.kernel.runtime.peers import PeerTable
from latencyprobe_agent.kernel.runtime.pending import MOST_REPETITIONS, PendingMemory, unread
from latencyprobe_agent.kernel.runtime.pending_readings import PendingReadings
from tests.unit.agent.slot_rooms import empty_rooms

LINK, FAST = 99, 98
UNREAD, REQUESTS = 0, 2


class Kernel:
    """The programs' side: the two maps, and the effect of the next iteration."""

    def __init__(self) -> None:
        self.slots = os.memfd_create("slots")
        self.readings = os.memfd_create("readings")
        os.ftruncate(self.slots, MAX_SLOTS * SLOT_PENDING.size)
        os.ftruncate(self.readings, 4096)
        self.visit: Callable[[], None] = lambda: None
        self.numbers: list[int] = []
        self.links: list[int] = []

    def run(self, link_fd: int) -> None:
        self.links.append(link_fd)
        self.numbers.append(*U64.unpack(os.pread(self.readings, U64.size, 0)))
        self.visit()

    def find(self, slot: int, kind: int, *figures: int) -> None:
        """Have a socket of a slot wait."""
        place = slot * SLOT_PENDING.size + kind * PENDING.size
        os.pwrite(self.slots, PENDING.packing.pack(*figures), place)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel()
    monkeypatch.setattr(libbpf, "run_iterator", kernel.run)
    yield kernel
    os.close(kernel.slots)
    os.close(kernel.readings)


@pytest.fixture
def memory(kernel: Kernel) -> Iterator[PendingMemory]:
    memory = PendingMemory(kernel.slots, kernel.readings)
    yield memory
    memory.close()


def test_a_reading_has_the_kinds_of_each_slot_and_begins_at_zero(
    kernel: Kernel, memory: PendingMemory
) -> None:
    def visit() -> None:
        kernel.find(3, UNREAD, 200, 20, 40_000, 6, 90)
        kernel.find(255, REQUESTS, 1, 1, 0, 5, 5)

    kernel.visit = visit
    wanted = {
        3: {KINDS_OF_SOCKETS[UNREAD].name: Pending(200, 20, 40_000, 6, 90)},
        255: {KINDS_OF_SOCKETS[REQUESTS].name: Pending(1, 1, 0, 5, 5)},
    }
    assert memory.read(LINK, (3, 4, 255)) == wanted
    kernel.visit = lambda: kernel.find(3, REQUESTS, 2, 2, 0, 0, 0)
    assert memory.read(LINK, (3, 4)) == {3: {KINDS_OF_SOCKETS[REQUESTS].name: Pending(2, 2)}}


def test_after_a_long_reading_its_figures_stand_for_a_while(kernel: Kernel) -> None:
    now = 100.0
    memory = PendingMemory(kernel.slots, kernel.readings, clock=lambda: now)

    def visit_for_a_second() -> None:
        nonlocal now
        now += 1.0
        kernel.find(3, UNREAD, 1, 1, 1, 0, 0)

    kernel.visit = visit_for_a_second
    figures = memory.read(LINK, (3, 4))
    now += 48.0
    assert memory.read(LINK, (3, 4)) == figures
    assert memory.read(LINK, (4,)) == {}
    assert len(kernel.numbers) == 1
    now += 1.0
    assert memory.read(LINK, (3, 4)) == figures
    assert len(kernel.numbers) == 2
    memory.close()


def test_a_slot_of_another_target_does_not_have_the_figures_of_the_pause(kernel: Kernel) -> None:
    now = 100.0
    memory = PendingMemory(kernel.slots, kernel.readings, clock=lambda: now)

    def visit_for_a_second() -> None:
        nonlocal now
        now += 1.0
        kernel.find(3, UNREAD, 1, 1, 1, 0, 0)
        kernel.find(4, UNREAD, 1, 1, 1, 0, 0)

    kernel.visit = visit_for_a_second
    figures = memory.read(LINK, (3, 4))
    memory.forget((4,))
    assert memory.read(LINK, (3, 4)) == {3: figures[3]}
    memory.close()


def test_an_end_is_reported_once(kernel: Kernel, memory: PendingMemory) -> None:
    kernel.visit = lambda: kernel.find(3, UNREAD, 1, 1, 1, 0, 0)
    assert memory.read(LINK, (3, 4))
    kernel.visit = lambda: None
    assert memory.read(LINK, (3, 4)) == {3: {}}
    assert memory.read(LINK, (3, 4)) == {}


def test_a_slot_that_is_gone_is_not_reported(kernel: Kernel, memory: PendingMemory) -> None:
    kernel.visit = lambda: kernel.find(3, UNREAD, 1, 1, 1, 0, 0)
    assert memory.read(LINK, (3,))
    assert memory.read(LINK, (4,)) == {}


def test_each_reading_has_another_number_above_zero(
    kernel: Kernel, memory: PendingMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latencyprobe_agent.kernel.runtime.pending._NUMBERS", 3)
    for _ in range(5):
        memory.read(LINK, ())
    assert kernel.numbers == [1, 2, 3, 1, 2]


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, code: int = errno.EMFILE) -> Iterator[None]:
    def refuse(link_fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(libbpf, "run_iterator", refuse)
        yield


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.EINTR])
def test_a_reader_that_hangs_stays_in_the_report_while_readings_fail(
    kernel: Kernel,
    memory: PendingMemory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    kernel.visit = lambda: kernel.find(3, UNREAD, 200, 20, 40_000, 6, 90)
    figures = memory.read(LINK, (3, 4))
    with failing(monkeypatch, code):
        for _ in range(MOST_REPETITIONS):
            assert memory.read(LINK, (3, 4)) == figures
    assert not memory.has_read
    assert memory.problem == ""
    assert f"cannot read what is pending: [Errno {code}] {os.strerror(code)}" in caplog.text
    assert memory.read(LINK, (3, 4)) == figures


def test_an_end_is_reported_though_the_peers_could_not_be_read_at_first(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libbpf, "keys", lambda *_: set())
    peers = PeerTable(7, empty_rooms(), lambda: 0.0)
    memory = PendingMemory(kernel.slots, kernel.readings, peers, clock=lambda: 0.0)
    kernel.visit = lambda: kernel.find(3, UNREAD, 1, 1, 1, 0, 0)
    figures = memory.read(LINK, (3, 4))
    kernel.visit = lambda: kernel.find(4, UNREAD, 1, 1, 1, 0, 0)
    with monkeypatch.context() as patched:
        patched.setattr(PeerTable, "read", Mock(side_effect=OSError(errno.ENOMEM, "no memory")))
        assert memory.read(LINK, (3, 4)) == figures
    kernel.visit = lambda: None
    assert memory.read(LINK, (3, 4)) == {3: {}}
    memory.close()


def test_a_reading_that_fails_makes_nothing_up(
    memory: PendingMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing(monkeypatch):
        assert memory.read(LINK, (3,)) == {}


def test_after_a_few_failed_readings_it_is_unknown_what_is_pending(
    kernel: Kernel, memory: PendingMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.visit = lambda: kernel.find(3, UNREAD, 1, 1, 1, 0, 0)
    figures = memory.read(LINK, (3, 4))
    with failing(monkeypatch):
        for _ in range(MOST_REPETITIONS):
            memory.read(LINK, (3, 4))
        assert memory.read(LINK, (3, 4)) == {3: {}}
        assert memory.read(LINK, (3, 4)) == {}
    problem = memory.problem
    assert "Too many open files (EMFILE)" in problem
    assert memory.read(LINK, (3, 4)) == figures
    assert memory.problem == ""

    (row,) = unread((StageCoverage(ROW, CoverageState.PARTIAL),), problem)
    assert (row.name, row.state) == (ROW, CoverageState.UNAVAILABLE)
    assert row.reason.startswith("the last readings failed: Too many open files (EMFILE)")
    waiting = Measurement(pending={})
    assert report_on(waiting, Module).pending == {}
    assert report_on(waiting, Module, uncounted={row.name}).pending is None


def test_a_kernel_that_cannot_read_keeps_its_reason() -> None:
    coverage = (StageCoverage(ROW, CoverageState.UNAVAILABLE, reason="requires BTF"),)
    assert unread(coverage, "Too many open files") == coverage


def test_all_open_files_are_visited_until_a_reading_has_done_so(
    kernel: Kernel, memory: PendingMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {READ_PENDING: LINK, READ_PENDING_STATES: FAST}
    configuration = cast(ConfigMemory, SimpleNamespace(settings=ProgramSettings(generation=1)))
    processes = OptionalEvents(OffReason.NO_PROCESSES, (), Attachments(Mock()))
    processes.see(False)
    readings = PendingReadings(memory, links.get, configuration, processes)
    with failing(monkeypatch):
        readings.read((3,))
    readings.read((3,))
    readings.read((3,))
    assert kernel.links == [LINK, FAST]


def test_a_reading_begins_without_the_last_socket_of_one_that_failed(
    kernel: Kernel, memory: PendingMemory
) -> None:
    owners = PENDING_READING.offset("owners")
    os.pwrite(kernel.readings, U64.pack(4), owners)

    def visit() -> None:
        assert os.pread(kernel.readings, U64.size, owners) == bytes(U64.size)

    kernel.visit = visit
    memory.read(LINK, (3,))
    assert kernel.numbers == [1]


def test_the_number_of_sockets_without_room_is_that_of_the_last_reading(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libbpf, "keys", lambda *_: set())
    rooms = empty_rooms()
    peers = PeerTable(7, rooms, lambda: 0.0)
    memory = PendingMemory(kernel.slots, kernel.readings, peers)
    place = Room.PEERS * MAX_SLOTS + 3

    kernel.visit = lambda: rooms.add(place, "refused", 9)
    memory.read(LINK, (3,))
    assert memory.crowded == {3: 9}
    memory.forget((3,))
    assert memory.crowded == {}  # the slot has another target
    kernel.visit = lambda: None
    memory.read(LINK, (3,))
    assert memory.crowded == {}
    memory.close()


def test_sockets_are_visited_once_more_if_another_target_left_room_for_their_peers(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libbpf, "keys", lambda *_: set())
    rooms = empty_rooms()
    peers = PeerTable(7, rooms, lambda: 0.0)
    memory = PendingMemory(kernel.slots, kernel.readings, peers)
    place = Room.PEERS * MAX_SLOTS + 3
    wanted = MAX_PEERS // 2 + 10

    def visit() -> None:
        room = rooms.get(place, "allowed") - rooms.get(place, "taken")
        rooms.add(place, "taken", min(room, wanted))
        rooms.add(place, "refused", max(0, wanted - room))

    kernel.visit = visit
    for visits in (2, 3, 4):
        memory.read(LINK, (3, 4))
        assert memory.crowded == {}
        assert len(kernel.links) == visits
    memory.close()


def test_the_layouts_have_no_gap() -> None:
    assert SLOT_PENDING.size == len(KINDS_OF_SOCKETS) * PENDING.size
    assert PENDING_READING.offset("found") == 2 * U64.size
