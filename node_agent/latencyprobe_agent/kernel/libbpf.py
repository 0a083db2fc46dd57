"""The few functions of libbpf that we use, by ctypes.

libbpf is a third of a megabyte; bcc's own library brings LLVM (100 MB). So the long-lived agent
reads BTF and maps through libbpf and leaves bcc to the compiler process.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PROG_TYPE_KPROBE = 2
PROG_TYPE_SCHED_CLS = 3
PROG_TYPE_CGROUP_SKB = 8
PROG_TYPE_SOCK_OPS = 13
PROG_TYPE_RAW_TRACEPOINT = 17
PROG_TYPE_CGROUP_SOCK_ADDR = 18
PROG_TYPE_TRACING = 26
ATTACH_TYPE_CGROUP_INGRESS = 0
ATTACH_TYPE_SOCK_OPS = 3
ATTACH_TYPE_CONNECT4 = 10
ATTACH_TYPE_CONNECT6 = 11
ATTACH_TYPE_TRACE_RAW_TP = 23
ATTACH_TYPE_TRACE_FENTRY = 24
ATTACH_TYPE_TRACE_FEXIT = 25
ATTACH_TYPE_TRACE_ITER = 28
ATTACH_TYPE_GETPEERNAME4 = 29
ATTACH_TYPE_GETPEERNAME6 = 30
ATTACH_TYPE_TCX_INGRESS = 46
ATTACH_TYPE_TCX_EGRESS = 47
MAP_TYPE_SK_STORAGE = 24
_MAP_TYPE_RINGBUF = 27
_NAME_BYTES = 15  # BPF_OBJ_NAME_LEN less the NUL
_STATS_RUN_TIME = 0
_ALLOW_MULTI = 2  # BPF_F_ALLOW_MULTI
_QUERY_EFFECTIVE = 1  # BPF_F_QUERY_EFFECTIVE
_BEFORE = 1 << 3  # BPF_F_BEFORE
_MOST_ON_CGROUP = 1024  # ten times what the kernel attaches to one level, BPF_CGROUP_MAX_PROGS
_VERIFIER_LOG_BYTES = 1 << 20
_READ_BYTES = 4096


class LibbpfMissingError(RuntimeError):
    """libbpf cannot be loaded."""


class KernelRefusedError(OSError):
    """A refusal of the kernel. `errno` is its answer, `log` the verifier's last lines.

    `action`: the refused action, such as "attach".
    """

    def __init__(self, code: int, action: str, log: str = "") -> None:
        super().__init__(code, f"cannot {action}: {os.strerror(code)}")
        self.log = log

    @property
    def answer(self) -> str:
        """The refused action, and the errno by text and name, in one line."""
        return f"{self.strerror} ({errno.errorcode.get(self.errno or 0, str(self.errno))})"

    def __str__(self) -> str:
        return f"{self.answer}\n{self.log}" if self.log else self.answer


class _ProgLoadOptions(ctypes.Structure):
    # struct bpf_prog_load_opts, bpf.h of libbpf 1.0
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


class _MapCreateOptions(ctypes.Structure):
    # struct bpf_map_create_opts, bpf.h of libbpf 1.0
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _LinkCreateOptions(ctypes.Structure):
    # struct bpf_link_create_opts, bpf.h of libbpf 1.0, up to the flags
    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint64))


class _IteratorOptions(ctypes.Structure):
    # struct bpf_link_create_opts, bpf.h of libbpf 1.0, up to the target's type
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.POINTER(ctypes.c_uint32)),
        ("iter_info_len", ctypes.c_uint32),
        ("target_btf_id", ctypes.c_uint32),
    )


class MapInfo(ctypes.Structure):
    """struct bpf_map_info, include/uapi/linux/bpf.h, up to the flags."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class MapTypes(NamedTuple):
    """The types of a map's keys and values: ids in a BTF that is loaded."""

    btf_fd: int
    key_id: int
    value_id: int


class OnCgroup(NamedTuple):
    """The programs of one kind on a cgroup, by the kernel's ids.

    `is_shared`: they allow other programs on the cgroup and below it (BPF_F_ALLOW_MULTI).
    """

    numbers: tuple[int, ...]
    is_shared: bool


class _DeviceLinkInfo(ctypes.Structure):
    # struct bpf_link_info of a link to a device, include/uapi/linux/bpf.h
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
    )


class ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info, include/uapi/linux/bpf.h, up to `verified_insns` (5.16+)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_instructions", ctypes.c_uint32),
    )


def _load() -> ctypes.CDLL:
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise LibbpfMissingError("libbpf is not installed: install the package libbpf1 (or libbpf)")


_library: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """Return libbpf, loaded once. Raises LibbpfMissingError with the package to install."""
    global _library  # noqa: PLW0603 - one library per process
    if _library is None:
        _library = _load()
        for name in ("btf__load_vmlinux_btf", "btf__type_by_id", "btf__name_by_offset"):
            getattr(_library, name).restype = ctypes.c_void_p
        _library.btf_dump__new.restype = ctypes.c_void_p
        _library.libbpf_set_print(None)
    return _library


def _check(result: int, action: str, log: str = "") -> int:
    if result < 0:
        raise KernelRefusedError(ctypes.get_errno() or -result, action, log)
    return result


def load_program(
    name: str,
    instructions: bytes,
    *,
    program_type: int,
    attach_type: int = 0,
    attach_btf_id: int = 0,
) -> int:
    """Load one program and return its file descriptor.

    Raises KernelRefusedError with the tail of the verifier's log.
    """
    options = _ProgLoadOptions(
        sz=ctypes.sizeof(_ProgLoadOptions),
        expected_attach_type=attach_type,
        attach_btf_id=attach_btf_id,
    )
    arguments = (
        program_type,
        name.encode()[:_NAME_BYTES],
        b"GPL",
        instructions,
        len(instructions) // 8,
    )
    result = library().bpf_prog_load(*arguments, ctypes.byref(options))
    if result >= 0:
        return int(result)
    number = ctypes.get_errno()
    # Only now with the log: writing it makes the verifier ten times slower.
    # In a mapping of its own, which goes back to the kernel.
    with mmap.mmap(-1, _VERIFIER_LOG_BYTES) as log:
        buffer = ctypes.c_char.from_buffer(log)
        options.log_level, options.log_size = 1, _VERIFIER_LOG_BYTES
        options.log_buf = ctypes.addressof(buffer)
        result = library().bpf_prog_load(*arguments, ctypes.byref(options))
        said = _tail(log[: log.find(b"\0")])
        del buffer  # else the mapping cannot be closed
    if ctypes.get_errno() == errno.ENOSPC:
        ctypes.set_errno(number)  # the log was full, which is not why the kernel refused it
    return _check(result, f"load {name}", said)


def _tail(log: bytes, lines: int = 12) -> str:
    return "\n".join(log.decode(errors="replace").strip().splitlines()[-lines:])


def create_map(
    name: str,
    *,
    map_type: int,
    key_bytes: int,
    value_bytes: int,
    max_entries: int,
    flags: int,
    types: MapTypes | None = None,
) -> int:
    """Create a map and return its file descriptor. Raises KernelRefusedError."""
    options = _MapCreateOptions(sz=ctypes.sizeof(_MapCreateOptions), map_flags=flags)
    if types is not None:
        options.btf_fd, options.btf_key_type_id, options.btf_value_type_id = types
    result = library().bpf_map_create(
        map_type,
        name.encode()[:_NAME_BYTES],
        key_bytes,
        value_bytes,
        max_entries,
        ctypes.byref(options),
    )
    return _check(result, f"create map {name}")


def map_info(map_fd: int) -> MapInfo:
    """Return the kernel's description of a map."""
    info = MapInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    result = library().bpf_obj_get_info_by_fd(map_fd, ctypes.byref(info), ctypes.byref(length))
    _check(result, "read the description of a map")
    return info


def load_btf(content: bytes) -> int:
    """Load types and return the file descriptor. Raises KernelRefusedError."""
    return _check(library().bpf_btf_load(content, len(content), None), "load types of maps")


def attach_raw_tracepoint(program_fd: int, tracepoint: str | None) -> int:
    """Attach and return the link's descriptor; `tracepoint` is None for programs typed by BTF."""
    name = tracepoint.encode() if tracepoint is not None else None
    return _check(library().bpf_raw_tracepoint_open(name, program_fd), "attach")


def attach_iterator(program_fd: int, map_fd: int | None = None) -> int:
    """Attach an iterator's program and return the link's descriptor.

    `map_fd`: of an iterator over the elements of a map.
    """
    options = None
    if map_fd is not None:
        # union bpf_iter_link_info, include/uapi/linux/bpf.h; bpf_link_create() keeps no pointer.
        over = ctypes.c_uint32(map_fd)
        options = ctypes.byref(
            _IteratorOptions(
                sz=ctypes.sizeof(_IteratorOptions),
                iter_info=ctypes.pointer(over),
                iter_info_len=ctypes.sizeof(over),
            )
        )
    result = library().bpf_link_create(program_fd, 0, ATTACH_TYPE_TRACE_ITER, options)
    return _check(result, "attach")


def run_iterator(link_fd: int) -> bytes:
    """Run an iterator's program for each object; return what it writes. Raises OSError."""
    iteration = _check(library().bpf_iter_create(link_fd), "create an iterator")
    try:
        return b"".join(_read_to_end(iteration))
    finally:
        os.close(iteration)


def _read_to_end(iteration: int) -> Iterator[bytes]:
    while True:
        try:
            written = os.read(iteration, _READ_BYTES)
        except BlockingIOError:  # after a million objects: bpf_seq_read(), kernel/bpf/bpf_iter.c
            continue
        if not written:
            return
        yield written


def create_link(program_fd: int, target_fd: int, attach_type: int) -> int:
    """Attach a program to a cgroup (5.7+); return the descriptor that keeps it attached."""
    return _check(library().bpf_link_create(program_fd, target_fd, attach_type, None), "attach")


def create_device_link(program_fd: int, ifindex: int, attach_type: int, *, first: bool) -> int:
    """Attach a program to a device of the thread's network namespace (6.6+).

    Return the descriptor that keeps it attached. `first`: ahead of the programs that are there,
    else behind them.
    """
    options = _LinkCreateOptions(
        sz=ctypes.sizeof(_LinkCreateOptions), flags=_BEFORE if first else 0
    )
    result = library().bpf_link_create(program_fd, ifindex, attach_type, ctypes.byref(options))
    return _check(result, "attach")


def update_link(link_fd: int, program_fd: int) -> None:
    """Replace the program of a link to a device, at once. Raises KernelRefusedError."""
    _check(library().bpf_link_update(link_fd, program_fd, None), "replace a program")


def device_of_link(link_fd: int) -> int:
    """Return the ifindex of a link's device; 0 if the device is gone."""
    info = _DeviceLinkInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    result = library().bpf_obj_get_info_by_fd(link_fd, ctypes.byref(info), ctypes.byref(length))
    _check(result, "read the description of a link")
    return int(info.ifindex)


def programs_on_cgroup(cgroup_fd: int, attach_type: int, *, effective: bool = False) -> OnCgroup:
    """Return the programs on a cgroup; `effective`: all that run for it, its ancestors' too."""
    numbers = (ctypes.c_uint32 * _MOST_ON_CGROUP)()
    count = ctypes.c_uint32(_MOST_ON_CGROUP)
    flags = ctypes.c_uint32()
    result = library().bpf_prog_query(
        cgroup_fd,
        attach_type,
        _QUERY_EFFECTIVE if effective else 0,
        ctypes.byref(flags),
        numbers,
        ctypes.byref(count),
    )
    _check(result, "query the programs of a cgroup")
    return OnCgroup(tuple(numbers[: count.value]), bool(flags.value & _ALLOW_MULTI))


def program_info(program_fd: int) -> ProgramInfo:
    """Return the kernel's statistics of a program: run time, runs and missed runs."""
    info = ProgramInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    result = library().bpf_obj_get_info_by_fd(program_fd, ctypes.byref(info), ctypes.byref(length))
    _check(result, "read the statistics of a program")
    return info


def enable_run_time_statistics() -> int:
    """Switch on run-time statistics of programs while the descriptor is open (5.8+)."""
    return _check(library().bpf_enable_stats(_STATS_RUN_TIME), "enable run-time statistics")


def has_ring_buffers() -> bool:
    """Return True if this kernel has BPF_MAP_TYPE_RINGBUF (5.8+); makes one to find out."""
    return bool(library().libbpf_probe_bpf_map_type(_MAP_TYPE_RINGBUF, None) > 0)


def update(map_fd: int, key: bytes, value: bytes) -> None:
    """Set one entry. Raises KernelRefusedError, E2BIG for a full map."""
    _check(library().bpf_map_update_elem(map_fd, key, value, ctypes.c_uint64(0)), "set an entry")


def delete(map_fd: int, key: bytes) -> bool:
    """Delete one entry; return False if it does not exist."""
    if library().bpf_map_delete_elem(map_fd, key) >= 0:
        return True
    if ctypes.get_errno() != errno.ENOENT:
        raise KernelRefusedError(ctypes.get_errno(), "delete an entry")
    return False


def look_up(map_fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """Return the value of one entry; None if it does not exist. Raises KernelRefusedError."""
    value = ctypes.create_string_buffer(value_bytes)
    if library().bpf_map_lookup_elem(map_fd, key, value) >= 0:
        return value.raw
    if ctypes.get_errno() != errno.ENOENT:
        raise KernelRefusedError(ctypes.get_errno(), "read an entry")
    return None


def keys(map_fd: int, key_size: int) -> Sequence[bytes]:
    """Return all keys of a map, as they are at some time during the call.

    Raises KernelRefusedError: with some of the keys alone, the other entries would seem deleted.
    """
    found: list[bytes] = []
    key: bytes | None = None
    following = ctypes.create_string_buffer(key_size)
    while library().bpf_map_get_next_key(map_fd, key, following) >= 0:
        key = following.raw
        found.append(key)
    if ctypes.get_errno() != errno.ENOENT:
        raise KernelRefusedError(ctypes.get_errno(), "read the keys of a map")
    return found
