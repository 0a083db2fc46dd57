"""The programs' own arrays of packets under way, to which the agent keeps no descriptor."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from latencyprobe_agent.kernel import libbpf

NAMES = frozenset({"entered", "received", "sent", "driving"})
_MOST_MAPS = 64
_Info = TypeVar("_Info", bound=ctypes.Structure)


class _NamedMap(ctypes.Structure):
    """struct bpf_map_info, include/uapi/linux/bpf.h, up to the name."""

    _fields_ = (*libbpf.MapInfo._fields_, ("name", ctypes.c_char * 16))


def clear(programs: Iterable[int]) -> set[str]:
    """Set all elements to zeroes, which no packet's are. Returns the names of the arrays."""
    cleared = set()
    for number in {number for program in programs for number in _map_numbers(program)}:
        descriptor = _checked(libbpf.library().bpf_map_get_fd_by_id(number))
        try:
            info = _described(descriptor, _NamedMap())
            name = info.name.decode()
            if name in NAMES:
                _clear(descriptor, info)
                cleared.add(name)
        finally:
            os.close(descriptor)
    return cleared


def _map_numbers(program: int) -> Iterator[int]:
    numbers = (ctypes.c_uint32 * _MOST_MAPS)()
    info = libbpf.ProgramInfo(nr_map_ids=_MOST_MAPS, map_ids=ctypes.addressof(numbers))
    used = _described(program, info).nr_map_ids
    assert used <= _MOST_MAPS
    yield from numbers[:used]


def _described(descriptor: int, info: _Info) -> _Info:
    length = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(
        libbpf.library().bpf_obj_get_info_by_fd(
            descriptor, ctypes.byref(info), ctypes.byref(length)
        )
    )
    return info


def _clear(array: int, info: _NamedMap) -> None:
    """By BPF_MAP_UPDATE_BATCH, since Linux 5.6."""
    count = ctypes.c_uint32(info.max_entries)
    keys = (ctypes.c_uint32 * info.max_entries)(*range(info.max_entries))
    values = bytes(info.max_entries * info.value_size)
    _checked(libbpf.library().bpf_map_update_batch(array, keys, values, ctypes.byref(count), None))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
