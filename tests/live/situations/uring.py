"""A ring of io_uring for one request at a time, by bare system calls."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

SYS_IO_URING_SETUP, SYS_IO_URING_ENTER = 425, 426
# include/uapi/linux/io_uring.h
IORING_OP_SEND, IORING_OP_RECV = 26, 27
IORING_ENTER_GETEVENTS = 1
IORING_OFF_SQES = 0x10000000
ENTRIES = 8
# struct io_uring_params: ten numbers, then the offsets of the two queues
PARAMS = struct.Struct("=10I8IQ8IQ")
SQE = struct.Struct("=BBHiQQIIQ24x")
CQE = struct.Struct("=QiI")
INDEX = struct.Struct("=I")
_libc = ctypes.CDLL(None, use_errno=True)


class Ring:
    """Submits a request, and waits for its completion."""

    def __init__(self) -> None:
        raw = ctypes.create_string_buffer(PARAMS.size)
        self._fd = _call(SYS_IO_URING_SETUP, ENTRIES, raw)
        numbers = PARAMS.unpack(raw.raw)
        submissions, completions = numbers[10:18], numbers[19:27]
        self._sq_tail, self._sq_mask, self._sq_array = (submissions[at] for at in (1, 2, 6))
        self._cq_head, self._cq_mask, self._cqes = (completions[at] for at in (0, 2, 5))
        size = max(self._sq_array + ENTRIES * INDEX.size, self._cqes + 2 * ENTRIES * CQE.size)
        self._queues = mmap.mmap(self._fd, size)  # one for both since Linux 5.4
        self._requests = mmap.mmap(self._fd, ENTRIES * SQE.size, offset=IORING_OFF_SQES)

    def receive(self, descriptor: int, size: int) -> bytes:
        """As recv() does."""
        buffer = ctypes.create_string_buffer(size)
        return buffer.raw[: self._do(IORING_OP_RECV, descriptor, buffer, size)]

    def send(self, descriptor: int, content: bytes) -> int:
        """As send() does."""
        buffer = ctypes.create_string_buffer(content, len(content))
        return self._do(IORING_OP_SEND, descriptor, buffer, len(content))

    def _do(
        self, operation: int, descriptor: int, buffer: ctypes.Array[ctypes.c_char], size: int
    ) -> int:
        tail = self._number(self._sq_tail)
        index = tail & self._number(self._sq_mask)
        address = ctypes.addressof(buffer)
        request = SQE.pack(operation, 0, 0, descriptor, 0, address, size, 0, 0)
        self._requests[index * SQE.size : (index + 1) * SQE.size] = request
        INDEX.pack_into(self._queues, self._sq_array + index * INDEX.size, index)
        INDEX.pack_into(self._queues, self._sq_tail, tail + 1)
        _call(SYS_IO_URING_ENTER, self._fd, 1, 1, IORING_ENTER_GETEVENTS, None, 0)
        head = self._number(self._cq_head)
        at = self._cqes + (head & self._number(self._cq_mask)) * CQE.size
        _, result, _ = CQE.unpack_from(self._queues, at)
        INDEX.pack_into(self._queues, self._cq_head, head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return int(result)

    def _number(self, offset: int) -> int:
        return int(INDEX.unpack_from(self._queues, offset)[0])


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result
