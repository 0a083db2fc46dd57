"""The kernel's histograms: the position that it counts in, and reading while it counts."""

from __future__ import annotations

import ctypes
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from latencyprobe.domain.histogram import LAST_OCTAVE, MANTISSA_THRESHOLDS, POSITIONS, position_of
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import CONFIG, MACROS, bucket_bounds
from latencyprobe_agent.kernel.btf import KernelTypes
from latencyprobe_agent.kernel.build.headers import kernel_source, point_bcc_at
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.sources import source_folder
from tests.live.measuring import CLIENT, SERVER, account_for, assert_all_left, resent
from tests.live.pods import Pod
from tests.live.sockets import connection, everything_in, read_all

Start = Callable[..., KernelEngine]
READINGS = 200
PROGRAM = """
struct bounds {
	u64 of[1 << BOUND_BITS];
};
BPF_ARRAY(tables, struct bounds, 1);

int on_position(u64 *ctx)
{
	u32 zero = 0;
	struct bounds *bounds = tables.lookup(&zero);

	return bounds ? position_of(ctx[0], bounds->of) : POSITIONS;
}
"""


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts, bpf.h of libbpf 0.4."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class PositionProgram:
    """position_of() of bpf/include/histogram.h, compiled, loaded and run by the kernel."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._duration = ctypes.c_uint64()
        self._run = _TestRun(
            sz=ctypes.sizeof(_TestRun),
            ctx_in=ctypes.cast(ctypes.pointer(self._duration), ctypes.c_void_p),
            ctx_size_in=ctypes.sizeof(self._duration),
        )

    def __call__(self, duration_ns: int) -> int:
        self._duration.value = duration_ns
        run = libbpf.library().bpf_prog_test_run_opts
        if run(self._descriptor, ctypes.byref(self._run)):
            raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
        return int(self._run.retval)


@contextmanager
def compiled_position() -> Iterator[PositionProgram]:
    """The header's arithmetic as a program of its own."""
    with kernel_source(KernelTypes()) as tree:
        point_bcc_at(tree)
        from bcc import BPF  # noqa: PLC0415 - brings LLVM

        compiled = BPF(text=position_source().encode())
    bounds = CONFIG.part("bucket_bounds").pack(*bucket_bounds())
    libbpf.update(compiled[b"tables"].map_fd, bytes(4), bounds)
    program = libbpf.load_program(
        "on_position",
        compiled.dump_func(b"on_position"),
        program_type=libbpf.PROG_TYPE_RAW_TRACEPOINT,
    )
    try:
        yield PositionProgram(program)
    finally:
        os.close(program)
        compiled.cleanup()


def position_source() -> str:
    """What position_of() needs of its header, which the maps in it have nothing to do with."""
    header = (source_folder() / "include" / "histogram.h").read_text()
    limits = header[header.index("#define ABOVE_ALL") : header.index("struct stage_stats")]
    begin = header.index("static __always_inline u64 is_above")
    end = header.index("/* NULL for a slot that is not in use")
    constants = "".join(f"#define {name} {value}\n" for name, value in MACROS.items())
    inline = "#define __always_inline inline __attribute__((always_inline))\n"
    return constants + inline + limits + header[begin:end] + PROGRAM


def boundaries() -> Iterator[int]:
    """Every bound of a bucket, exact or rounded, with its neighbours."""
    for octave in range(LAST_OCTAVE + 2):
        for threshold in MANTISSA_THRESHOLDS:
            bound = threshold >> (63 - octave)
            yield from (bound - 1, bound, bound + 1)


def everywhere(seed: int, amount: int) -> Iterator[int]:
    """Durations of all magnitudes that 64 bits hold."""
    choose = random.Random(seed)
    for _ in range(amount):
        yield choose.getrandbits(choose.randrange(1, 65))


@pytest.mark.every_kernel
def test_the_kernel_counts_in_the_position_that_python_reads() -> None:
    durations = {0, 1, 2**64 - 1, *boundaries(), *everywhere(seed=1, amount=20_000)}
    durations.discard(-1)
    with compiled_position() as in_kernel:
        differing = {
            duration: (position, position_of(duration))
            for duration in sorted(durations)
            if (position := in_kernel(duration)) != position_of(duration)
        }
    assert differing == {}
    assert {position_of(duration) for duration in durations} == set(range(POSITIONS))


async def test_reading_while_packets_come_neither_loses_nor_doubles_one(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
    await engine.use(frozenset(DEFAULT_MODULES))
    exchanges = 0
    is_over = threading.Event()
    with connection(client.namespace, server.namespace, server.address) as both:

        def exchange() -> None:
            nonlocal exchanges
            while not is_over.is_set():
                both.client.sendall(b"q" * 64)
                read_all(both.server, 64)
                both.server.sendall(b"r" * 64)
                read_all(both.client, 64)
                exchanges += 1

        exchanging = threading.Thread(target=exchange)
        exchanging.start()
        readings = [engine.read() for _ in range(READINGS)]
        is_over.set()
        exchanging.join()
    readings.append(engine.read())
    assert exchanges > READINGS
    for slot in (CLIENT, SERVER):
        total = sum((reading.get(slot, NOTHING) for reading in readings), start=Measurement())
        for stage in ("rx.softirq", "rx.stack", "rx.socket", "rx.total"):
            assert account_for(total, stage) == (exchanges, 0), stage
        assert_all_left(total, "tx.total", exchanges, resent(total))
        parts = ("rx.softirq", "rx.stack", "rx.socket")
        assert total.stage("rx.total").histogram.sum_ns == sum(
            total.stage(part).histogram.sum_ns for part in parts
        )
