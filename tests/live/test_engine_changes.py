"""Changes under traffic: modules, targets and the engine itself come and go, and nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel.contract import EngineError, SlotSpec, SocketFilter
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.loaded_programs import programs_of, wait_until_gone
from tests.live.measuring import CLIENT, SERVER, account_for, count, sent_counts
from tests.live.pods import Pod, namespace, run
from tests.live.sockets import (
    Connection,
    connect,
    connection,
    everything_in,
    listen,
    read_all,
    wait_for_bytes,
)

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
ALL = frozenset(DEFAULT_MODULES)
# Other modules than TCP alone, which compile fast.
MORE = frozenset({Module.RX})
NOTHING_USED: frozenset[Module] = frozenset()


@contextmanager
def exchanging(both: Connection) -> Iterator[None]:
    """Questions and answers go on until the end."""
    is_over = threading.Event()

    def exchange() -> None:
        while not is_over.is_set():
            both.client.sendall(b"q" * 64)
            read_all(both.server, 64)
            both.server.sendall(b"r" * 64)
            read_all(both.client, 64)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def descriptors() -> dict[str, str]:
    """This process's open descriptors, by number."""
    gc.collect()
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = os.readlink(path)
        except FileNotFoundError:
            continue
    return found


def lasting_descriptors() -> dict[str, str]:
    """Those but for the kernel's statistics, which are open for a part of the time."""
    return {
        number: leads_to
        for number, leads_to in descriptors().items()
        if leads_to != "anon_inode:bpf-stats"
    }


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files_in(directory: Path) -> list[str]:
    return [str(path) for path in directory.rglob("*")]


def kernel_complaints() -> list[str]:
    """Lines of the kernel's log that tell of trouble."""
    log = subprocess.run(["dmesg"], check=True, capture_output=True, text=True).stdout
    return [
        line
        for line in log.splitlines()
        if any(word in line for word in ("BUG:", "WARNING:", "Oops", "RIP:", "stall"))
    ]


@pytest.mark.own_build
@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.thorough)])
async def test_modules_swapped_time_and_again_under_traffic_leave_nothing(
    start_engine: Start, pair: Pair, temporary: Path, rounds: int
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
    swaps = (frozenset({Module.RX}), frozenset({Module.TX}), ALL, NOTHING_USED)
    await engine.use(frozenset({Module.TCP}))
    await engine.use(NOTHING_USED)  # libraries and event loop have opened what they keep
    before, complaints = descriptors(), kernel_complaints()
    used: set[int] = set()
    with connection(client.namespace, server.namespace, server.address) as both, exchanging(both):
        for swap in swaps * rounds:  # the last one is none
            await engine.use(swap)
            used |= programs_of(os.getpid())
            engine.read()
    assert len(used) > 25
    wait_until_gone(used)
    assert descriptors() == before
    assert not files_in(temporary)
    assert kernel_complaints() == complaints


@pytest.mark.own_build
async def test_a_change_that_is_cancelled_leaves_the_engine_as_it_was(
    start_engine: Start, pair: Pair, temporary: Path
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
    await engine.use(frozenset({Module.TCP}))
    before, ours, childs = lasting_descriptors(), programs_of(os.getpid()), children()
    coverage = engine.coverage
    changing = asyncio.create_task(engine.use(MORE))
    while not any("latencyprobe-headers" in path for path in files_in(temporary)):
        await asyncio.sleep(0)
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert children() <= childs
    assert not files_in(temporary)
    assert lasting_descriptors() == before
    assert programs_of(os.getpid()) == ours
    assert engine.coverage == coverage
    await engine.use(MORE)
    with connection(client.namespace, server.namespace, server.address) as both:
        both.client.sendall(b"q")
        read_all(both.server, 1)
    assert count(engine.read()[SERVER], "rx.total") == 1


@pytest.mark.own_build
async def test_a_killed_compiler_is_an_error_and_no_leak(start_engine: Start) -> None:
    engine = start_engine()
    before, childs = descriptors(), children()
    changing = asyncio.create_task(engine.use(ALL))
    while not (started := children() - childs):
        await asyncio.sleep(0)
    os.kill(int(started.pop()), signal.SIGKILL)
    with pytest.raises(EngineError, match=r"was killed \(SIGKILL\)"):
        await changing
    assert descriptors() == before
    await engine.use(frozenset({Module.TCP}))


@pytest.mark.own_build
async def test_changes_asked_for_at_once_happen_one_after_another(start_engine: Start) -> None:
    engine = start_engine()
    one = asyncio.create_task(engine.use(MORE))
    other = asyncio.create_task(engine.use(frozenset({Module.TCP})))
    await asyncio.gather(one, other)
    assert {stage.name for stage in engine.coverage if stage.state is CoverageState.ACTIVE} == {
        "tcp.connect",
        "tcp.handshake",
        "tcp.rtt",
        "tcp.recovery",
        "tcp.queueing",
        "app.response",
        "app.transfer",
        "peer.transfer",
        "peer.response",
    }
    starting = asyncio.create_task(engine.use(MORE))
    await asyncio.sleep(0)
    await engine.close()
    await starting
    assert not programs_of(os.getpid())


async def test_a_target_that_was_refused_leaves_nothing_in_the_kernels_tables(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    await engine.use(ALL)
    too_many = frozenset(range(1 << 21, (1 << 21) + 20_000))
    refused = SlotSpec(
        cgroup_ids=server.spec().cgroup_ids, tgids=too_many, netns=server.spec().netns
    )
    with pytest.raises(EngineError, match="map processes"):
        engine.assign({0: refused})
    other = SlotSpec(cgroup_ids=client.spec().cgroup_ids, netns=server.spec().netns)
    engine.assign({0: other})
    serving = server.start("server", server.address, "7000", "10")
    asking = client.start("client", server.address, "7000", "10")
    try:
        asking.go()
        serving.result()
        asking.result()
    finally:
        serving.stop()
        asking.stop()
    assert engine.read() == {}


async def test_connections_older_than_the_engine_and_its_targets_are_measured(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    with connection(client.namespace, server.namespace, server.address) as both:
        await engine.use(ALL)
        both.client.sendall(b"q" * 64)
        read_all(both.server, 64)
        engine.assign({SERVER: everything_in(server)})
        for _ in range(50):
            both.client.sendall(b"q" * 64)
            read_all(both.server, 64)
    assert account_for(engine.read()[SERVER], "rx.total") == (50, 0)


async def test_a_namespace_that_goes_under_traffic_takes_only_itself(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    complaints = kernel_complaints()
    with namespace("gone") as gone:
        run(
            *("ip", "-n", gone.name, "link", "add", "eth0", "type", "veth"),
            *("peer", "name", "eth1", "netns", client.namespace.name),
        )
        for where, device, address in (
            (gone, "eth0", "192.0.2.1"),
            (client.namespace, "eth1", "192.0.2.2"),
        ):
            where.ip("address", "add", f"{address}/24", "dev", device)
            where.ip("link", "set", device, "up")
        spec = SlotSpec(netns_wide=frozenset({gone.inode}), netns=frozenset({gone.inode}))
        engine.assign({0: spec, SERVER: everything_in(server)})
        await engine.use(ALL)
        with listen(gone, "192.0.2.1", 7100) as listener:
            asking = connect(client.namespace, "192.0.2.1", 7100)
            answering, _ = listener.accept()
        asking.sendall(b"q" * 64)
        read_all(answering, 64)
        asking.sendall(b"q" * 6400)  # stays unread
    answering.close()
    asking.close()
    with connection(client.namespace, server.namespace, server.address) as both:
        both.client.sendall(b"q")
        read_all(both.server, 1)
    measured = engine.read()
    assert count(measured[0], "rx.total") == 1
    assert account_for(measured[SERVER], "rx.total") == (1, 0)
    assert kernel_complaints() == complaints


async def test_four_probes_with_filters_of_their_own_account_for_the_same_packets(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    inodes = everything_in(server).netns
    filters = [SocketFilter(frozenset({7000, other})) for other in (1, 2, 3, 4)]
    engine.assign(
        {
            slot: SlotSpec(netns_wide=inodes, netns=inodes, socket_filter=socket_filter)
            for slot, socket_filter in enumerate(filters)
        }
        | {4: everything_in(client)}
    )
    await engine.use(ALL)
    with connection(client.namespace, server.namespace, server.address) as both:
        for _ in range(60):
            both.client.sendall(b"q" * 64)
        wait_for_bytes(both.server, 60 * 64)
        both.server.recv(60 * 64)
        for _ in range(10):
            both.client.sendall(b"q" * 64)
            read_all(both.server, 64)
    measured = engine.read()
    (received,) = {sum(account_for(measured[slot], "rx.socket")) for slot in range(4)}
    assert received > 20
    assert count(measured[4], "tx.total") in sent_counts(received, measured[4])
