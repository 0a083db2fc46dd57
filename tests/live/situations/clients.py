"""Clients of situations, as processes. Each times by itself, and knows nothing of latencyprobe."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.live.situations.witness import Clock, ready, report, run_role, use_cpu, wait_for_line

PORT = 7000
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a client asks, in `connections` threads, for `seconds`; times are milliseconds.

    `pieces`: it writes a request in so many parts, with `pause` between them. `reconnect`: a
    connection for each request, which is idle for `hesitation` first. `ahead`: the requests that it
    sends before it reads the answers. `first_only`: all connections but the first are idle after
    one request. `patience`: of a connect or a read, 0: without end. `pacing`: bytes a second.
    `silent`: connections that are opened first and send nothing. `late`: before it reads an answer;
    `burn`: CPU time after it. `congestion`: the name of the algorithm. `ports`: each connection is
    to the next.
    """

    address: str
    port: int = PORT
    seconds: float = 4
    connections: int = 1
    request: int = 64
    reply: int = 128
    gap: float = 2
    pieces: int = 1
    pause: float = 0
    ahead: int = 1
    reconnect: bool = False
    hesitation: float = 0
    first_only: bool = False
    nodelay: bool = True
    patience: float = 30_000
    pacing: int = 0
    receive_buffer: int = 0
    silent: int = 0
    late: float = 0
    burn: float = 0
    congestion: str = ""
    ports: tuple[int, ...] = ()

    def connect(self, port: int) -> socket.socket:
        made = socket.socket()
        if self.receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        if self.congestion:
            name = self.congestion.encode()
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        made.settimeout(self.patience / 1e3 or None)
        try:
            made.connect((self.address, port))
        except OSError:
            made.close()
            raise
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(self.nodelay))
        if self.pacing:
            made.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, self.pacing)
        return made


class Asking:
    """Threads that ask for a while, and their clocks."""

    def __init__(self, manner: Manner) -> None:
        self._manner = manner
        self._requests, self._connects = Clock(), Clock()
        self._kept: list[socket.socket] = []  # those that say nothing stay open
        self._until = 0.0

    def run(self) -> dict[str, float]:
        """Ask until the time is over, whether all is answered or not."""
        self._until = time.monotonic() + self._manner.seconds
        self._kept = [self._manner.connect(self._manner.port) for _ in range(self._manner.silent)]
        threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True)
            for number in range(self._manner.connections)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self._until - time.monotonic()) + 0.05)
        return {**self._requests.account(), **self._connects.account("connect_")}

    def _ask(self, number: int) -> None:
        ports = itertools.cycle(self._manner.ports or (self._manner.port,))
        while time.monotonic() < self._until:
            with contextlib.suppress(OSError):
                with self._connects.timed():
                    connection = self._manner.connect(next(ports))
                with connection:
                    time.sleep(self._manner.hesitation / 1e3)
                    self._use(connection, number)
            time.sleep(self._manner.gap / 1e3)

    def _use(self, connection: socket.socket, number: int) -> None:
        while time.monotonic() < self._until:
            with self._requests.timed():
                for _ in range(self._manner.ahead):
                    self._send(connection)
                time.sleep(self._manner.late / 1e3)
                _read(connection, self._manner.ahead * self._manner.reply)
                use_cpu(self._manner.burn)
            if self._manner.reconnect:
                return
            if self._manner.first_only and number:
                time.sleep(self._manner.seconds)
            time.sleep(self._manner.gap / 1e3)

    def _send(self, connection: socket.socket) -> None:
        part = self._manner.request // self._manner.pieces
        for _ in range(self._manner.pieces - 1):
            connection.sendall(b"q" * part)
            time.sleep(self._manner.pause / 1e3)
        connection.sendall(b"q" * (self._manner.request - part * (self._manner.pieces - 1)))


def ask(**options: object) -> None:
    """Asks over connections."""
    _begin_and_stay(Asking(Manner(**options)).run)  # type: ignore[arg-type]


def _read(connection: socket.socket, size: int) -> None:
    while size > 0:
        data = connection.recv(min(size, 1 << 16))
        if not data:
            raise ConnectionResetError("the server closed the connection")
        size -= len(data)


def query(
    *, address: str, port: int, seconds: float, threads: int, gap: float, patience: float
) -> None:
    """Asks for names as a resolver does: again after `patience` milliseconds without an answer."""
    clock = Clock()
    numbers = itertools.count(1)

    def run(until: float) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
            resolver.settimeout(patience / 1e3)
            resolver.connect((address, port))
            while time.monotonic() < until:
                with clock.timed():
                    _resolve(resolver, next(numbers) & 0xFFFF)
                time.sleep(gap / 1e3)

    _begin_and_stay(lambda: _in_threads(threads, seconds, run, clock.account))


def _resolve(resolver: socket.socket, number: int) -> None:
    message = _question(number)
    while True:
        resolver.send(message)
        with contextlib.suppress(TimeoutError):
            while resolver.recv(512)[:2] != message[:2]:
                pass
            return


def look_up(
    *, address: str, port: int, seconds: float, threads: int, gap: float, patience: float
) -> None:
    """Asks for names, each by a socket of its own; gives up after `patience` milliseconds."""
    clock = Clock()
    numbers = itertools.count(1)

    def run(until: float) -> None:
        while time.monotonic() < until:
            with (
                contextlib.suppress(OSError),
                clock.timed(),
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver,
            ):
                resolver.settimeout(patience / 1e3)
                resolver.connect((address, port))
                resolver.send(_question(next(numbers) & 0xFFFF))
                resolver.recv(512)
            time.sleep(gap / 1e3)

    _begin_and_stay(lambda: _in_threads(threads, seconds, run, clock.account))


def exchange(*, address: str, seconds: float, threads: int, gap: float, times: int = 1) -> None:
    """Sends datagrams, and waits for the reply to each for as long as it takes.

    `times`: it sends each as often, and one reply is enough.
    """
    clock = Clock()
    numbers = itertools.count(1)
    opened: list[socket.socket] = []

    def run(until: float) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            opened.append(asking)
            asking.connect((address, PORT))
            while time.monotonic() < until:
                message = _question(next(numbers) & 0xFFFF)
                with clock.timed():
                    for _ in range(times):
                        asking.send(message)
                    while asking.recv(512)[:2] != message[:2]:
                        pass
                time.sleep(gap / 1e3)

    def account() -> dict[str, float]:
        readable, _, _ = select.select(opened, (), (), 0)
        return {**clock.account(), "readable": len(readable)}

    _begin_and_stay(lambda: _in_threads(threads, seconds, run, account, grace=0.05))


def _in_threads(
    threads: int,
    seconds: float,
    run: Callable[[float], None],
    account: Callable[[], dict[str, float]],
    *,
    grace: float | None = None,
) -> dict[str, float]:
    """`grace`: the seconds after which a thread is left to itself."""
    until = time.monotonic() + seconds
    running = [threading.Thread(target=run, args=(until,), daemon=True) for _ in range(threads)]
    for each in running:
        each.start()
    for each in running:
        each.join(None if grace is None else max(0.0, until + grace - time.monotonic()))
    return account()


def _question(number: int) -> bytes:
    """A message of DNS that asks for an address."""
    name = b"\x04s%03d\x07example\x00" % (number % 1000)
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1)


def ship(*, address: str, seconds: float, connections: int, chunks: int, gap: float) -> None:
    """Sends chunks of logs that want no answer, so many by each connection."""

    sent: list[int] = []

    def run(until: float) -> None:
        while time.monotonic() < until:
            with socket.create_connection((address, PORT)) as connection:
                for _ in range(chunks):
                    if time.monotonic() > until:
                        break
                    connection.sendall(b"l" * 500)
                    sent.append(1)
                    time.sleep(gap / 1e3)

    _begin_and_stay(lambda: _in_threads(connections, seconds, run, lambda: {"sent": len(sent)}))


def blast(*, address: str, seconds: float, size: int, burst: int, gap: float) -> None:
    """Sends datagrams, in bursts, and expects no answer."""

    def work() -> dict[str, float]:
        until, sent = time.monotonic() + seconds, 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while time.monotonic() < until:
                for _ in range(burst):
                    sender.sendto(b"d" * size, (address, PORT))
                sent += burst
                time.sleep(gap / 1e3)
        return {"sent": sent}

    _begin_and_stay(work)


def listen(
    *,
    address: str,
    seconds: float,
    connections: int = 1,
    send: int = 0,
    every: float = 10,
    late: float = 0,
) -> None:
    """Reads what the server has to say; sends `send` bytes now and then, if that is not 0.

    `late`: milliseconds before each read.
    """

    def work() -> dict[str, float]:
        got: list[int] = []
        opened = [socket.create_connection((address, PORT)) for _ in range(connections)]
        for each in opened:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_read_on, args=(each, got, late), daemon=True).start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for each in opened if send else ():
                each.sendall(b"c" * send)
            time.sleep(every / 1e3)
        return {"read": sum(got)}

    _begin_and_stay(work)


def _read_on(connection: socket.socket, got: list[int], late_ms: float = 0) -> None:
    while data := connection.recv(1 << 14 if late_ms else 1 << 16):
        got.append(len(data))
        time.sleep(late_ms / 1e3)


def subscribe(*, address: str, seconds: float, every: float) -> None:
    """Subscribes to a channel of redis, and publishes something now and then."""

    def work() -> dict[str, float]:
        got: list[int] = []
        subscriber = socket.create_connection((address, PORT))
        subscriber.sendall(b"SUBSCRIBE news\r\n")
        threading.Thread(target=_read_on, args=(subscriber, got), daemon=True).start()
        until, published = time.monotonic() + seconds, 0
        with socket.create_connection((address, PORT)) as publisher:
            while time.monotonic() < until:
                publisher.sendall(b"PUBLISH news x\r\n")
                publisher.recv(64)
                published += 1
                time.sleep(every / 1e3)
        return {"published": published, "read": sum(got)}

    _begin_and_stay(work)


def half_close(*, address: str, seconds: float) -> None:
    """Closes its direction after the request, and reads the answer to its end."""
    clock = Clock()

    def work() -> dict[str, float]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with clock.timed(), socket.create_connection((address, PORT)) as connection:
                connection.sendall(b"q" * 512)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
            time.sleep(0.005)
        return clock.account()

    _begin_and_stay(work)


def session(*, address: str, seconds: float, threads: int, is_greeted: bool = False) -> None:
    """One request by each connection, after the greeting; its answer ends with the connection."""
    clock = Clock()

    def run(until: float) -> None:
        while time.monotonic() < until:
            with clock.timed(), socket.create_connection((address, PORT)) as connection:
                if is_greeted:
                    _read(connection, 64)
                connection.sendall(b"q" * 64)
                while connection.recv(1 << 16):
                    pass

    _begin_and_stay(lambda: _in_threads(threads, seconds, run, clock.account))


def fall_back(*, address: str, seconds: float, absent: str, after: float, threads: int) -> None:
    """Each request has a connection, which is tried for `after` milliseconds at another address."""
    clock = Clock()

    def run(until: float) -> None:
        while time.monotonic() < until:
            with clock.timed():
                with socket.socket() as first, contextlib.suppress(OSError):
                    first.settimeout(after / 1e3)
                    first.connect((absent, PORT))
                with socket.create_connection((address, PORT)) as connection:
                    connection.sendall(b"q" * 64)
                    _read(connection, 128)

    _begin_and_stay(lambda: _in_threads(threads, seconds, run, clock.account))


def ask_over_unix(*, path: str, seconds: float) -> None:
    """Asks over a UNIX socket."""
    clock = Clock()

    def work() -> dict[str, float]:
        until = time.monotonic() + seconds
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            Path(path).unlink()
            while time.monotonic() < until:
                with clock.timed():
                    connection.sendall(b"q" * 64)
                    _read(connection, 128)
                time.sleep(0.005)
        return clock.account()

    _begin_and_stay(work)


class Mixed:
    """A mixture of healthy traffic, timed window by window."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._clock = Clock()

    def start(self) -> None:
        """Begin, and go on for ever."""
        for work in (self._keep, self._keep, self._reconnect, self._send_datagrams):
            threading.Thread(target=work, daemon=True).start()

    def window(self, seconds: float) -> dict[str, float]:
        """The figures of this time."""
        self._clock.account()
        time.sleep(seconds)
        return self._clock.account()

    def _keep(self) -> None:
        with socket.create_connection((self._address, PORT)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                self._exchange(connection)

    def _reconnect(self) -> None:
        while True:
            with socket.create_connection((self._address, PORT)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._exchange(connection)

    def _exchange(self, connection: socket.socket) -> None:
        with self._clock.timed():
            connection.sendall(b"q" * 64)
            _read(connection, 128)
        time.sleep(0.003)

    def _send_datagrams(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((self._address, PORT))
            while True:
                with self._clock.timed():
                    asking.send(b"q" * 100)
                    asking.recv(512)
                time.sleep(0.005)


def mixed(*, address: str, seconds: float) -> None:
    """A mixture of healthy traffic; each line of standard input is a window."""
    traffic = Mixed(address)
    ready()
    is_begun = False
    while wait_for_line():
        if not is_begun:
            traffic.start()
            is_begun = True
        report(traffic.window(seconds))
    os._exit(0)


def _begin_and_stay(work: Callable[[], Mapping[str, float]]) -> None:
    """Work after a line of standard input, report, and end with the input."""
    ready()
    if wait_for_line():
        report(work())
        wait_for_line()
    os._exit(0)


if __name__ == "__main__":
    roles = (ask, ask_over_unix, blast, half_close, listen, look_up, mixed, query, session, ship)
    run_role({role.__name__: role for role in (*roles, exchange, subscribe, fall_back)})
