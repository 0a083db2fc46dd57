"""A client and a server that count what they send and time what they receive.

Run as a program inside a test's pod: it prints `ready`, waits for a line on standard input where it
has to begin something, and ends with one JSON object that holds its own account of what happened.
Knows nothing of latencyprobe: it is the independent witness.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import sys
import time

REQUEST = b"q" * 64
REPLY = b"r" * 128
# linux/net_tstamp.h; as Python has no names for them
SO_TIMESTAMPING = 37
TCP_TX_DELAY = 37  # linux/tcp.h
SOF_RX_SOFTWARE, SOF_SOFTWARE = 1 << 3, 1 << 4
TIMESTAMPING = struct.Struct("=qqqqqq")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("server", "client"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=int)
    parser.add_argument("--protocol", choices=("tcp", "udp"), default="tcp")
    parser.add_argument("--read-delay-ms", type=float, default=0.0)
    parser.add_argument("--gap-ms", type=float, default=0.0)
    parser.add_argument("--depart-late-ms", type=float, default=0.0, help="TCP_TX_DELAY")
    parser.add_argument("--one-way", action="store_true", help="no replies")
    parser.add_argument("--fork", action="store_true", help="do the work in a child process")
    parser.add_argument("--stay", action="store_true", help="end only with standard input")
    options = parser.parse_args()
    roles = {
        ("server", "tcp"): serve_tcp,
        ("server", "udp"): serve_udp,
        ("client", "tcp"): ask_tcp,
        ("client", "udp"): ask_udp,
    }
    result = roles[options.role, options.protocol](options)
    print(json.dumps(result), flush=True)
    if options.stay:
        sys.stdin.readline()


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ready() -> None:
    print("ready", flush=True)


def wait_for_go() -> None:
    ready()
    sys.stdin.readline()


def serve_tcp(options: argparse.Namespace) -> dict[str, object]:
    with socket.create_server(
        (options.address, options.port), family=family_of(options.address)
    ) as listener:
        # before the first packet: the kernel starts stamping a moment after the first who asks
        listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SOF_RX_SOFTWARE | SOF_SOFTWARE)
        ready()
        connection, _ = listener.accept()
    with connection:
        waits = serve_connection(connection, options)
        connection.recv(1)  # the client closes first, so that its port is free again
    return {"waits_ns": waits}


def serve_connection(connection: socket.socket, options: argparse.Namespace) -> list[int]:
    waits = []
    for _ in range(options.requests):
        pending = len(REQUEST)
        while pending:
            time.sleep(options.read_delay_ms / 1e3)
            data, ancillary, _, _ = connection.recvmsg(pending, 256)
            waits += waited(ancillary)
            if not data:
                raise SystemExit("the client closed the connection early")
            pending -= len(data)
        if not options.one_way:
            connection.sendall(REPLY)
    return waits


def waited(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """How long ago the kernel received what was just read: realtime, software, in nanoseconds.

    Empty where the kernel did not stamp the packet yet.
    """
    now_ns = time.time_ns()
    return [now_ns - stamp_ns for stamp_ns in stamps(ancillary)]


def stamps(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The kernel's software time stamp of a message, realtime in nanoseconds, if it has one."""
    found = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPING):
            seconds, nanoseconds, *_ = TIMESTAMPING.unpack(data[: TIMESTAMPING.size])
            found.append(seconds * 10**9 + nanoseconds)
    return found


def serve_udp(options: argparse.Namespace) -> dict[str, object]:
    with socket.socket(family_of(options.address), socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SOF_RX_SOFTWARE | SOF_SOFTWARE)
        server.bind((options.address, options.port))
        ready()
        waits = []
        for _ in range(options.requests):
            time.sleep(options.read_delay_ms / 1e3)
            _, ancillary, _, peer = server.recvmsg(2048, 256)
            waits += waited(ancillary)
            if not options.one_way:
                server.sendto(REPLY, peer)
    return {"waits_ns": waits}


def ask_tcp(options: argparse.Namespace) -> dict[str, object]:
    wait_for_go()
    if options.fork and (child := os.fork()):
        os.waitpid(child, 0)
        raise SystemExit(0)
    began = time.monotonic_ns()
    with socket.create_connection((options.address, options.port), timeout=30) as connection:
        connected_ns = time.monotonic_ns() - began
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.depart_late_ms:
            late_us = round(options.depart_late_ms * 1e3)
            connection.setsockopt(socket.IPPROTO_TCP, TCP_TX_DELAY, late_us)
        for _ in range(options.requests):
            connection.sendall(REQUEST)
            time.sleep(options.gap_ms / 1e3)
            if not options.one_way:
                read_exactly(connection, len(REPLY))
    return {"sent": options.requests, "connect_ns": connected_ns}


def read_exactly(connection: socket.socket, size: int) -> None:
    while size:
        size -= len(connection.recv(size))


def ask_udp(options: argparse.Namespace) -> dict[str, object]:
    wait_for_go()
    with socket.socket(family_of(options.address), socket.SOCK_DGRAM) as client:
        client.settimeout(30)
        client.connect((options.address, options.port))
        for _ in range(options.requests):
            client.send(REQUEST)
            time.sleep(options.gap_ms / 1e3)
            if not options.one_way:
                client.recv(2048)
    return {"sent": options.requests}


if __name__ == "__main__":
    main()
