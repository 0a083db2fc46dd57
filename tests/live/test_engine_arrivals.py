"""Arrivals that programs on devices see, in place of the tracepoint that runs for all packets."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bench.programs import counting_runs, run_times
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.hooks import HOST_EGRESS, HOST_INGRESS, POD_INGRESS
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.compiled_once import compiled_once
from tests.live.device_programs import (
    links_to_devices,
    own_runs,
    runs_for_exchanges,
    use_on_devices,
)
from tests.live.foreign_on_devices import foreign_on, redirecting
from tests.live.loaded_programs import programs_of, wait_until_gone
from tests.live.measuring import SERVER, account_for, assert_all_left, assert_parts_add_up, resent
from tests.live.nics import nic
from tests.live.pods import (
    SLOW_LAST_DEVICE,
    Namespace,
    Pod,
    made_pod,
    namespace,
    pods_on_bridge,
    pods_on_routes,
    run,
)
from tests.live.sockets import (
    PORT,
    Connection,
    connection,
    everything_in,
    exchange,
    inside,
    read_all,
    send_datagrams,
    udp_socket,
)
from tests.live.taps import on_the_servers_device, tap, with_a_ring
from tests.live.tunnels import vxlan

Start = Callable[..., KernelEngine]
Bridged = tuple[Namespace, Pod, Pod]
RX = frozenset({Module.RX})
TRACEPOINT, ON_DEVICES = "netif_receive_skb", "tcx/ingress"
SEGMENTS, MANY = 40, 200
MILLISECOND_NS = 1_000_000
NODE_ADDRESS = "198.51.100.254"
CHANGE_THE_PAYLOAD = """
table ip mangling {
  chain forward {
    type filter hook forward priority 0;
    udp dport 7000 @th,64,32 set 0x78787878
  }
}
"""


async def watch_on_devices(
    start: Start, host: Namespace, *pods: Pod, modules: frozenset[Module] = RX
) -> KernelEngine:
    """An engine whose targets are these pods, in slots from SERVER on."""
    engine = await use_on_devices(start, host, *pods, modules=modules, first_slot=SERVER)
    assert hook(engine) == ON_DEVICES, stage(engine)
    return engine


def stage(engine: KernelEngine, name: str = "rx.host") -> StageCoverage:
    return next(each for each in engine.coverage if each.name == name)


def hook(engine: KernelEngine) -> str:
    """The hook that sees arrivals."""
    return next(each for each in stage(engine).hook.split(", ") if "tcp_probe" not in each)


def has_tracepoint() -> bool:
    return TRACEPOINT in run_times(without=())


def taken(engine: KernelEngine, slot: int = SERVER) -> Measurement:
    return engine.read().get(slot, NOTHING)


async def test_packets_between_strangers_run_no_program_for_their_arrival(
    start_engine: Start,
) -> None:
    with pods_on_bridge(3) as (host, (idle, client, server)):
        engine = await watch_on_devices(start_engine, host, idle)
        assert not has_tracepoint()
        runs = runs_for_exchanges(engine, client, server, MANY)
    # what a bridge sends to all its ports, such as the question for a neighbour's address
    assert runs < MANY / 10


@contextmanager
def macvlan_pods() -> Iterator[tuple[Namespace, list[Pod]]]:
    """A host, and pods with macvlan devices on one device of the host's."""
    with ExitStack() as stack:
        host, far = (stack.enter_context(namespace(role)) for role in ("host", "far"))
        run(
            *("ip", "-n", host.name, "link", "add", "parent", "type", "veth"),
            *("peer", "name", "eth0", "netns", far.name),
        )
        far.ip("link", "set", "eth0", "up")
        host.ip("link", "set", "parent", "up")
        pods = []
        for index in range(2):
            inside_pod = stack.enter_context(namespace(f"pod{index}"))
            child = f"child{index}"
            host.ip(
                *("link", "add", "link", "parent", "name", child),
                *("type", "macvlan", "mode", "bridge"),
            )
            host.ip("link", "set", child, "netns", inside_pod.name, "name", "eth0")
            pods.append(made_pod(stack, inside_pod, index))
        yield host, pods


@contextmanager
def filtering_bridge() -> Iterator[tuple[Namespace, list[Pod]]]:
    with pods_on_bridge(2) as (host, pods):
        host.execute("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
        yield host, pods


def assert_all_are_counted(received: Measurement) -> None:
    """But for those that a softirq receives which interrupts a thread hidden from tracers."""
    total, on_host = (account_for(received, name) for name in ("rx.total", "rx.host"))
    assert total == on_host
    assert SEGMENTS * 0.9 <= total[0] <= SEGMENTS
    assert total[1] == 0


Way = Callable[[], AbstractContextManager[tuple[Namespace, list[Pod]]]]
Tap = Callable[[Namespace], AbstractContextManager[object]]
bridge = partial(pods_on_bridge, 2)
routes = partial(pods_on_routes, 2)


any_device: Tap = tap
a_ring: Tap = partial(tap, prepare=with_a_ring)
one_device: Tap = partial(tap, prepare=on_the_servers_device)


@pytest.mark.parametrize(
    ("way", "watched_by"),
    [  # each way alone, each tap on a bridge, and another one on each other way
        pytest.param(bridge, None, id="bridge"),
        pytest.param(bridge, any_device, id="bridge-any device"),
        pytest.param(bridge, a_ring, id="bridge-a ring"),
        pytest.param(bridge, one_device, id="bridge-one device"),
        pytest.param(filtering_bridge, None, id="nf"),
        pytest.param(filtering_bridge, one_device, id="nf-one device"),
        pytest.param(routes, None, id="routes"),
        pytest.param(routes, any_device, id="routes-any device"),
        *(
            pytest.param(way, tapped, id=f"{name}-{where}", marks=pytest.mark.thorough)
            for way, name, tapped, where in (
                (filtering_bridge, "nf", any_device, "any device"),
                (filtering_bridge, "nf", a_ring, "a ring"),
                (routes, "routes", a_ring, "a ring"),
                (routes, "routes", one_device, "one device"),
            )
        ),
    ],
)
async def test_segments_of_another_pod_are_on_the_host_since_their_tcp_sent_them(
    start_engine: Start, way: Way, watched_by: Tap | None
) -> None:
    with way() as (host, (client, server)), ExitStack() as stack:
        both = stack.enter_context(connection(client.namespace, server.namespace, server.address))
        if watched_by is not None:
            stack.enter_context(watched_by(host))
        host.execute(*SLOW_LAST_DEVICE)
        engine = await watch_on_devices(start_engine, host, server)
        for _ in range(SEGMENTS // 2):  # the second of two waits for the first
            both.client.sendall(b"s" * 1000)
            both.client.sendall(b"s" * 1000)
            read_all(both.server, 2000)
        received = taken(engine)
    assert_all_are_counted(received)
    assert received.stage("rx.host").histogram.max_ns > MILLISECOND_NS
    assert received.stage("rx.stack").histogram.min_ns < MILLISECOND_NS
    assert "rx.softirq" not in received.stages
    assert_parts_add_up(received, "rx")


@pytest.mark.parametrize("way", [bridge, filtering_bridge, routes], ids=["bridge", "nf", "routes"])
async def test_datagrams_of_another_pod_are_on_the_host_from_its_end_of_the_targets_pair(
    start_engine: Start, way: Way
) -> None:
    with way() as (host, (client, server)):
        engine = await watch_on_devices(start_engine, host, server)
        send_datagrams(client.namespace, server.namespace, server.address, MANY)
        received = taken(engine)
    assert account_for(received, "rx.total") == (MANY, 0)
    assert account_for(received, "rx.host") == (MANY, 0)
    assert_parts_add_up(received, "rx")


async def test_between_targets_the_path_begins_on_the_host_as_by_the_tracepoint(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = await watch_on_devices(start_engine, host, server, client)
    with connection(client.namespace, server.namespace, server.address) as both:
        exchange(both, MANY)
    send_datagrams(client.namespace, server.namespace, server.address, MANY)
    received = taken(engine)
    for name in ("rx.softirq", "rx.host", "rx.stack", "rx.socket", "rx.total"):
        assert account_for(received, name) == (2 * MANY, 0), name
    assert_parts_add_up(received, "rx")


async def test_packets_of_the_host_itself_have_no_time_on_the_host(
    start_engine: Start, bridged: Bridged
) -> None:
    host, _, server = bridged
    engine = await watch_on_devices(start_engine, host, server)
    with connection(host, server.namespace, server.address) as both:
        exchange(both, MANY)
    send_datagrams(host, server.namespace, server.address, MANY)
    received = taken(engine)
    assert account_for(received, "rx.total") == (2 * MANY, 0)
    assert "rx.host" not in received.stages


async def test_the_loopback_device_of_a_pod_is_measured(
    start_engine: Start, bridged: Bridged
) -> None:
    host, _, server = bridged
    engine = await watch_on_devices(start_engine, host, server)
    with connection(server.namespace, server.namespace, "127.0.0.1") as both:
        exchange(both, MANY)
    received = taken(engine)
    assert account_for(received, "rx.total") == (2 * MANY, 0)
    assert "rx.host" not in received.stages


async def test_segments_that_skip_the_hosts_end_of_the_pair_have_their_time_on_the_host(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    with inside(host):
        code = redirecting(socket.if_nametoindex("veth1"))
    ingress = libbpf.ATTACH_TYPE_TCX_INGRESS
    with connection(client.namespace, server.namespace, server.address) as both:
        engine = await watch_on_devices(start_engine, host, server)
        with foreign_on(host, "veth0", ingress, first=False, code=code), counting_runs():
            before = own_runs(engine)[HOST_EGRESS]
            for _ in range(MANY):
                both.client.sendall(b"s" * 100)
                read_all(both.server, 100)
            assert own_runs(engine)[HOST_EGRESS] - before < MANY / 10
        received = taken(engine)
    assert account_for(received, "rx.host") == account_for(received, "rx.total") == (MANY, 0)
    assert_parts_add_up(received, "rx")


async def test_packets_between_macvlan_pods_are_measured(start_engine: Start) -> None:
    with macvlan_pods() as (host, (client, server)):
        engine = await watch_on_devices(start_engine, host, server)
        with connection(client.namespace, server.namespace, server.address) as both:
            exchange(both, MANY)
        send_datagrams(client.namespace, server.namespace, server.address, MANY)
        received = taken(engine)
    assert account_for(received, "rx.total") == (2 * MANY, 0)
    assert "rx.host" not in received.stages


async def test_packets_of_a_tunnel_are_on_the_host_since_its_device_had_them(
    start_engine: Start,
) -> None:
    with pods_on_bridge(2) as (host, (_, server)), vxlan(host) as far_pod:
        far = far_pod.namespace
        engine = await watch_on_devices(start_engine, host, server)
        with connection(far, server.namespace, server.address) as both:
            exchange(both, MANY)
        send_datagrams(far, server.namespace, server.address, MANY)
        received = taken(engine)
    for name in ("rx.softirq", "rx.host", "rx.stack", "rx.total"):
        assert account_for(received, name) == (2 * MANY, 0), name
    assert_parts_add_up(received, "rx")


@pytest.mark.parametrize("way", [bridge, routes], ids=["bridge", "routes"])
async def test_packets_of_another_node_are_on_the_host_since_its_nic_had_them(
    start_engine: Start, way: Way
) -> None:
    with way() as (host, (_, server)), nic(host) as device:
        engine = await watch_on_devices(start_engine, host, server)
        with udp_socket(server.namespace, server.address, PORT) as reading:
            device.send(server.address, b"which asks for the neighbour")
            reading.recv(100)
            taken(engine)
            host.execute(*SLOW_LAST_DEVICE)
            for _ in range(SEGMENTS // 2):
                device.send(server.address, b"d" * 1000)
                device.send(server.address, b"d" * 1000)
                reading.recv(1024)
                reading.recv(1024)
        received = taken(engine)
    assert_all_are_counted(received)
    assert received.stage("rx.host").histogram.max_ns > MILLISECOND_NS
    assert_parts_add_up(received, "rx")


async def test_packets_of_a_nic_that_the_host_changes_are_lost(start_engine: Start) -> None:
    with routes() as (host, (_, server)), nic(host) as device:
        host.load_rules(CHANGE_THE_PAYLOAD)
        engine = await watch_on_devices(start_engine, host, server)
        with udp_socket(server.namespace, server.address, PORT) as reading:
            for _ in range(SEGMENTS):
                device.send(server.address, b"d" * 100)
                reading.recv(1024)
        received = taken(engine)
    assert account_for(received, "rx.host") == account_for(received, "rx.total") == (0, SEGMENTS)


@pytest.mark.parametrize("first", [True, False], ids=["ahead", "behind"])
@pytest.mark.parametrize("is_later", [False, True], ids=["before ours", "after ours"])
async def test_programs_of_others_on_the_same_devices_run_as_before(
    start_engine: Start, bridged: Bridged, *, first: bool, is_later: bool
) -> None:
    host, client, server = bridged
    ingress, egress = libbpf.ATTACH_TYPE_TCX_INGRESS, libbpf.ATTACH_TYPE_TCX_EGRESS
    places = [
        (server.namespace, "eth0", ingress),
        (host, "veth1", ingress),
        (host, "veth1", egress),
    ]
    with ExitStack() as stack, counting_runs():
        engine = None if is_later else await watch_on_devices(start_engine, host, server)
        theirs = [stack.enter_context(foreign_on(*place, first=first)) for place in places]
        with connection(client.namespace, server.namespace, server.address) as both:
            exchange(both, 1)  # and the neighbours' addresses are known
            runs = [runs_for(both, theirs)]
            if engine is None:
                engine = await watch_on_devices(start_engine, host, server)
            else:
                await engine.use(frozenset())
            runs.append(runs_for(both, theirs))
            await engine.use(RX)
            runs.append(runs_for(both, theirs))
    # beside these, neighbours ask for addresses now and then
    assert all(MANY <= each < 1.1 * MANY for counted in runs for each in counted), runs


def runs_for(both: Connection, programs: list[int]) -> list[int]:
    """How often each program runs for requests and responses."""
    before = [int(libbpf.program_info(each).run_cnt) for each in programs]
    exchange(both, MANY)
    after = [int(libbpf.program_info(each).run_cnt) for each in programs]
    return [late - early for early, late in zip(before, after, strict=True)]


async def test_a_target_in_the_hosts_namespace_brings_the_tracepoint_for_all(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = await watch_on_devices(start_engine, host, server)
    on_host = Pod(host, server.cgroup, NODE_ADDRESS, "")
    engine.assign({SERVER: everything_in(server), SERVER + 1: everything_in(on_host)})
    assert hook(engine).endswith(f"/{TRACEPOINT}")
    assert has_tracepoint()
    with connection(client.namespace, server.namespace, server.address) as both:
        exchange(both, MANY)
    received = taken(engine)
    assert account_for(received, "rx.host") == account_for(received, "rx.softirq") == (MANY, 0)
    engine.assign({SERVER: everything_in(server)})
    assert hook(engine) == ON_DEVICES
    assert not has_tracepoint()


async def test_no_packet_is_missed_while_targets_come_and_go(start_engine: Start) -> None:
    with pods_on_bridge(3) as (host, (client, server, other)):
        engine = await watch_on_devices(start_engine, host, server)
        received = NOTHING
        with connection(client.namespace, server.namespace, server.address) as both:
            for _ in range(10):
                exchange(both, 10)
                KernelEngine.assign(engine, {SERVER: everything_in(server)})
                exchange(both, 10)
                KernelEngine.assign(
                    engine, {SERVER: everything_in(server), 0: everything_in(other)}
                )
                exchange(both, 10)
                received += taken(engine)
        received += taken(engine)
    assert account_for(received, "rx.total") == (300, 0)
    assert account_for(received, "rx.host") == (300, 0)


async def test_a_change_of_modules_keeps_the_links_to_devices(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = await watch_on_devices(start_engine, host, server)
    links = links_to_devices(engine)
    assert {function for *_, function in links} == {POD_INGRESS, HOST_INGRESS, HOST_EGRESS}
    for modules in (frozenset(DEFAULT_MODULES), RX):
        await engine.use(modules)
        kept = links_to_devices(engine)
        assert kept.keys() >= links.keys()
        assert {place: kept[place] for place in links} == links
        engine.read()
        runs = runs_for_exchanges(engine, client, server, MANY)
        assert runs >= 2 * MANY
        assert account_for(taken(engine), "rx.total") == (2 * MANY, 0)
    assert links_to_devices(engine) == links


async def test_a_device_that_is_made_again_is_measured_from_the_next_reading_on(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = await watch_on_devices(start_engine, host, server)
    server.namespace.ip("link", "delete", "eth0")
    run(
        *("ip", "-n", server.namespace.name, "link", "add", "eth0", "type", "veth"),
        *("peer", "name", "veth1", "netns", host.name),
    )
    host.ip("link", "set", "veth1", "master", "br0", "up")
    server.namespace.ip("address", "add", f"{server.address}/24", "dev", "eth0")
    server.namespace.ip("link", "set", "eth0", "up")
    engine.read()
    engine._settle()  # type: ignore[attr-defined]
    with connection(client.namespace, server.namespace, server.address) as both:
        exchange(both, MANY)
    received = taken(engine)
    assert account_for(received, "rx.host") == (MANY, 0)


async def test_without_a_path_to_the_namespace_the_tracepoint_serves_and_says_why(
    start_engine: Start, bridged: Bridged, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latencyprobe_agent.kernel.runtime import device_links  # noqa: PLC0415

    host, client, server = bridged
    monkeypatch.setattr(device_links, "find_path", lambda *_: None)
    engine = start_engine(host_netns=host.inode, on_devices=True)
    engine.assign({SERVER: everything_in(server)})
    await engine.use(RX)
    covered = stage(engine)
    assert covered.state is CoverageState.ACTIVE
    assert covered.hook.startswith(f"tp_btf/{TRACEPOINT}")
    assert covered.reason == (
        f"tcx/ingress is not used: no process leads to network namespace {server.namespace.inode}"
    )
    with connection(client.namespace, server.namespace, server.address) as both:
        exchange(both, MANY)
    assert account_for(taken(engine), "rx.host") == (MANY, 0)


AGENT = """
import asyncio, sys
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.contract import SlotSpec
from tests.live.confined import use_compiled
from tests.live.fixtures import SettledEngine

async def main():
    host, pod = (int(each) for each in sys.argv[1:3])
    use_compiled(sys.argv[3])
    engine = SettledEngine(host_netns=host, on_devices=True)
    inode = frozenset({pod})
    engine.assign({0: SlotSpec(netns=inode, netns_wide=inode)})
    await engine.use(frozenset({Module.RX, Module.TX}))
    events = ("receive", "queue")
    print(*(engine._object.attached[event] for event in events), flush=True)
    print(*sorted(set(engine._object.remarks.values())), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs that AGENT asks for, with all alternatives."""
    builder = KernelEngine(host_netns=1, on_devices=True)._builder
    request = replace(builder.request(("rx", "tx"), tracing=False, udp=True), complete=True)
    path = tmp_path_factory.mktemp("compiled") / "object"
    path.write_bytes(asyncio.run(compiled_once().compile(request)).content)
    return path


@contextmanager
def agent(bridged: Bridged, compiled: Path, *under: str) -> Iterator[tuple[set[int], str, str]]:
    """An agent's process: its programs, its hooks and why they are not others. It is killed."""
    host, _, server = bridged
    inodes = (str(host.inode), str(server.namespace.inode))
    command = [sys.executable, "-c", AGENT, *inodes, str(compiled)]
    process = subprocess.Popen([*under, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        hooks, remarks = (process.stdout.readline().strip() for _ in range(2))
        yield programs_of(process.pid), hooks, remarks
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_nothing_stays_on_a_device_after_the_agent_was_killed(
    bridged: Bridged, compiled: Path
) -> None:
    with agent(bridged, compiled) as (programs, hooks, _):
        assert hooks == "tcx/ingress tcx/egress"
    wait_until_gone(programs)


@pytest.mark.parametrize(
    ("capabilities", "reason"),
    [
        (
            "bpf,+perfmon,+net_admin,+syslog",
            "cannot enter a network namespace: Operation not permitted",
        ),
        (
            "bpf,+perfmon,+syslog",
            "tcx/egress is not used: cannot load on_pod_egress: Operation not permitted",
        ),
    ],
    ids=["without SYS_ADMIN", "without NET_ADMIN too"],
)
def test_without_the_capabilities_for_devices_the_tracepoints_serve_and_say_why(
    bridged: Bridged, compiled: Path, capabilities: str, reason: str
) -> None:
    bound = f"--bounding-set=-all,+{capabilities}"
    with agent(bridged, compiled, "setpriv", bound, "--inh-caps=-all") as (_, hooks, remarks):
        assert hooks == "tp_btf/netif_receive_skb tp_btf/net_dev_queue"
        assert reason in remarks


async def test_all_modules_measure_a_packet_that_arrives_on_a_device(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    modules = frozenset(DEFAULT_MODULES)
    engine = await watch_on_devices(start_engine, host, server, client, modules=modules)
    with connection(client.namespace, server.namespace, server.address) as both:
        exchange(both, MANY)
    for measured in engine.read().values():
        assert account_for(measured, "rx.total") == (MANY, 0)
        assert_all_left(measured, "tx.total", MANY, resent(measured))
        assert_parts_add_up(measured, "rx", "tx")
