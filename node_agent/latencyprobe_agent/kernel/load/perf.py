"""Attaching programs to kprobes, by perf events that live as long as their descriptor."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

from latencyprobe_agent.kernel.libbpf import KernelRefusedError

_PMU = Path("/sys/bus/event_source/devices/kprobe/type")  # CONFIG_KPROBE_EVENTS, 4.17+
_RETURNING = 1  # bit 0 of `config`: /sys/bus/event_source/devices/kprobe/format/retprobe
_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
# include/uapi/linux/perf_event.h
_FLAG_FD_CLOEXEC = 8
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x40042408
_EVERY_PROCESS, _ANY_CPU, _NO_GROUP = -1, 0, -1


class _PerfEventAttr(ctypes.Structure):
    # struct perf_event_attr up to PERF_ATTR_SIZE_VER1, include/uapi/linux/perf_event.h
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("kprobe_func", ctypes.c_char_p),
        ("probe_offset", ctypes.c_uint64),
    )


def attach_kprobe(program_fd: int, function: str, *, returning: bool) -> int:
    """Run a program at a kernel function's entry or return; return the descriptor that keeps it.

    The event is bound to a CPU in name only, programs run on all of them: kprobe_perf_func(),
    kernel/trace/trace_kprobe.c. Raises KernelRefusedError.
    """
    event = _open(function, returning=returning)
    try:
        fcntl.ioctl(event, _IOC_SET_BPF, program_fd)
        fcntl.ioctl(event, _IOC_ENABLE, 0)
    except OSError as error:
        os.close(event)
        raise KernelRefusedError(error.errno or 0, "attach") from error
    return event


def _open(function: str, *, returning: bool) -> int:
    number = _SYS_PERF_EVENT_OPEN.get(os.uname().machine)
    try:
        pmu = int(_PMU.read_text())
    except OSError as error:
        raise KernelRefusedError(error.errno or 0, f"attach: cannot read {_PMU}") from error
    if number is None:
        machine = os.uname().machine
        raise KernelRefusedError(errno.ENOSYS, f"attach: no perf_event_open on {machine}")
    attributes = _PerfEventAttr(
        type=pmu,
        size=ctypes.sizeof(_PerfEventAttr),
        config=_RETURNING if returning else 0,
        sample_period=1,
        kprobe_func=function.encode(),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    event: int = libc.syscall(
        ctypes.c_long(number),
        ctypes.byref(attributes),
        *(ctypes.c_int(part) for part in (_EVERY_PROCESS, _ANY_CPU, _NO_GROUP)),
        ctypes.c_ulong(_FLAG_FD_CLOEXEC),
    )
    if event < 0:
        raise KernelRefusedError(ctypes.get_errno(), "attach")
    return event
