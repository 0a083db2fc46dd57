"""Much of everything: what comes and goes ten thousand times leaves nothing behind."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from latencyprobe.domain.measurement import NOTHING
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import MAX_SLOTS, SlotSpec
from latencyprobe_agent.kernel.runtime import building, loaded
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.compiled_once import compiled_once
from tests.live.entering import CLONE_NEWNET
from tests.live.loaded_programs import existing_programs, programs_of, wait_until_gone
from tests.live.measuring import CLIENT, SERVER, account_for, count, watch
from tests.live.pods import Pod, unified_cgroup_root
from tests.live.sockets import (
    PORT,
    connect,
    connection,
    everything_in,
    listen,
    read_all,
    udp_socket,
)
from tests.patience import patient

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
# Fewer in an emulated guest, where each takes ten times as long.
UNLOADS = round(5 / patient(1) ** 0.5)
COMPLAINT = re.compile(r"BUG:|WARNING:|Oops|Call Trace|unregister_netdevice|soft lockup")
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
_libc = ctypes.CDLL(None, use_errno=True)

pytestmark = [pytest.mark.timeout(patient(300)), pytest.mark.unscoped]


def few_and_many(name: str, few: int, many: int) -> pytest.MarkDecorator:
    """A few times shows whether it holds, many times whether it holds for long."""
    thorough = pytest.param(many, marks=pytest.mark.thorough)
    return pytest.mark.parametrize(name, [few, thorough])


@contextmanager
def nothing_to_complain_of() -> Iterator[None]:
    """The kernel's log has nothing bad to say in the meantime."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        yield
        lines = list(_records(log))
    finally:
        os.close(log)
    assert not [line for line in lines if COMPLAINT.search(line)], "\n".join(lines)


def _records(log: int) -> Iterator[str]:
    while True:
        try:
            yield os.read(log, 8192).decode(errors="replace")
        except BlockingIOError:
            return
        except BrokenPipeError:  # overwritten before it was read: the next one follows
            continue


@contextmanager
def traffic_at_full_rate(client: Pod, server: Pod) -> Iterator[None]:
    """Bulk over TCP and datagrams, as much as goes, by a process of their own."""
    with (
        connection(client.namespace, server.namespace, server.address) as both,
        udp_socket(server.namespace, server.address, PORT + 1) as reading,
        udp_socket(client.namespace) as sending,
    ):
        steps = (
            lambda: both.client.sendall(b"x" * 4096),
            lambda: both.server.recv(1 << 16),
            lambda: sending.sendto(b"d" * 100, (server.address, PORT + 1)),
            lambda: reading.recv(128),
        )
        child = os.fork()
        if not child:
            _repeat_for_ever(steps)
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _repeat_for_ever(steps: Iterable[Callable[[], object]]) -> NoReturn:
    """Each in a thread, below the priority of the test: compiling goes on beside it."""

    def repeat(step: Callable[[], object]) -> None:
        while True:
            step()

    os.nice(5)
    for step in steps:
        threading.Thread(target=repeat, args=(step,)).start()
    while True:
        signal.pause()


@pytest.mark.every_kernel
@pytest.mark.own_build
@few_and_many("unloads", UNLOADS, 100)
async def test_unloading_under_full_traffic_time_and_again_leaves_nothing(
    start_engine: Start, pair: Pair, monkeypatch: pytest.MonkeyPatch, unloads: int
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
    compile_anew, reload = loaded.build, compiled_once().build
    # Compiled before there is traffic, beside which that takes longer than all the rest.
    monkeypatch.setattr(building, "build", reload)
    await engine.use(frozenset(DEFAULT_MODULES))
    await engine.use(frozenset())
    seen: set[int] = set()
    others = programs_of(os.getpid())
    with nothing_to_complain_of(), traffic_at_full_rate(client, server):
        descriptors = os.listdir("/proc/self/fd")
        for number in range(unloads):
            build = compile_anew if number < unloads // 20 else reload
            monkeypatch.setattr(building, "build", build)
            await engine.use(frozenset(DEFAULT_MODULES))
            seen |= programs_of(os.getpid()) - others
            await engine.use(frozenset())
            assert programs_of(os.getpid()) <= others
            # Those of earlier tests may still be closing.
            assert len(os.listdir("/proc/self/fd")) <= len(descriptors)
    assert len(seen) >= 10 * unloads
    wait_until_gone(seen)
    measured = engine.read()
    assert count(measured[SERVER], "rx.total") > 0
    assert existing_programs().isdisjoint(seen)


@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
@few_and_many("connections", 500, 10_000)
async def test_short_connections_leave_no_state_and_nothing_unmatched(
    start_engine: Start, pair: Pair, typed: bool, connections: int
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server, typed=typed)
    with nothing_to_complain_of(), listen(server.namespace, server.address) as listener:
        for _ in range(connections):
            with connect(client.namespace, server.address) as asking:
                answering, _ = listener.accept()
                with answering:
                    asking.sendall(b"q" * 64)
                    read_all(answering, 64)
                    answering.sendall(b"r" * 64)
                    read_all(asking, 64)
    measured = engine.read()
    for slot in (CLIENT, SERVER):
        for stage in ("rx.stack", "rx.socket", "rx.total", "tx.total"):
            assert account_for(measured[slot], stage) == (connections, 0), stage
    assert count(measured[CLIENT], "tcp.connect") == connections
    assert count(measured[SERVER], "tcp.handshake") == connections
    if not typed:  # bound by BTF, a state is a part of its socket and goes with it
        wait_until_empty("socket_states")


def wait_until_empty(name: str) -> None:
    """No map of this name that our process holds has an entry any more."""
    deadline = time.monotonic() + patient(20)
    while entries := sum(_entries(number) for number in _maps(name)):
        assert time.monotonic() < deadline, f"{name} still has {entries} entries"
        time.sleep(0.2)


def _bpftool(*arguments: str) -> object:
    command = ["bpftool", "--json", *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed)


def _maps(name: str) -> list[int]:
    held = set()
    for entry in os.listdir("/proc/self/fdinfo"):
        try:
            lines = Path(f"/proc/self/fdinfo/{entry}").read_text().splitlines()
        except FileNotFoundError:
            continue
        held |= {int(line.split()[1]) for line in lines if line.startswith("prog_id:")}
    programs = _bpftool("prog", "show")
    assert isinstance(programs, list)
    ours = [program for program in programs if program["id"] in held]
    maps = {number for program in ours for number in program.get("map_ids", ())}
    listed = _bpftool("map", "show")
    assert isinstance(listed, list)
    found = [each["id"] for each in listed if each["id"] in maps and each.get("name") == name]
    assert found, f"no map {name}"
    return found


def _entries(number: int) -> int:
    entries = _bpftool("map", "dump", "id", str(number))
    assert isinstance(entries, list)
    return len(entries)


@few_and_many("datagrams", 32_000, 1_000_000)
async def test_datagrams_in_bursts_are_all_accounted_for(
    start_engine: Start, pair: Pair, datagrams: int
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    burst = 32  # fewer than are remembered, bpf/include/sockets.h
    bursts = datagrams // burst
    with (
        nothing_to_complain_of(),
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        sending.connect((server.address, PORT))

        def read() -> None:
            for _ in range(bursts):
                for _ in range(burst - 1):
                    reading.recv(16)
                reading.sendto(b"more", reading.recvfrom(16)[1])

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(bursts):
            for _ in range(burst):
                sending.send(b"d")
            sending.recv(16)
        reader.join()
    measured = engine.read()
    for slot, sent, came in ((CLIENT, bursts * burst, bursts), (SERVER, bursts, bursts * burst)):
        assert account_for(measured[slot], "tx.total") == (sent, 0)
        samples, missing_at_socket = account_for(measured[slot], "rx.socket")
        assert samples + missing_at_socket + measured[slot].stage("rx.stack").unmatched == came
        # a reader that is awake can take a datagram in the instant before we are told of it
        assert samples >= 0.9 * came


@dataclass(frozen=True, slots=True)
class Cell:
    """A short-lived network namespace and cgroup, with two sockets in it."""

    inode: int
    cgroup: Path
    one: socket.socket
    other: socket.socket

    def spec(self) -> SlotSpec:
        return SlotSpec(
            cgroup_ids=frozenset({self.cgroup.stat().st_ino}),
            netns_wide=frozenset({self.inode}),
            netns=frozenset({self.inode}),
        )

    def exchange(self) -> None:
        self.one.sendto(b"d", self.other.getsockname())
        self.other.recv(16)

    def end(self) -> None:
        """With the last socket the namespace goes too."""
        self.one.close()
        self.other.close()
        self.cgroup.rmdir()


def make_cell(number: int) -> Cell:
    """In a thread of its own, whose end leaves the namespace to its sockets."""
    made: list[Cell] = []

    def make() -> None:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP).ljust(40, b"\0"))
        other.bind(("127.0.0.1", 0))
        other.settimeout(patient(20))
        cgroup = unified_cgroup_root() / f"lptest-{os.getpid()}-cell{number}"
        cgroup.mkdir()
        inode = os.stat("/proc/thread-self/ns/net").st_ino
        made.append(Cell(inode, cgroup, one, other))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


@few_and_many("namespaces", 500, 10_000)
async def test_namespaces_and_cgroups_come_and_go_without_a_trace(
    start_engine: Start, namespaces: int
) -> None:
    engine = start_engine()
    await engine.use(frozenset(DEFAULT_MODULES))
    numbers = itertools.count()
    samples = missing = 0
    with nothing_to_complain_of():
        for _ in range(namespaces // 50):
            cells = [make_cell(next(numbers)) for _ in range(50)]
            try:
                engine.assign({slot: cell.spec() for slot, cell in enumerate(cells)})
                for cell in cells:
                    cell.exchange()
                for measurement in engine.read().values():
                    at_socket = account_for(measurement, "rx.socket")
                    samples += at_socket[0]
                    missing += at_socket[1] + measurement.stage("rx.stack").unmatched
            finally:
                for cell in cells:
                    cell.end()
            await asyncio.sleep(0)
    # Without any slot the tables would go, too.
    engine.assign({MAX_SLOTS - 1: SlotSpec()})
    assert engine.read().get(0, NOTHING) == NOTHING
    assert samples + missing == next(numbers)
    assert missing <= 0.01 * samples
    assert MAX_SLOTS >= 50
    for name in ("cgroups", "processes"):
        wait_until_empty(name)
