"""Traced packets: ring buffer and controls (bpf/include/trace.h) in this process's memory."""

from __future__ import annotations

import ctypes
import mmap
import time

from latencyprobe.domain.packets import Endpoint, TraceCounts, TracedPacket, User
from latencyprobe.domain.stages import INDEX, PACKET_STAGES
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import (
    MAX_SLOTS,
    NR_PACKET_STAGES,
    OWNER_BITS,
    PROTOCOLS,
    TRACE_CONTROL,
    TRACE_EVENT,
)
from latencyprobe_agent.kernel.contract import TraceSpec

_HEADER = TRACE_EVENT.part("ended_ns", "owners")
_STAGES = TRACE_EVENT.part("stages")
_STAGES_OFFSET = TRACE_EVENT.offset("stages")
_SETTINGS = TRACE_CONTROL.part("limits", "per_second")
_COUNTS = TRACE_CONTROL.part("reported", "lost")
_COUNTS_OFFSET = TRACE_CONTROL.offset("reported")
# No duration reaches it, and the kernel side may subtract.
_NO_LIMIT = (1 << 63) - 1
_NO_RATE = (1 << 64) - 1
_PROTOCOLS = {number: name for name, number in PROTOCOLS.items()}
_OWNER = (1 << OWNER_BITS) - 1
_ADDRESS_BYTES = {2: 4, 10: 16}  # AF_INET, AF_INET6
# The maximum that one turn of the event loop decodes: some milliseconds.
BATCH = 256

# ring_buffer_sample_fn, bpf/libbpf.h
_SampleFunction = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t
)


class PacketRing:
    """The ring of reported packets, and the controls that select them."""

    def __init__(self, control_fd: int, ring_fd: int) -> None:
        self._control = mmap.mmap(control_fd, TRACE_CONTROL.size)
        self._taken: list[bytes] = []
        self._room = 0
        self._function = _SampleFunction(self._on_sample)  # must live as long as the ring
        self._ring = _new_ring(ring_fd, self._function)
        self.set(None)

    def set(self, spec: TraceSpec | None) -> None:
        """Have the programs report these packets from now on; no packets without a spec."""
        limits = [_NO_LIMIT] * NR_PACKET_STAGES
        slots = bytearray(MAX_SLOTS)
        per_second = 0
        if spec is not None:
            for stage, limit_ns in spec.limits_ns.items():
                limits[INDEX[stage]] = limit_ns
            for slot in spec.slots:
                slots[slot] = 1
            per_second = spec.per_second or _NO_RATE
        self._control[: _SETTINGS.size] = _SETTINGS.pack(*limits, bytes(slots), per_second)

    @property
    def counts(self) -> TraceCounts:
        """The counts of slow packets so far: reported, over the rate, and lost."""
        return TraceCounts(*_COUNTS.unpack_from(self._control, _COUNTS_OFFSET))

    def fileno(self) -> int:
        """Return a descriptor that is readable while the ring has packets."""
        return int(libbpf.library().ring_buffer__epoll_fd(self._ring))

    def take(self, most: int = BATCH) -> list[TracedPacket]:
        """Return the next packets, oldest first."""
        self._room = most
        libbpf.library().ring_buffer__consume(self._ring)
        taken, self._taken = self._taken, []
        # Of this moment: CLOCK_REALTIME is set now and then, CLOCK_MONOTONIC never.
        offset_ns = time.time_ns() - time.monotonic_ns()
        return [decode_event(event, offset_ns) for event in taken]

    def close(self) -> None:
        """Free the mappings; the maps live as long as their descriptors."""
        libbpf.library().ring_buffer__free(self._ring)
        self._control.close()

    def _on_sample(self, _context: object, data: ctypes._Pointer[ctypes.c_char], size: int) -> int:
        """Keep a copy. A negative answer ends the round with this sample consumed."""
        self._taken.append(ctypes.string_at(data, size))
        self._room -= 1
        return 0 if self._room else -1


def _new_ring(ring_fd: int, function: object) -> ctypes.c_void_p:
    library = libbpf.library()
    library.ring_buffer__new.restype = ctypes.c_void_p
    ring = library.ring_buffer__new(ring_fd, function, None, None)
    if not ring:
        raise libbpf.KernelRefusedError(ctypes.get_errno(), "map the ring buffer")
    return ctypes.c_void_p(ring)


def decode_event(content: bytes, offset_ns: int) -> TracedPacket:
    """Decode one element of the ring; `offset_ns`: CLOCK_REALTIME less CLOCK_MONOTONIC."""
    ended_ns, tgid, thread_id, comm, *ends, cpu, owners = _HEADER.unpack_from(content)
    local, remote, local_port, remote_port, family, protocol = ends
    stages = _STAGES.unpack_from(content, _STAGES_OFFSET)
    size = _ADDRESS_BYTES.get(family)
    return TracedPacket(
        ended_unix_ns=ended_ns + offset_ns,
        user=User(tgid, thread_id, _text(comm)) if tgid else None,
        cpu=cpu,
        protocol=_PROTOCOLS.get(protocol, ""),
        local=Endpoint.of(local[:size], local_port) if size else None,
        remote=Endpoint.of(remote[:size], remote_port) if size else None,
        stages_ns={
            stage.name: stages[INDEX[stage.name]] - 1
            for stage in PACKET_STAGES
            if stages[INDEX[stage.name]]
        },
        slots=_slots(owners),
    )


def _slots(owners: int) -> frozenset[int]:
    """Unpack the slots of `owners_t`, see bpf/include/histogram.h."""
    numbers = (owners >> shift & _OWNER for shift in range(0, 64, OWNER_BITS))
    return frozenset(number - 1 for number in numbers if number)


def _text(comm: bytes) -> str:
    return comm.partition(b"\0")[0].decode(errors="replace")
