"""Programs of others on cgroups, and processes whose connects run them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, IntEnum
from pathlib import Path

from latencyprobe_agent.kernel import libbpf

_INSTRUCTION = struct.Struct("<BBhi")
_CALL_SET_FLAGS = 59  # BPF_FUNC_sock_ops_cb_flags_set
_CONNECT, _ROUND_TRIP = 3, 8  # BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_RTT_CB_FLAG
_RETURN = _INSTRUCTION.pack(0x95, 0, 0, 0)
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


class Kind(Enum):
    """A kind of program on cgroups: its type, and where it is attached."""

    SOCK_OPS = (libbpf.PROG_TYPE_SOCK_OPS, libbpf.ATTACH_TYPE_SOCK_OPS)
    CGROUP_SKB = (libbpf.PROG_TYPE_CGROUP_SKB, libbpf.ATTACH_TYPE_CGROUP_INGRESS)
    CONNECT4 = (libbpf.PROG_TYPE_CGROUP_SOCK_ADDR, libbpf.ATTACH_TYPE_CONNECT4)

    def __init__(self, program_type: int, attach_type: int) -> None:
        self.program_type, self.attach_type = program_type, attach_type


class Foreign:
    """A program, attached by BPF_PROG_ATTACH as tools without links do.

    `sets_flag`: of SOCK_OPS. `answer`: 1 lets the packet or the call go on, 0 refuses it.
    """

    def __init__(
        self, kind: Kind = Kind.SOCK_OPS, *, sets_flag: bool = False, answer: int = 1
    ) -> None:
        code = _INSTRUCTION.pack(0xB7, 0, 0, answer) + _RETURN
        self.descriptor = libbpf.load_program(
            "foreign",
            _SET_FLAG + code if sets_flag else code,
            program_type=kind.program_type,
            attach_type=kind.attach_type,
        )
        self._attach_type = kind.attach_type
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
                self.descriptor, target, self._attach_type, int(flags)
            )
        if result < 0:
            raise OSError(ctypes.get_errno() or -result, "cannot attach a foreign program")
        self._places.add(directory)

    def detach(self, directory: Path) -> None:
        self._places.discard(directory)
        with _opened(directory) as target:
            result = libbpf.library().bpf_prog_detach2(self.descriptor, target, self._attach_type)
        assert result == 0, errno.errorcode[ctypes.get_errno()]

    def close(self) -> None:
        for directory in list(self._places):
            self.detach(directory)
        os.close(self.descriptor)


@contextmanager
def foreign(
    kind: Kind = Kind.SOCK_OPS, *, sets_flag: bool = False, answer: int = 1
) -> Iterator[Foreign]:
    """A program of another, loaded."""
    made = Foreign(kind, sets_flag=sets_flag, answer=answer)
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


def on_cgroup(directory: Path, kind: Kind = Kind.SOCK_OPS) -> tuple[int, ...]:
    """The ids of the programs of this kind on a cgroup itself."""
    with _opened(directory) as descriptor:
        return libbpf.programs_on_cgroup(descriptor, kind.attach_type).numbers


def connect_once(directory: Path) -> None:
    """A process in this cgroup connects to a port of its own loopback where nobody listens."""
    script = f"echo $$ > {directory}/cgroup.procs && exec 3<>/dev/tcp/127.0.0.1/9"
    subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec bash -c "$0"', script],
        check=False,
        stderr=subprocess.DEVNULL,
    )
