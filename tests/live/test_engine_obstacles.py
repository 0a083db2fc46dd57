"""Packets whose path is not measured in full: they are counted, and the coverage says why."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.build import source
from latencyprobe_agent.kernel.runtime import building
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.sources import source_folder
from tests.live.compiled_once import CompiledOnce
from tests.live.foreign_on_devices import foreign_on, redirecting, xdp
from tests.live.measuring import (
    CLIENT,
    SERVER,
    account_for,
    assert_all_left,
    assert_parts_add_up,
    watch,
    watch_on_host,
)
from tests.live.pods import Namespace, Pod, namespace, pods_on_routes
from tests.live.sockets import (
    PORT,
    Connection,
    connection,
    exchange,
    inside,
    read_all,
    send_datagrams,
    sent_again,
    udp_socket,
)
from tests.live.tuns import tun

Start = Callable[..., KernelEngine]
Bridged = tuple[Namespace, Pod, Pod]
Pair = tuple[Pod, Pod]
MANY = 100
IPPROTO_MPTCP = 262
MACVLAN = "\tcase KIND('m', 'a', 'c', 'v'): /* macvlan, macvtap */\n"

pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]


def stage(engine: KernelEngine, name: str) -> StageCoverage:
    return next(each for each in engine.coverage if each.name == name)


def taken(engine: KernelEngine, slot: int = SERVER) -> Measurement:
    return engine.read().get(slot, NOTHING)


def assert_is_told_to_the_target(engine: KernelEngine, slot: int, reason: str) -> None:
    """It is in no stage's coverage, which all targets of the node share."""
    (lost,) = engine.lost_parts[slot]
    assert reason in lost.reason
    assert not [each for each in engine.coverage if reason in each.reason]


async def test_packets_that_xdp_copies_are_lost_on_the_host(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = await watch_on_host(start_engine, host, client, server)
    with (
        xdp(server.namespace, "eth0"),
        connection(client.namespace, server.namespace, server.address) as both,
    ):
        exchange(both, MANY)
        send_datagrams(client.namespace, server.namespace, server.address, MANY)
    received = taken(engine)
    assert account_for(received, "rx.host") == account_for(received, "rx.total") == (0, 2 * MANY)
    assert not {"rx.stack", "rx.socket"} & received.stages.keys()
    assert_is_told_to_the_target(engine, SERVER, "an XDP program on a pod's device copied")
    assert CLIENT not in engine.lost_parts


async def test_packets_that_skip_the_pods_device_have_their_crossing_in_rx_stack(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    with inside(host):
        code = redirecting(socket.if_nametoindex("veth1"))
    engine = await watch_on_host(start_engine, host, client, server)
    with (
        connection(client.namespace, server.namespace, server.address) as both,
        foreign_on(host, "veth0", libbpf.ATTACH_TYPE_TCX_INGRESS, first=False, code=code),
    ):
        engine.read()
        for _ in range(MANY):
            both.client.sendall(b"s" * 100)
            read_all(both.server, 100)
    measured = engine.read()
    received, sent = measured[SERVER], measured[CLIENT]
    assert account_for(received, "rx.total") == (MANY, 0)
    assert "rx.host" not in received.stages
    assert_parts_add_up(received, "rx")
    assert "bpf_redirect_peer" in stage(engine, "rx.stack").reason
    samples, missing = account_for(sent, "tx.total")
    assert samples == 0
    # each once another segment has its address
    assert 0 < missing <= MANY + sent_again(client.namespace)
    assert_is_told_to_the_target(engine, CLIENT, "no device of the node transmits (macvlan")
    assert SERVER not in engine.lost_parts


@pytest.mark.every_kernel
@pytest.mark.parametrize("version", [4, 6])
async def test_datagrams_that_come_in_fragments_are_unmatched(
    start_engine: Start, pair: Pair, version: int
) -> None:
    client, server = pair
    address = server.address if version == 4 else server.address6
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, address, PORT) as reading,
        udp_socket(client.namespace, family=reading.family) as sending,
    ):
        for _ in range(MANY):
            sending.sendto(bytes(4000), (address, PORT))
            assert len(reading.recv(5000)) == 4000
    received = taken(engine)
    stack, read = account_for(received, "rx.stack"), account_for(received, "rx.socket")
    assert (stack[0], read[0]) == (0, 0)
    assert stack[1] + read[1] == MANY
    assert received.counters["fragmentedPackets"] == MANY
    assert_is_told_to_the_target(engine, SERVER, "arrived in fragments are unmatched")
    assert CLIENT not in engine.lost_parts


async def test_a_pod_behind_another_namespace_is_without_the_hosts_part_and_the_coverage_says_so(
    start_engine: Start,
) -> None:
    with namespace("node") as node, pods_on_routes(2) as (_, (client, server)):
        engine = await watch_on_host(start_engine, node, client, server)
        assert not stage(engine, "rx.host").reason
        with connection(client.namespace, server.namespace, server.address) as both:
            exchange(both, MANY)
        measured = engine.read()
        again = sent_again(client.namespace)
    assert account_for(measured[SERVER], "rx.total") == (MANY, 0)
    assert_all_left(measured[CLIENT], "tx.total", MANY, again)
    for slot, name in ((SERVER, "rx"), (CLIENT, "tx")):
        assert f"{name}.host" not in measured[slot].stages
        covered = stage(engine, f"{name}.host")
        assert covered.state is CoverageState.ACTIVE
        assert "leads to a network namespace that is not the node's" in covered.reason


async def test_a_tun_device_of_a_pod_is_named_in_the_coverage(start_engine: Start) -> None:
    with namespace("node") as node, tun("pod", "192.0.2.1", "192.0.2.2") as inside_pod:
        pod = Pod(inside_pod.namespace, Path(), inside_pod.address, "")
        engine = await watch_on_host(start_engine, node, pod)
        with udp_socket(inside_pod.namespace) as sending:
            for _ in range(MANY):
                sending.sendto(b"d" * 200, (inside_pod.beyond, PORT))
                inside_pod.take()
        sent = taken(engine, CLIENT)
    assert account_for(sent, "tx.total") == (MANY, 0)
    assert "tx.host" not in sent.stages
    assert "a tun device in a pod" in stage(engine, "tx.host").reason


@pytest.mark.thorough
async def test_a_device_of_an_unknown_kind_is_followed_and_named(
    start_engine: Start, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(source_folder(), tmp_path / "bpf")
    devices = copy / "modules" / "devices.bpf.c"
    text = devices.read_text()
    assert text.count(MACVLAN) == 1
    devices.write_text(text.replace(MACVLAN, ""))
    monkeypatch.setattr(source, "source_folder", lambda: copy)
    monkeypatch.setattr(building, "build", CompiledOnce().build)
    client, server = pair
    for pod, address in ((client, "192.0.2.1"), (server, "192.0.2.2")):
        pod.namespace.ip("link", "add", "link", "eth0", "name", "top", "type", "macvlan")
        pod.namespace.ip("address", "add", f"{address}/24", "dev", "top")
        pod.namespace.ip("link", "set", "top", "up")
    engine = await watch(start_engine, client, server)
    with connection(client.namespace, server.namespace, "192.0.2.2") as both:
        exchange(both, MANY)
    assert account_for(taken(engine, CLIENT), "tx.total") == (MANY, 0)
    for slot in (CLIENT, SERVER):
        assert_is_told_to_the_target(engine, slot, "of a kind that is not supported (macvlan)")


@contextmanager
def mptcp_connection(client: Pod, server: Pod) -> Iterator[Connection]:
    """A connection of which both ends speak MPTCP."""
    with inside(server.namespace):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    with listener:
        listener.bind((server.address, PORT))
        listener.listen()
        with inside(client.namespace):
            asking = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        with asking:
            asking.connect((server.address, PORT))
            answering, _ = listener.accept()
            with answering:
                yield Connection(asking, answering)


async def test_bytes_of_mptcp_are_unmatched_in_both_directions(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with mptcp_connection(client, server) as both:
        exchange(both, MANY)
    measured = engine.read()
    for slot in (CLIENT, SERVER):
        for name in ("rx.socket", "tx.socket"):
            samples, missing = account_for(measured[slot], name)
            assert samples == 0, (slot, name)
            assert missing >= MANY - 1, (slot, name)  # the last one still waits for a read
        for name in ("rx.total", "tx.total", "app.response"):
            assert not measured[slot].stage(name).histogram.count
        assert_is_told_to_the_target(engine, slot, "packets of MPTCP")
