"""Drivers and their own statistics (`ethtool -S`), by ioctl.

pyroute2 could do this, at 22 MiB of memory, a third of the agent's limit.
"""

from __future__ import annotations

import ctypes
import fcntl
import re
import socket
import struct
from dataclasses import dataclass

from latencyprobe.process.os_errors import is_transient

_SIOCETHTOOL = 0x8946  # include/uapi/linux/sockios.h
# include/uapi/linux/ethtool.h
_GDRVINFO = 0x03
_GSTRINGS = 0x1B
_GSTATS = 0x1D
_SS_STATS = 1
_STRING_BYTES = 32
_DRVINFO_BYTES = 196
_DRVINFO_DRIVER = slice(4, 36)
_DRVINFO_N_STATS = 180
_IFREQ = struct.Struct("=16sQ16x")
# A NIC with a hundred queues has some thousand statistics.
_MOST = 16384
_ERROR_NAME = re.compile(r"drop|err|discard|miss|no_?buf|timeout|fifo", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Driver:
    """A device's driver. `places`: positions of the error statistics among its statistics."""

    name: str
    statistics: int
    places: tuple[tuple[str, int], ...]


def driver_of(channel: socket.socket, device: str) -> Driver | None:
    """Return the driver of a device in the socket's network namespace; None without one.

    Raises OSError if the error is transient.

    `channel` is any socket: its namespace counts, not the current one of its owner.
    """
    try:
        info = _ask(channel, device, struct.pack("=I", _GDRVINFO), _DRVINFO_BYTES)
        name = info[_DRVINFO_DRIVER].partition(b"\0")[0].decode("ascii", "replace")
        (count,) = struct.unpack_from("=I", info, _DRVINFO_N_STATS)
        return Driver(name, count, _error_places(_names(channel, device, count)))
    except OSError as error:
        if is_transient(error):
            raise
        return None


def statistics_of(channel: socket.socket, device: str, driver: Driver) -> dict[str, int]:
    """Return the driver's error statistics; none if the device has changed.

    Raises OSError if the error is transient: the growth until then would be lost.
    """
    if not driver.places:
        return {}
    try:
        answer = _ask(
            channel, device, struct.pack("=II", _GSTATS, 0), 8 + 8 * _room(driver.statistics)
        )
    except OSError as error:
        if is_transient(error):
            raise
        return {}
    (count,) = struct.unpack_from("=I", answer, 4)
    if count != driver.statistics:
        return {}
    values = struct.unpack_from(f"={count}Q", answer, 8)
    return {name: values[place] for name, place in driver.places}


def _names(channel: socket.socket, device: str, count: int) -> list[str]:
    if not 0 < count <= _MOST:
        return []
    head = struct.pack("=III", _GSTRINGS, _SS_STATS, 0)
    answer = _ask(channel, device, head, 12 + _STRING_BYTES * _room(count))
    (named,) = struct.unpack_from("=I", answer, 8)
    if named != count:
        return []
    strings = (answer[12 + n * _STRING_BYTES :][:_STRING_BYTES] for n in range(count))
    return [each.partition(b"\0")[0].decode("ascii", "replace") for each in strings]


def _error_places(names: list[str]) -> tuple[tuple[str, int], ...]:
    return tuple((name, place) for place, name in enumerate(names) if _ERROR_NAME.search(name))


def _room(count: int) -> int:
    """Return a generous buffer size: the kernel writes all statistics and checks no size."""
    return 2 * count + 1024


def _ask(channel: socket.socket, device: str, head: bytes, size: int) -> bytes:
    """Send a command of ethtool; return the buffer that the kernel has written."""
    buffer = ctypes.create_string_buffer(head, size)
    request = _IFREQ.pack(device.encode()[:15], ctypes.addressof(buffer))
    fcntl.ioctl(channel, _SIOCETHTOOL, request)
    return buffer.raw
