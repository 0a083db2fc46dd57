"""The cost of calling a program, which the kernel's statistics leave out: measured at the start.

A packet pays for each program that runs: the program's run time, and the call and the return. The
latter is measured with an empty program at the tracepoint `task_rename`, which this thread fires by
setting its name again. Rounds with and without the program alternate, since the speed
of a machine changes within milliseconds.
"""

from __future__ import annotations

import ctypes
import logging
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from latencyprobe.process.os_errors import explained
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import DISPATCH_NOT_MEASURED, Dispatch

log = logging.getLogger(__name__)

# A figure outside these, or whose upper quartile is beyond this multiple of its lower one, is
# noise.
LEAST_NS, MOST_NS = 40.0, 400.0
MOST_SPREAD = 2.0
_ROUNDS = 24
_LEAST_ROUNDS = 8
_CALLS = 200
# Read before each call. A program that runs for a packet is not in the CPU's first cache either: a
# loop of nothing but calls takes 60 ns for what costs a packet 110.
_OTHER_DATA = bytes(1 << 16)
_LONGEST_S = 0.4
_TRACEPOINT = "task_rename"  # __set_task_comm(), fs/exec.c
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_NAME_BYTES = 16
# r0 = 0; exit
_EMPTY_PROGRAM = bytes((0xB7, *(0,) * 7, 0x95, *(0,) * 7))


class DispatchMeasurement:
    """The measurement of the dispatch, which goes on in a thread of its own from `begin`."""

    def __init__(self) -> None:
        self._measuring: Future[Dispatch] | None = None

    def begin(self) -> None:
        """Begin to measure."""
        thread = ThreadPoolExecutor(1, "latencyprobe-dispatch")
        self._measuring = thread.submit(measure)
        thread.shutdown(wait=False)

    @property
    def dispatch(self) -> Dispatch:
        """The measured dispatch; until it is there, the assumed one."""
        if self._measuring is None:
            return DISPATCH_NOT_MEASURED
        if not self._measuring.done():
            return Dispatch(reason="it is being measured")
        return self._measuring.result()


def measure() -> Dispatch:
    """Measure for at most half a second; where that fails, return the assumed dispatch."""
    try:
        dispatch = judge(_differences())
    except OSError as error:
        dispatch = Dispatch(reason=explained(error))
    if dispatch.reason:
        log.info("a call of a program is taken for %.0f ns: %s", dispatch.ns, dispatch.reason)
    else:
        log.info("a call of a program takes %.0f ns", dispatch.ns)
    return dispatch


def judge(differences: Sequence[float]) -> Dispatch:
    """Return the dispatch by the differences of pairs of rounds, in nanoseconds a call."""
    if len(differences) < _LEAST_ROUNDS:
        return Dispatch(reason=f"only {len(differences)} rounds were measured")
    low, middle, high = statistics.quantiles(differences, n=4)
    if not LEAST_NS <= middle <= MOST_NS:
        return Dispatch(
            reason=f"{middle:.0f} ns were measured, outside {LEAST_NS:.0f} to {MOST_NS:.0f} ns"
        )
    if low <= 0 or high / low > MOST_SPREAD:
        return Dispatch(reason=f"the measured values spread from {low:.0f} to {high:.0f} ns")
    return Dispatch(middle)


def _differences() -> list[float]:
    """Return the cost of the program by pairs of rounds. Raises OSError."""
    deadline = time.monotonic() + _LONGEST_S
    program = libbpf.load_program(
        "dispatch", _EMPTY_PROGRAM, program_type=libbpf.PROG_TYPE_RAW_TRACEPOINT
    )
    found: list[float] = []
    try:
        while len(found) < _ROUNDS and time.monotonic() < deadline:
            without = _fire()
            link = libbpf.attach_raw_tracepoint(program, _TRACEPOINT)
            try:
                found.append(_fire() - without)
            finally:
                os.close(link)
    finally:
        os.close(program)
    return found


def _fire() -> float:
    """Fire the tracepoint many times; return the median of the times, in nanoseconds."""
    # Keeps the interpreter's lock: taking it would be part of each time.
    prctl = ctypes.PyDLL(None).prctl
    name = ctypes.create_string_buffer(_NAME_BYTES)
    prctl(_PR_GET_NAME, name, 0, 0, 0)
    times: list[int] = []
    for _ in range(_CALLS):
        _OTHER_DATA.find(b"\1")
        began = time.perf_counter_ns()
        prctl(_PR_SET_NAME, name, 0, 0, 0)
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times)
