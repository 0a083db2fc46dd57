"""An array map whose elements programs and the agent both write.

Each member of an element has one writer. So the agent writes members, not elements: writing an
element back would undo what programs have changed in it since it was read.
"""

from __future__ import annotations

import struct
from mmap import mmap

from latencyprobe_agent.kernel.abi import Layout

_U32 = struct.Struct("=I")
_MASK = 0xFFFF_FFFF
_SIGN = 1 << 31
_ALIGNMENT = 8


class MappedArray:
    """The elements of an array of structs of 32-bit numbers, in this process's memory."""

    def __init__(self, memory: mmap | bytearray, layout: Layout) -> None:
        self._memory = memory
        self._distance = distance_of(layout)
        self._offsets = {member: layout.offset(member) for member in layout.members}

    @classmethod
    def of_map(cls, map_fd: int, layout: Layout, elements: int) -> MappedArray:
        """Map this map (BPF_F_MMAPABLE)."""
        return cls(mmap(map_fd, elements * distance_of(layout)), layout)

    def get(self, place: int, member: str) -> int:
        """Return a member of an element, without a sign."""
        number: int = _U32.unpack_from(self._memory, self._at(place, member))[0]
        return number

    def set(self, place: int, member: str, number: int) -> None:
        """Set a member of an element; of a number beyond 32 bits, the lowest ones."""
        at = self._at(place, member)
        # At once: a program may read it at the same time.
        self._memory[at : at + _U32.size] = _U32.pack(number & _MASK)

    def add(self, place: int, member: str, number: int) -> None:
        """Add to a member that this side alone writes, modulo 2**32."""
        self.set(place, member, self.get(place, member) + number)

    def close(self) -> None:
        """Unmap the map."""
        if isinstance(self._memory, mmap):
            self._memory.close()

    def _at(self, place: int, member: str) -> int:
        return place * self._distance + self._offsets[member]


class Growth:
    """The growth of a counter that programs write, by place."""

    def __init__(self, table: MappedArray, member: str) -> None:
        self._table = table
        self._member = member
        self._seen: dict[int, int] = {}

    def begin(self, place: int) -> None:
        """Count from now on: the place has another user."""
        self._seen[place] = self._table.get(place, self._member)

    def take(self, place: int) -> bool:
        """Return True if it has grown since the last call, or since `begin`."""
        before = self._seen.get(place, 0)
        self.begin(place)
        return before != self._seen[place]


def distance_of(layout: Layout) -> int:
    """Return the bytes from one element to the next: array_map_alloc(), kernel/bpf/arraymap.c."""
    return -(-layout.size // _ALIGNMENT) * _ALIGNMENT


def signed(number: int) -> int:
    """Return a difference of two free-running 32-bit numbers, with its sign."""
    low = number & _MASK
    return low - (_MASK + 1) if low & _SIGN else low
