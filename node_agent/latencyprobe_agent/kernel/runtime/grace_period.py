"""The end of all runs of programs that began before now: a grace period of RCU."""

from __future__ import annotations

import ctypes
import os
import time
from functools import cache

_SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_CMD_GLOBAL = 1
_GRACE_S = 0.002


def wait_for_running_programs() -> None:
    """Return when no program that read the old configuration still runs.

    Tracing programs run in an RCU read-side section, and MEMBARRIER_CMD_GLOBAL waits for one grace
    period, kernel/sched/membarrier.c. Kernels with nohz_full CPUs refuse it: then a sleep that is a
    thousand times a program's run has to do.
    """
    number = _SYS_MEMBARRIER.get(os.uname().machine)
    if number is None or _libc().syscall(number, _MEMBARRIER_CMD_GLOBAL, 0, 0) != 0:
        time.sleep(_GRACE_S)


@cache
def _libc() -> ctypes.CDLL:
    """Return the C library. Opening it takes milliseconds each time."""
    return ctypes.CDLL(None, use_errno=True)
