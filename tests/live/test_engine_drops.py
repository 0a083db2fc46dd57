"""Packets of a target that the node drops on their way out, against the counters of nftables."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from latencyprobe.domain.measurement import NOTHING
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, watch_on_host
from tests.live.node_drops import (
    DROPPED,
    NODE_DROPS,
    are_missing,
    dropped_by,
    find_neighbour,
    routed,
    send_datagrams,
)
from tests.live.pods import Namespace, Pod, pods_on_bridge
from tests.live.sockets import (
    PORT,
    connection,
    everything_in,
    inside,
    read_all,
    udp_socket,
)
from tests.live.targets import until

Start = Callable[..., KernelEngine]

BRIDGE_DROPS = NODE_DROPS.replace("table inet", "table bridge")
TRANSLATES = """
table ip address {{
  chain before {{
    type nat hook prerouting priority -100;
    ip daddr 203.0.113.10 dnat to {address}
  }}
}}
"""


@contextmanager
def bridged() -> Iterator[tuple[Namespace, Pod, Pod]]:
    """A host with a bridge between a (client, server) pair."""
    with pods_on_bridge(2) as (host, (client, server)):
        find_neighbour(client, server)
        yield host, client, server


def dropped_by_queue(host: Namespace) -> int:
    """The packets that the queueing discipline of the device to the server has dropped."""
    command = ["tc", "-n", host.name, "-s", "-json", "qdisc", "show", "dev", "veth1"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    return int(json.loads(shown)[0]["drops"])


def drops(engine: KernelEngine, slot: int) -> dict[str, int]:
    """The counters of dropped packets of a target."""
    counters = engine.read().get(slot, NOTHING).counters
    return {name: count for name, count in counters.items() if name.startswith("drops")}


@pytest.mark.every_kernel
async def test_datagrams_that_the_node_drops_have_reason_and_kernel_function(
    start_engine: Start,
) -> None:
    with routed() as (host, client, server):
        host.load_rules(NODE_DROPS.format(rule="udp dport 7000"))
        engine = await watch_on_host(start_engine, host, client, server)
        send_datagrams(client, server.address)
        assert dropped_by(host) == DROPPED
        counted = drops(engine, CLIENT)
        assert drops(engine, SERVER) == {}
        if are_missing(engine):
            assert counted == {}
            return
        assert counted.pop("drops.NETFILTER_DROP") == DROPPED
        assert list(counted.values()) == [DROPPED]
        assert re.fullmatch(r"dropsIn\.nf\w+", next(iter(counted)))


async def test_programs_without_types_count_the_same(start_engine: Start) -> None:
    with routed() as (host, client, server):
        host.load_rules(NODE_DROPS.format(rule="udp dport 7000"))
        engine = start_engine(host_netns=host.inode, typed=False)
        engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
        await engine.use(frozenset({Module.TX, Module.TCP}))
        send_datagrams(client, server.address)
        counted = drops(engine, CLIENT)
        assert counted.pop("drops.NETFILTER_DROP") == DROPPED
        assert list(counted.values()) == [DROPPED]
        assert re.fullmatch(r"dropsIn\.nf\w+", next(iter(counted)))


@pytest.mark.parametrize("on_devices", [False, True])
async def test_a_datagram_is_known_by_its_content_where_its_address_is_translated(
    start_engine: Start, on_devices: bool
) -> None:
    with routed() as (host, client, server):
        host.load_rules(TRANSLATES.format(address=server.address))
        host.load_rules(NODE_DROPS.format(rule="udp dport 7000"))
        client.namespace.ip("route", "add", "203.0.113.10/32", "via", "198.51.100.2")
        engine = start_engine(host_netns=host.inode, on_devices=on_devices)
        engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
        await engine.use(frozenset({Module.RX, Module.TX, Module.TCP}))
        send_datagrams(client, "203.0.113.10")
        assert dropped_by(host) == DROPPED
        assert drops(engine, CLIENT)["drops.NETFILTER_DROP"] == DROPPED


@pytest.mark.every_kernel
async def test_connects_whose_syn_the_node_drops_are_counted(start_engine: Start) -> None:
    with routed() as (host, client, server):
        host.load_rules(NODE_DROPS.format(rule="tcp dport 7000"))
        engine = await watch_on_host(start_engine, host, client, server)
        for _ in range(DROPPED):
            with inside(client.namespace):
                asking = socket.socket()
            with asking:
                asking.setblocking(False)
                asking.connect_ex((server.address, PORT))
        sent = dropped_by(host)
        assert sent == DROPPED
        counted = drops(engine, CLIENT)
        assert counted == {} if are_missing(engine) else counted["drops.NETFILTER_DROP"] == DROPPED


async def test_segments_that_the_node_drops_are_counted_at_their_sender(
    start_engine: Start,
) -> None:
    with routed() as (host, client, server):
        engine = await watch_on_host(start_engine, host, client, server)
        with connection(client.namespace, server.namespace, server.address) as both:
            both.client.sendall(b"x")
            read_all(both.server, 1)
            host.load_rules(NODE_DROPS.format(rule="tcp dport 7000 tcp flags & psh == psh"))
            both.client.sendall(b"x")  # sent again until it arrives
            counted = 0

            def are_counted() -> bool:
                nonlocal counted
                counted += drops(engine, CLIENT).get("drops.NETFILTER_DROP", 0)
                return counted >= 3

            until(are_counted, "3 dropped segments are counted")
            assert counted <= dropped_by(host)
            host.execute("nft", "delete", "chain", "inet", "node", "forward")
            read_all(both.server, 1)
        assert drops(engine, SERVER) == {}


async def test_a_bridge_that_drops_is_counted(start_engine: Start) -> None:
    with bridged() as (host, client, server):
        host.load_rules(BRIDGE_DROPS.format(rule="ip protocol udp udp dport 7000"))
        engine = await watch_on_host(start_engine, host, client, server)
        send_datagrams(client, server.address)
        assert dropped_by(host) == DROPPED
        assert drops(engine, CLIENT)["drops.NETFILTER_DROP"] == DROPPED


async def test_packets_without_a_route_on_the_node_are_counted(start_engine: Start) -> None:
    with routed() as (host, client, server):
        client.namespace.ip("route", "add", "203.0.113.0/24", "via", "198.51.100.2")
        engine = await watch_on_host(start_engine, host, client, server)
        with suppress(OSError):
            send_datagrams(client, "203.0.113.1")
        counted = drops(engine, CLIENT)
        reasons = {name: n for name, n in counted.items() if name.startswith("drops.")}
        assert sum(reasons.values()) == DROPPED, counted
        assert "NOROUTE" in "".join(reasons).upper(), counted


async def test_packets_that_a_queue_of_the_node_drops_are_counted(start_engine: Start) -> None:
    with routed() as (host, client, server):
        shaping = ("root", "tbf", "rate", "8kbit", "burst", "200", "limit", "400")
        host.execute("tc", "qdisc", "add", "dev", "veth1", *shaping)
        engine = await watch_on_host(start_engine, host, client, server)
        with udp_socket(client.namespace) as sending:
            for number in range(50):
                sending.sendto(b"%04d" % number + b"x" * 96, (server.address, PORT))
        dropped = dropped_by_queue(host)
        counted = drops(engine, CLIENT)
        reasons = {name: n for name, n in counted.items() if name.startswith("drops.")}
        assert dropped > 10
        assert sum(reasons.values()) == dropped, counted


async def test_drops_of_a_stranger_on_the_node_are_nobodys(start_engine: Start) -> None:
    with routed() as (host, client, server):
        host.load_rules(NODE_DROPS.format(rule="udp dport 7000"))
        engine = start_engine(host_netns=host.inode)
        engine.assign({SERVER: everything_in(server)})
        await engine.use(frozenset({Module.RX, Module.TX, Module.TCP}))
        send_datagrams(client, server.address)
        assert dropped_by(host) == DROPPED
        assert drops(engine, SERVER) == {}


async def test_without_module_tx_the_coverage_says_what_is_not_counted(
    start_engine: Start,
) -> None:
    with routed() as (host, client, server):
        host.load_rules(NODE_DROPS.format(rule="udp dport 7000"))
        engine = start_engine(host_netns=host.inode)
        engine.assign({CLIENT: everything_in(client)})
        await engine.use(frozenset({Module.TCP}))
        send_datagrams(client, server.address)
        assert drops(engine, CLIENT) == {}
        reasons = {each.name: each.reason for each in engine.coverage}
        assert "without module tx" in reasons["drops"]
