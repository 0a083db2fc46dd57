"""sock_ops programs of others on cgroups, and processes whose connects run them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from latencyprobe_agent.kernel import libbpf

_INSTRUCTION = struct.Struct("<BBhi")
_CALL_SET_FLAGS = 59  # BPF_FUNC_sock_ops_cb_flags_set
_CONNECT, _ROUND_TRIP = 3, 8  # BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_RTT_CB_FLAG
_RETURN_1 = _INSTRUCTION.pack(0xB7, 0, 0, 1) + _INSTRUCTION.pack(0x95, 0, 0, 0)
# if (ops->op == CONNECT) bpf_sock_ops_cb_flags_set(ops, ROUND_TRIP);
_SET_FLAG = b"".join(
    _INSTRUCTION.pack(*instruction)
    for instruction in (
        (0x61, 0x12, 0, 0),
        (0x55, 0x02, 2, _CONNECT),
        (0xB7, 0x02, 0, _ROUND_TRIP),
        (0x85, 0x00, 0, _CALL_SET_FLAGS),
    )
)


class Flags(IntEnum):
    """How a program is attached: BPF_F_ALLOW_, include/uapi/linux/bpf.h."""

    NONE = 0
    OVERRIDE = 1
    MULTI = 2


class Foreign:
    """A program, attached by BPF_PROG_ATTACH as tools without links do."""

    def __init__(self, *, sets_flag: bool = False) -> None:
        code = _SET_FLAG + _RETURN_1 if sets_flag else _RETURN_1
        self.descriptor = libbpf.load_program(
            "foreign", code, program_type=libbpf.PROG_TYPE_SOCK_OPS
        )
        self._places: set[Path] = set()

    @property
    def number(self) -> int:
        return int(libbpf.program_info(self.descriptor).id)

    @property
    def runs(self) -> int:
        """How often it ran, while the kernel counts: `counting`."""
        return int(libbpf.program_info(self.descriptor).run_cnt)

    def attach(self, directory: Path, flags: Flags) -> None:
        with _opened(directory) as target:
            result = libbpf.library().bpf_prog_attach(
                self.descriptor, target, libbpf.ATTACH_TYPE_SOCK_OPS, int(flags)
            )
        if result < 0:
            raise OSError(ctypes.get_errno() or -result, "cannot attach a foreign program")
        self._places.add(directory)

    def detach(self, directory: Path) -> None:
        self._places.discard(directory)
        with _opened(directory) as target:
            result = libbpf.library().bpf_prog_detach2(
                self.descriptor, target, libbpf.ATTACH_TYPE_SOCK_OPS
            )
        assert result == 0, errno.errorcode[ctypes.get_errno()]

    def close(self) -> None:
        for directory in list(self._places):
            self.detach(directory)
        os.close(self.descriptor)


@contextmanager
def foreign(*, sets_flag: bool = False) -> Iterator[Foreign]:
    """A program of another, loaded."""
    made = Foreign(sets_flag=sets_flag)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def on_cgroup(directory: Path) -> tuple[int, ...]:
    """The ids of the sock_ops programs on a cgroup itself."""
    with _opened(directory) as descriptor:
        return libbpf.programs_on_cgroup(descriptor, libbpf.ATTACH_TYPE_SOCK_OPS).numbers


def connect_once(directory: Path) -> None:
    """A process in this cgroup connects to a port of its own loopback where nobody listens."""
    script = f"echo $$ > {directory}/cgroup.procs && exec 3<>/dev/tcp/127.0.0.1/9"
    subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec bash -c "$0"', script],
        check=False,
        stderr=subprocess.DEVNULL,
    )
