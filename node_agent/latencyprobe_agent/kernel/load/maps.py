"""Creating the maps of a compiled object.

The kernel wants types for the storage of sockets: a key of 32 bits, and a value of the map's size
(bpf_local_storage_map_alloc_check() and bpf_local_storage_map_check_btf(),
kernel/bpf/bpf_local_storage.c). So such a map gets the smallest BTF that has both.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Iterable

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.compiled import MapDefinition

# include/uapi/linux/btf.h: struct btf_header, struct btf_type and what follows an integer.
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_INTEGER = struct.Struct("=I")
_MAGIC, _VERSION = 0xEB9F, 1
_KIND_INTEGER, _KIND_STRUCT = 1 << 24, 4 << 24
_SIGNED = 1 << 24
_KEY_BYTES = 4
_STRINGS = b"\0int\0value\0"
_KEY_ID, _VALUE_ID = 1, 2


def create_maps(definitions: Iterable[MapDefinition]) -> list[int]:
    """Create the maps and return their descriptors, in the same order.

    Raises KernelRefusedError; then no map is left.
    """
    made: list[int] = []
    try:
        for definition in definitions:
            made.append(_create(definition))  # noqa: PERF401 - those made before are closed
    except BaseException:
        for descriptor in made:
            os.close(descriptor)
        raise
    return made


def storage_types(value_bytes: int) -> bytes:
    """Return BTF with an `int` for keys and a struct of this size for values."""
    types = b"".join(
        (
            _TYPE.pack(_STRINGS.index(b"int"), _KIND_INTEGER, _KEY_BYTES),
            _INTEGER.pack(_SIGNED | 8 * _KEY_BYTES),
            _TYPE.pack(_STRINGS.index(b"value"), _KIND_STRUCT, value_bytes),
        )
    )
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, 0, _HEADER.size),
        *(0, len(types), len(types), len(_STRINGS)),
    )
    return header + types + _STRINGS


def _create(definition: MapDefinition) -> int:
    try:
        return _create_typed(definition)
    except libbpf.KernelRefusedError as error:
        # Before 5.11 maps count as locked memory: bpf_charge_memlock(), kernel/bpf/syscall.c.
        if error.errno != errno.EPERM or not _is_memlock_raised():
            raise
    return _create_typed(definition)


def _create_typed(definition: MapDefinition) -> int:
    if definition.type != libbpf.MAP_TYPE_SK_STORAGE:
        return _create_map(definition, None)
    btf = libbpf.load_btf(storage_types(definition.value_bytes))
    try:
        return _create_map(definition, libbpf.MapTypes(btf, _KEY_ID, _VALUE_ID))
    finally:
        os.close(btf)


def _create_map(definition: MapDefinition, types: libbpf.MapTypes | None) -> int:
    return libbpf.create_map(
        definition.name,
        map_type=definition.type,
        key_bytes=definition.key_bytes,
        value_bytes=definition.value_bytes,
        max_entries=definition.max_entries,
        flags=definition.flags,
        types=types,
    )


def _is_memlock_raised() -> bool:
    """Lift the limit of locked memory, as bcc does; return False if that changes nothing."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK) == unlimited:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    except (OSError, ValueError):
        return False
    return True
