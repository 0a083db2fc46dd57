"""Programs of others on devices: such that let packets pass, XDP, and Cilium's redirection."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from latencyprobe_agent.kernel import libbpf
from tests.live.pods import Namespace
from tests.live.sockets import inside

# r0 = TCX_NEXT; exit
_NEXT = bytes.fromhex("b7000000ffffffff9500000000000000")
_REDIRECT_PEER = 155  # BPF_FUNC_redirect_peer
# include/uapi/linux/bpf.h
_BPF_PROG_TYPE_XDP, _BPF_XDP = 6, 37
# r0 = XDP_PASS; exit
_PASS = bytes.fromhex("b7000000020000009500000000000000")


def redirecting(ifindex: int) -> bytes:
    """A program that gives each packet to the other end of this device, as Cilium's does."""
    return b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0xB7, 0x01, 0, ifindex),
            (0xB7, 0x02, 0, 0),
            (0x85, 0x00, 0, _REDIRECT_PEER),
            (0x95, 0x00, 0, 0),
        )
    )


@contextmanager
def foreign_on(
    there: Namespace, device: str, kind: int, *, first: bool, code: bytes = _NEXT
) -> Iterator[int]:
    """A program of another on a device; its descriptor."""
    program = libbpf.load_program("foreign", code, program_type=libbpf.PROG_TYPE_SCHED_CLS)
    try:
        with inside(there):
            link = libbpf.create_device_link(
                program, socket.if_nametoindex(device), kind, first=first
            )
        try:
            yield program
        finally:
            os.close(link)
    finally:
        os.close(program)


@contextmanager
def xdp(there: Namespace, device: str) -> Iterator[None]:
    """A program on the device's driver that lets everything pass."""
    program = libbpf.load_program("passing", _PASS, program_type=_BPF_PROG_TYPE_XDP)
    try:
        with inside(there):
            link = libbpf.create_link(program, socket.if_nametoindex(device), _BPF_XDP)
        try:
            yield
        finally:
            os.close(link)
    finally:
        os.close(program)
