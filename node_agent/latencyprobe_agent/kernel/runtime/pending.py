"""Waiting that has not ended in the sockets of targets, when the agent reads.

A program of ours runs for each socket of targets then, or for each open file of the node: see
bpf/modules/pending.bpf.c.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from mmap import mmap

from latencyprobe.domain import stages
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.patience import Peer, PeerTurns, waiting_peers, waits_by_others
from latencyprobe.domain.pending import KINDS_OF_SOCKETS, Pending, joint_pending
from latencyprobe.process.os_errors import explained
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import MAX_SLOTS, PENDING, PENDING_READING, SLOT_PENDING
from latencyprobe_agent.kernel.runtime.mapped_array import distance_of
from latencyprobe_agent.kernel.runtime.peers import PeerTable
from latencyprobe_agent.kernel.runtime.reading_pause import ReadingPause

log = logging.getLogger(__name__)

_DISTANCE = distance_of(SLOT_PENDING)
_NOTHING = bytes(_DISTANCE)
# A socket's state has 8 bits for the reading that saw it last; 0: none.
_NUMBERS = 0xFF
_BEGINNING = PENDING_READING.part("number", "owners")
# The figures of the last reading stand for so many readings that failed since.
MOST_REPETITIONS = 3


class PendingMemory:
    """The maps with the figures of each slot and of the reading, mapped into this process.

    `peers`: the table of the peers, if the module tcp is there.
    """

    def __init__(
        self,
        slots_fd: int,
        readings_fd: int,
        peers: PeerTable | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = mmap(slots_fd, MAX_SLOTS * _DISTANCE)
        self._reading = mmap(readings_fd, PENDING_READING.size)
        self._peers = peers
        self._number = 0
        self._clock = clock
        self._pause = ReadingPause(clock)
        self._found: dict[int, Mapping[str, Pending]] = {}
        self._failures = 0
        self.has_read = False
        """The last call has read, and did not repeat the figures of an earlier reading."""
        self.problem = ""
        """The reason why it is unknown what is pending; empty if it is known."""
        self.peers: Mapping[int, Sequence[Peer]] = {}
        """Those that requests wait for, by slot: of the last reading."""
        self.crowded: Mapping[int, int] = {}
        """The number of sockets whose peers had no room in it, by slot."""

    def read(self, link_fd: int, slots: Collection[int]) -> Mapping[int, Mapping[str, Pending]]:
        """Read by this link of an iterator; return the figures of these slots.

        A slot is omitted if nothing is pending in it, unless something was at the last reading.
        Within the pause after a long reading, return its figures again. So do a few readings that
        fail, and then it is unknown what is pending: see `problem`.
        """
        self.has_read = False
        if not self._pause.is_over:
            return self._repeated(slots)
        before = self._found.keys()
        try:
            self._read(link_fd, slots)
        except OSError as error:
            log.warning("cannot read what is pending: %s; the next reading tries again", error)
            self._failures += 1
            if self._failures <= MOST_REPETITIONS:
                return self._repeated(slots)
            self.problem = explained(error)
            self._found, self.peers = {}, {}
        else:
            self._failures, self.problem, self.has_read = 0, "", True
        ended = (before - self._found.keys()).intersection(slots)
        return {**self._found, **{slot: {} for slot in ended}}

    def _repeated(self, slots: Collection[int]) -> Mapping[int, Mapping[str, Pending]]:
        return {slot: figures for slot, figures in self._found.items() if slot in slots}

    def _read(self, link_fd: int, slots: Collection[int]) -> None:
        """Read by this link of an iterator. Raises OSError."""
        began = self._clock()
        self._visit(link_fd, slots)
        if self._peers is not None and self._peers.has_more_room:
            self._visit(link_fd, slots)
        self._pause.note(began)
        # May raise: so it comes before anything of the last reading is replaced.
        turns = {} if self._peers is None else self._peers.read(slots)
        self._found = {slot: figures for slot in slots if (figures := self._figures(slot))}
        self._compare(slots, turns)

    def _visit(self, link_fd: int, slots: Collection[int]) -> None:
        """Have each socket visited once. Raises OSError."""
        for slot in slots:
            self._memory[slot * _DISTANCE : (slot + 1) * _DISTANCE] = _NOTHING
        self._number = self._number % _NUMBERS + 1
        # Without owners: of a reading that failed, the last socket may not be reported yet.
        self._reading[: _BEGINNING.size] = _BEGINNING.pack(self._number, 0)
        if self._peers is not None:
            self._peers.clear(slots)
        libbpf.run_iterator(link_fd)
        if self._peers is not None:
            self._peers.count()

    def forget(self, slots: Collection[int]) -> None:
        """Forget what was read of these slots: they are another target's from now on."""
        self._found = {slot: each for slot, each in self._found.items() if slot not in slots}
        self.peers = {slot: each for slot, each in self.peers.items() if slot not in slots}
        self.crowded = {slot: each for slot, each in self.crowded.items() if slot not in slots}
        if self._peers is not None:
            self._peers.forget(slots)

    def _compare(self, slots: Collection[int], turns: Mapping[int, Sequence[PeerTurns]]) -> None:
        """Add what other connections to the same peers say of the first request of one."""
        self.peers = {slot: waiting_peers(turns[slot]) for slot in slots if slot in turns}
        self.crowded = {} if self._peers is None else self._peers.crowded
        for slot in self._found.keys() & turns.keys():
            by_others = waits_by_others(turns[slot])
            self._found[slot] = joint_pending(self._found[slot], by_others) or {}

    def _figures(self, slot: int) -> Mapping[str, Pending]:
        content = self._memory[slot * _DISTANCE : (slot + 1) * _DISTANCE]
        return {} if content == _NOTHING else decode_pending(content)

    def close(self) -> None:
        """Unmap; the map itself lives as long as its descriptors."""
        self._memory.close()
        self._reading.close()


def decode_pending(content: bytes) -> Mapping[str, Pending]:
    """Return the figures of one slot, of the kinds that have some."""
    found = {}
    for index, kind in enumerate(KINDS_OF_SOCKETS):
        figures = PENDING.packing.unpack_from(content, index * PENDING.size)
        pending = Pending(**dict(zip(PENDING.members, figures, strict=True)))
        if pending.count:
            found[kind.name] = pending
    return found


def unread(coverage: tuple[StageCoverage, ...], reason: str) -> tuple[StageCoverage, ...]:
    """Return the coverage of a node on which it is unknown what is pending, for this reason."""
    rows = [stage for stage in coverage if stage.name == stages.PENDING]
    if any(row.state is CoverageState.UNAVAILABLE for row in rows):
        return coverage
    others = tuple(stage for stage in coverage if stage.name != stages.PENDING)
    row = StageCoverage(
        stages.PENDING, CoverageState.UNAVAILABLE, reason=f"the last readings failed: {reason}"
    )
    return (*others, row)
