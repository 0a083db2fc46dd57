"""The counts of a histogram as one large number.

The number has a *lane* of 64 bits for each position. So one addition of two such numbers adds all
their counts, and one subtraction subtracts them.
"""

from __future__ import annotations

from array import array
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Literal

LARGEST_COUNT = 2**55 - 1
"""Counts end here, so that the sum of 500 of them is within a lane."""
_LANE_BYTES = 8
# Of bits in a lane, as a power of 2.
_SHIFT = 6
_FULL_LANE = (1 << 64) - 1
# No histogram has more positions.
_LANES = 256
Format = Literal["B", "H", "I", "Q"]
"""Of the counts in a row, as in `struct`: they may be narrower than lanes."""
_WIDTHS: Mapping[Format, int] = {"B": 1, "H": 2, "I": 4, "Q": 8}


def _in_all_lanes(bits: int) -> int:
    return int.from_bytes(bits.to_bytes(_LANE_BYTES, "little") * _LANES, "little")


_BEYOND_LARGEST = _in_all_lanes(_FULL_LANE ^ LARGEST_COUNT)
# By format: the bits of a lane that it lacks.
_BEYOND = {code: _in_all_lanes(_FULL_LANE >> 8 * n << 8 * n) for code, n in _WIDTHS.items()}


class Lanes(Mapping[int, int]):
    """Counts by position, without zeroes. They become a dict once one of them is read.

    `first`: the position of the lowest lane. `number`: all lanes; neither the lowest nor the
    highest is 0. `total`: the sum of the counts.
    """

    __slots__ = ("_counts", "_row", "first", "number", "total")

    def __init__(self, first: int = 0, number: int = 0, total: int = 0) -> None:
        self.first, self.number, self.total = first, number, total
        self._row: list[int] | None = None
        self._counts: dict[int, int] | None = None

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> Lanes:
        """Return the lanes of counts by position."""
        if isinstance(counts, Lanes):
            return counts
        if not counts:
            return cls()
        first, last = min(counts), max(counts)
        row = array("Q", [counts.get(position, 0) for position in range(first, last + 1)])
        return cls.of_row(first, "Q", row.tobytes())

    @classmethod
    def of_row(cls, first: int, code: Format, row: bytes | memoryview) -> Lanes:
        """Return the lanes of counts from the position `first` on; the first and last are not 0.

        `code`: the counts' format. Their sum is below 2**64 - 1.
        """
        width = _WIDTHS[code]
        wide = bytearray(len(row) // width * _LANE_BYTES)
        memoryview(wide).cast(code)[:: _LANE_BYTES // width] = memoryview(row).cast(code)
        number = int.from_bytes(wide, "little")
        # 2**64 leaves 1: so the remainder of all lanes is their sum.
        return cls(first, number, number % _FULL_LANE)

    @property
    def row(self) -> list[int]:
        """The counts from `first` on, with the zeroes between them."""
        if self._row is None:
            self._row = memoryview(self._wide()).cast("Q").tolist()
        return self._row

    def narrow(self) -> tuple[Format, bytes]:
        """Return the format and the bytes of the narrowest row for these counts."""
        code: Format = "Q"
        for narrower, beyond in _BEYOND.items():
            if not self.number & beyond:
                code = narrower
                break
        return code, memoryview(self._wide()).cast(code)[:: _LANE_BYTES // _WIDTHS[code]].tobytes()

    def _wide(self) -> bytes:
        lanes = (self.number.bit_length() + 63) >> _SHIFT
        return self.number.to_bytes(lanes * _LANE_BYTES, "little")

    def __add__(self, other: Lanes) -> Lanes:
        """Add up two rows; sums end at LARGEST_COUNT."""
        joined = LaneSum()
        joined.add(self)
        joined.add(other)
        return joined.value(self.total + other.total)

    def __getitem__(self, position: int) -> int:
        return self._by_position()[position]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_position())

    def __len__(self) -> int:
        return len(self._by_position())

    def __bool__(self) -> bool:
        return self.number != 0

    # The views of a dict are several times as fast as those of a mapping.

    def items(self) -> ItemsView[int, int]:
        """Return positions and counts."""
        return self._by_position().items()

    def values(self) -> ValuesView[int]:
        """Return the counts."""
        return self._by_position().values()

    def _by_position(self) -> dict[int, int]:
        if self._counts is None:
            self._counts = {at: count for at, count in enumerate(self.row, self.first) if count}
        return self._counts


class LaneSum:
    """A running sum of at most 500 rows at a time. Mutable: most of an agent's time goes here."""

    __slots__ = ("_first", "_number")

    def __init__(self) -> None:
        self._first = self._number = 0

    def add(self, row: Lanes) -> None:
        """Add a row."""
        if not self._number:
            self._first, self._number = row.first, row.number
        elif row.number:
            above = row.first - self._first
            if above >= 0:
                self._number += row.number << (above << _SHIFT)
            else:
                self._number = (self._number << (-above << _SHIFT)) + row.number
                self._first = row.first

    def subtract(self, row: Lanes) -> None:
        """Subtract a row that was added."""
        if not row.number:
            return
        number = self._number - (row.number << ((row.first - self._first) << _SHIFT))
        if number and not number & _FULL_LANE:
            empty = ((number & -number).bit_length() - 1) >> _SHIFT
            self._first += empty
            number >>= empty << _SHIFT
        self._number = number

    def value(self, total: int) -> Lanes:
        """Return the sum, whose counts end at LARGEST_COUNT. `total`: the sum of all counts."""
        if not self._number & _BEYOND_LARGEST:
            return Lanes(self._first, self._number, total)
        counts = Lanes(self._first, self._number).items()
        return Lanes.of({position: min(count, LARGEST_COUNT) for position, count in counts})
