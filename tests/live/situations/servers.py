"""Servers of situations, as processes. Each counts by itself, and knows nothing of latencyprobe."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.live.situations.uring import Ring
from tests.live.situations.witness import Clock, ready, report, run_role, use_cpu, wait_for_line

PORT = 7000
SOCKETS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a server treats its connections; all times are milliseconds.

    `late`: it sleeps before each read. `think`: between request and answer. `burn`: the same on the
    CPU. `head`: bytes of the answer in a first write; `gap`: the pause after it. `accept`: it
    sleeps before each accept(). `polls`: instead of `think`, one for each request of a connection,
    from the first on again. `alone`: it serves one connection at a time, to its end. `deferred`: it
    accepts connections with data only.
    """

    address: str
    port: int = PORT
    request: int = 64
    reply: int = 128
    head: int = 0
    gap: float = 0
    late: float = 0
    think: float = 0
    polls: Sequence[float] = ()
    burn: float = 0
    accept: float = 0
    alone: bool = False
    deferred: bool = False
    backlog: int = SOCKETS_AT_ONCE
    receive_buffer: int = 0
    nodelay: bool = True
    cork: bool = False
    cpu: int | None = None

    def listen(self) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10 * int(self.deferred))
        made.bind((self.address, self.port))
        made.listen(self.backlog)
        return made


def answer(**options: object) -> None:
    """Answers requests, each connection in a thread of its own."""
    manner = Manner(**options)  # type: ignore[arg-type]
    if manner.cpu is not None:
        os.sched_setaffinity(0, {manner.cpu})
    listener, clock = manner.listen(), Clock()
    _in_thread(_accept, listener, manner, clock)
    _stay(clock.account)


def several(*, address: str, ports: Sequence[int], slow: int, think: float) -> None:
    """Answers at several ports; at the port `slow` only after `think` milliseconds."""
    clock = Clock()
    for port in ports:
        manner = Manner(address=address, port=port, think=think if port == slow else 0)
        _in_thread(_accept, manner.listen(), manner, clock)
    _stay(clock.account)


def _accept(listener: socket.socket, manner: Manner, clock: Clock) -> None:
    while True:
        time.sleep(manner.accept / 1e3)
        connection, _ = listener.accept()
        if manner.alone:
            _serve(connection, manner, clock)
        else:
            _in_thread(_serve, connection, manner, clock)


def _serve(connection: socket.socket, manner: Manner, clock: Clock) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(manner.nodelay))
    thinking = itertools.cycle(manner.polls or (manner.think,))
    with connection, contextlib.suppress(OSError):
        while _read(connection, manner.request, manner.late):
            with clock.timed():
                thought = next(thinking)
                if thought < 0:
                    _abort(connection)
                    return
                time.sleep(thought / 1e3)
                use_cpu(manner.burn)
                _reply(connection, manner)


def _abort(connection: socket.socket) -> None:
    """Close with a reset, as the kernel does for a process that leaves data unread."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _reply(connection: socket.socket, manner: Manner) -> None:
    if manner.cork:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    if manner.head:
        connection.sendall(b"h" * manner.head)
        time.sleep(manner.gap / 1e3)
    connection.sendall(b"r" * (manner.reply - manner.head))


def _read(connection: socket.socket, size: int, late_ms: float = 0) -> bool:
    """Whether all of it came before the end of the connection."""
    while size > 0:
        if late_ms:
            connection.recv(1, socket.MSG_PEEK)
            time.sleep(late_ms / 1e3)
        data = connection.recv(min(size, 1 << 16))
        if not data:
            return False
        size -= len(data)
    return True


def loop(*, address: str, pause: float, every: float) -> None:
    """One thread for all connections, which is blocked for a while now and then."""
    manner, clock = Manner(address=address), Clock()

    def run() -> None:
        blocked = time.monotonic()
        with selectors.DefaultSelector() as selector, manner.listen() as listener:
            selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(0.01):
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        selector.register(connection, selectors.EVENT_READ)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        if _read(key.fileobj, manner.request):
                            key.fileobj.sendall(b"r" * manner.reply)
                        else:
                            selector.unregister(key.fileobj)
                            key.fileobj.close()
                if time.monotonic() - blocked > every / 1e3:
                    with clock.timed():
                        time.sleep(pause / 1e3)
                    blocked = time.monotonic()

    _in_thread(run)
    _stay(clock.account)


def never_reads(*, address: str) -> None:
    """Accepts all, and reads nothing."""
    listener = Manner(address=address).listen()
    kept: list[socket.socket] = []

    def run() -> None:
        while True:
            kept.append(listener.accept()[0])

    _in_thread(run)
    _stay(lambda: {"accepted": len(kept)})


def without_descriptors(*, address: str, descriptors: int) -> None:
    """Has so few descriptors that accept() fails with EMFILE; it tries again every 10 ms."""
    manner, clock = Manner(address=address), Clock()
    listener = manner.listen()
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    def run() -> None:
        while True:
            try:
                _in_thread(_serve, listener.accept()[0], manner, clock)
            except OSError:
                time.sleep(0.01)

    _in_thread(run)
    _stay(clock.account)


def reuseport(*, address: str, workers: int, hung: int) -> None:
    """Workers with a listening socket each, of which some hang before their first accept()."""
    manner = Manner(address=address)
    children = []
    listeners = []
    for _ in range(workers):
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((address, manner.port))
        made.listen(manner.backlog)
        listeners.append(made)
    for number, listener in enumerate(listeners):
        if child := _fork():
            children.append(child)
            continue
        for other in listeners:
            if other is not listener:
                other.close()
        if number < hung:
            signal.pause()
        _accept(listener, manner, Clock())
    for listener in listeners:
        listener.close()
    _stay(lambda: {"workers": workers}, children)


def splice(*, address: str, late: float) -> None:
    """A proxy that moves requests by splice(2), late, to the one who answers them."""
    listener, manner, clock = Manner(address=address).listen(), Manner(address=address), Clock()

    def serve(connection: socket.socket) -> None:
        read_end, write_end = os.pipe()
        while True:
            connection.recv(1, socket.MSG_PEEK)
            with clock.timed():
                time.sleep(late / 1e3)
                size = os.splice(connection.fileno(), write_end, manner.request)
            if not size:
                return
            os.read(read_end, size)
            connection.sendall(b"r" * manner.reply)

    def run() -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _in_thread(serve, connection)

    _in_thread(run)
    _stay(clock.account)


def stream(*, address: str, size: int, gap: float) -> None:
    """Speaks first, and goes on for as long as somebody listens."""
    listener = Manner(address=address).listen()

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"s" * size)
                time.sleep(gap / 1e3)

    _in_thread(_for_each, listener, serve)
    _stay(dict)


def both_ways(*, address: str, size: int, gap: float) -> None:
    """Reads what comes, and sends at its own pace."""
    listener = Manner(address=address).listen()

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _in_thread(_drain, connection)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"s" * size)
                time.sleep(gap / 1e3)

    _in_thread(_for_each, listener, serve)
    _stay(dict)


def half_closed(*, address: str) -> None:
    """Answers when the client has closed its direction."""
    listener = Manner(address=address).listen()

    def serve(connection: socket.socket) -> None:
        with connection:
            _drain(connection)
            connection.sendall(b"r" * 512)

    _in_thread(_for_each, listener, serve)
    _stay(dict)


def session(*, address: str, greeting: float = 0, linger: float = 0) -> None:
    """One request by each connection. It speaks first, if `greeting` is not 0, and closes late."""
    manner = Manner(address=address)

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            if greeting:
                time.sleep(greeting / 1e3)
                connection.sendall(b"g" * manner.request)
            if _read(connection, manner.request):
                _reply(connection, manner)
            time.sleep(linger / 1e3)

    _in_thread(_for_each, manner.listen(), serve)
    _stay(dict)


def discard(*, address: str) -> None:
    """Reads what comes, and answers nothing."""
    _in_thread(_for_each, Manner(address=address).listen(), _drain)
    _stay(dict)


def _for_each(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        _in_thread(serve, listener.accept()[0])


def _drain(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass


def datagrams(
    *,
    address: str,
    port: int = PORT,
    think: float = 0,
    late: float = 0,
    receive_buffer: int = 0,
    silent: bool = False,
    hangs_after: int = 0,
) -> None:
    """Answers each datagram with its own bytes, as a DNS server would: the same message id.

    `hangs_after`: it reads so many datagrams, and then no more.
    """
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if receive_buffer:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server.bind((address, port))
    clock = Clock()

    def respond(query: bytes, peer: tuple[str, int]) -> None:
        with clock.timed():
            time.sleep(think / 1e3)
            server.sendto(_as_response(query), peer)

    def run() -> None:
        for read in itertools.count():
            if hangs_after and read == hangs_after:
                threading.Event().wait()
            time.sleep(late / 1e3)
            query, peer = server.recvfrom(2048)
            if silent:
                with clock.timed():
                    pass
            elif think:
                _in_thread(respond, query, peer)
            else:
                respond(query, peer)

    _in_thread(run)
    _stay(clock.account)


def _as_response(query: bytes) -> bytes:
    """A DNS message with the bit that makes it a response."""
    return query[:2] + bytes([query[2] | 0x80]) + query[3:]


def unix(*, path: str, think: float = 0) -> None:
    """Answers over a UNIX socket."""
    manner, clock = Manner(address="", think=think), Clock()
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve(connection: socket.socket) -> None:
        while _read(connection, manner.request):
            with clock.timed():
                time.sleep(think / 1e3)
                connection.sendall(b"r" * manner.reply)

    _in_thread(_for_each, listener, serve)
    _stay(clock.account)


def uring(*, address: str, think: float) -> None:
    """Receives and sends by io_uring."""
    manner, clock = Manner(address=address), Clock()
    listener = manner.listen()

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ring = Ring()
        while ring.receive(connection.fileno(), manner.request):
            with clock.timed():
                time.sleep(think / 1e3)
                ring.send(connection.fileno(), b"r" * manner.reply)

    _in_thread(_for_each, listener, serve)
    _stay(clock.account)


def proxy(*, address: str, think: float) -> None:
    """A proxy, and behind it on the pod's loopback the application that thinks."""
    application, front = Manner(address="127.0.0.1", think=think), Manner(address=address)
    clock = Clock()
    behind, listener = application.listen(), front.listen()
    _in_thread(_accept, behind, application, clock)

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with socket.create_connection((application.address, application.port)) as upstream:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while _read(connection, front.request):
                upstream.sendall(b"q" * front.request)
                _read(upstream, front.reply)
                connection.sendall(b"r" * front.reply)

    _in_thread(_for_each, listener, serve)
    _stay(clock.account)


def redis(*, address: str) -> None:
    """A real redis-server."""
    command = ("redis-server", "--bind", address, "--port", str(PORT), "--save", "")
    server = subprocess.Popen(
        [*command, "--protected-mode", "no"], stdout=subprocess.DEVNULL, cwd="/"
    )
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((address, PORT)).close()
            break
        time.sleep(0.05)
    _stay(dict, [server.pid])


def mixed(*, address: str) -> None:
    """Healthy servers: one for connections, one for datagrams."""
    manner, clock = Manner(address=address), Clock()
    _in_thread(_accept, manner.listen(), manner, clock)
    datagrams(address=address)


def burn(*, cpu: int, processes: int) -> None:
    """Keeps a CPU busy."""
    os.sched_setaffinity(0, {cpu})
    children = []
    for _ in range(processes):
        if child := _fork():
            children.append(child)
        else:
            while True:
                pass
    _stay(dict, children)


def answer_among_busy_threads(*, cpu: int, processes: int, **options: object) -> None:
    """Answers, while other tasks of the same pod keep its CPU busy."""
    os.sched_setaffinity(0, {cpu})
    for _ in range(processes):
        if not _fork():
            while True:
                pass
    answer(**options)


def _fork() -> int:
    """As os.fork(); whoever waits for the end of our output does not wait for the child's."""
    child = os.fork()
    if not child:
        for standard in (0, 1):
            os.close(standard)
    return child


def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _stay(account: Callable[[], Mapping[str, float]], children: Sequence[int] = ()) -> None:
    """Report with each line of standard input, and end with it, the children too."""
    ready()
    while wait_for_line():
        report(account())
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    roles = (answer, answer_among_busy_threads, both_ways, burn, datagrams, discard, half_closed)
    more = (loop, mixed, never_reads, proxy, redis, reuseport, session, several, splice)
    last = (stream, unix, uring, without_descriptors)
    run_role({role.__name__: role for role in (*roles, *more, *last)})
