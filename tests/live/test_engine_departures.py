"""Departures that programs on devices see, in place of the tracepoint of all queues."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from bench.programs import run_times
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.device_programs import runs_for_exchanges, use_on_devices
from tests.live.measuring import CLIENT, SERVER, account_for, assert_all_left, assert_parts_add_up
from tests.live.pods import (
    SLOW_LAST_DEVICE,
    Namespace,
    Pod,
    cgroup,
    inside_cgroup,
    pods_on_bridge,
    pods_on_routes,
)
from tests.live.sockets import (
    PORT,
    connection,
    everything_in,
    exchange,
    read_all,
    send_datagrams,
    sent_again,
    udp_socket,
)
from tests.live.tuns import Tun, tun

Start = Callable[..., KernelEngine]
Bridged = tuple[Namespace, Pod, Pod]
TX = frozenset({Module.TX})
TRACEPOINT, ON_DEVICES = "net_dev_queue", "tcx/egress"
SEGMENTS, MANY = 40, 200
MILLISECOND_NS = 1_000_000


async def watch_on_devices(
    start: Start, host: Namespace, *pods: Pod, modules: frozenset[Module] = TX
) -> KernelEngine:
    """An engine whose targets are these pods, in slots from CLIENT on."""
    engine = await use_on_devices(start, host, *pods, modules=modules, first_slot=CLIENT)
    assert ON_DEVICES in hooks(engine)
    return engine


def hooks(engine: KernelEngine) -> list[str]:
    """The hooks of tx.stack."""
    (stage,) = (each for each in engine.coverage if each.name == "tx.stack")
    return stage.hook.split(", ")


def has_tracepoint() -> bool:
    return TRACEPOINT in run_times(without=())


def taken(engine: KernelEngine, slot: int = CLIENT) -> Measurement:
    return engine.read().get(slot, NOTHING)


def assert_all_are_counted(sent: Measurement, stage: str, packets: int, pod: Pod) -> None:
    assert_all_left(sent, stage, packets, sent_again(pod.namespace))


async def test_packets_between_strangers_run_no_program_for_their_queues(
    start_engine: Start,
) -> None:
    with pods_on_bridge(3) as (host, (idle, client, server)):
        engine = await watch_on_devices(start_engine, host, idle)
        assert not has_tracepoint()
        runs = runs_for_exchanges(engine, client, server, MANY)
    assert runs < MANY / 10


async def test_datagrams_of_a_cgroup_below_a_target_are_measured(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = start_engine(host_netns=host.inode, on_devices=True)
    engine.assign({CLIENT: client.spec()})
    await engine.use(TX)
    assert ON_DEVICES in hooks(engine)
    with cgroup(f"{client.cgroup.name}/inner") as inner, inside_cgroup(inner):
        send_datagrams(client.namespace, server.namespace, server.address, MANY)
    assert account_for(taken(engine), "tx.total") == (MANY, 0)


@pytest.mark.parametrize("routed", [False, True], ids=["bridge", "routes"])
async def test_packets_to_another_pod_have_all_their_stages(
    start_engine: Start, routed: bool
) -> None:
    way = pods_on_routes if routed else pods_on_bridge
    with way(2) as (host, (client, server)):
        engine = await watch_on_devices(start_engine, host, client)
        with connection(client.namespace, server.namespace, server.address) as both:
            exchange(both, MANY)
        send_datagrams(client.namespace, server.namespace, server.address, MANY)
        sent = taken(engine)
        for stage in ("tx.host", "tx.qdisc", "tx.total"):
            assert_all_are_counted(sent, stage, 2 * MANY, client)
        assert_all_are_counted(sent, "tx.stack", MANY, client)
    assert account_for(sent, "tx.socket") == (MANY, 0)
    assert_parts_add_up(sent, "tx")


def slow_segments(engine: KernelEngine, client: Pod, server: Pod) -> tuple[Measurement, int]:
    """What is measured of segments that wait for the host's last device; how many TCP sent again.

    The peer may delay an ACK of two for longer than TCP waits.
    """
    before = sent_again(client.namespace)
    with connection(client.namespace, server.namespace, server.address) as both:
        engine.read()
        for _ in range(SEGMENTS // 2):  # the second of two waits for the first
            both.client.sendall(b"s" * 1000)
            both.client.sendall(b"s" * 1000)
            read_all(both.server, 2000)
        return taken(engine), sent_again(client.namespace) - before


def assert_are_in_the_queue(sent: Measurement, again: int) -> None:
    """But for those whose timer interrupts a thread that is hidden from tracers."""
    samples, missing = account_for(sent, "tx.total")
    assert samples >= SEGMENTS * 0.9
    assert samples + missing <= SEGMENTS + again
    assert sent.stage("tx.qdisc").histogram.max_ns > MILLISECOND_NS
    assert sent.stage("tx.host").histogram.min_ns < MILLISECOND_NS
    assert_parts_add_up(sent, "tx")


async def test_the_queue_of_the_last_device_is_found_in_tx_qdisc(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    host.execute(*SLOW_LAST_DEVICE)
    engine = await watch_on_devices(start_engine, host, client)
    assert_are_in_the_queue(*slow_segments(engine, client, server))


async def test_a_queue_that_comes_later_is_found_from_the_next_reading_on(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = await watch_on_devices(start_engine, host, client)
    host.execute(*SLOW_LAST_DEVICE)
    engine.read()
    engine._settle()  # type: ignore[attr-defined]
    assert_are_in_the_queue(*slow_segments(engine, client, server))


async def test_the_loopback_device_of_a_pod_is_measured(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, _ = bridged
    engine = await watch_on_devices(start_engine, host, client)
    for address in ("127.0.0.1", "::1"):
        with connection(client.namespace, client.namespace, address) as both:
            exchange(both, MANY)
        send_datagrams(client.namespace, client.namespace, address, MANY)
    sent = taken(engine)
    assert_all_are_counted(sent, "tx.total", 6 * MANY, client)
    assert "tx.host" not in sent.stages


async def test_datagrams_over_ipv6_and_filters_by_port_are_measured(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = await watch_on_devices(start_engine, host, client)
    send_datagrams(client.namespace, server.namespace, server.address6, MANY)
    assert account_for(taken(engine), "tx.total") == (MANY, 0)


async def test_a_cgroup_is_a_target_by_its_datagrams_too(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    engine = start_engine(host_netns=host.inode, on_devices=True)
    engine.assign({CLIENT: client.spec()})
    await engine.use(TX)
    assert ON_DEVICES in hooks(engine)
    serving = server.start("server", server.address, "7000", str(MANY), "--protocol=udp")
    asking = client.start("client", server.address, "7000", str(MANY), "--protocol=udp")
    try:
        asking.go()
        assert asking.result()["sent"] == MANY
        serving.result()
    finally:
        asking.stop()
        serving.stop()
    assert account_for(taken(engine), "tx.total") == (MANY, 0)


async def test_a_driver_inside_the_pod_is_the_end_of_the_path(start_engine: Start) -> None:
    with tun("pod", "192.0.2.1", "192.0.2.2") as pod, tun("node", "192.0.2.5", "192.0.2.6") as node:
        engine = start_engine(host_netns=node.namespace.inode, on_devices=True)
        inode = frozenset({pod.namespace.inode})
        engine.assign({CLIENT: SlotSpec(netns_wide=inode, netns=inode)})
        await engine.use(TX)
        assert ON_DEVICES in hooks(engine)
        send_by(pod, 1)  # the device is on trial
        taken(engine)
        send_by(pod, MANY)
        sent = taken(engine)
    for stage in ("tx.qdisc", "tx.driver", "tx.total"):
        assert account_for(sent, stage) == (MANY, 0), stage
    assert_parts_add_up(sent, "tx")


def send_by(pod: Tun, times: int) -> None:
    with udp_socket(pod.namespace) as sending:
        for _ in range(times):
            sending.sendto(b"d" * 100, (pod.beyond, PORT))
            pod.take()


async def test_targets_that_come_and_go_miss_no_packet(start_engine: Start) -> None:
    with pods_on_bridge(3) as (host, (client, server, other)), ExitStack() as stack:
        engine = await watch_on_devices(start_engine, host, client)
        both = stack.enter_context(connection(client.namespace, server.namespace, server.address))
        sent = NOTHING
        for _ in range(10):
            exchange(both, 10)
            KernelEngine.assign(engine, {CLIENT: everything_in(client)})
            exchange(both, 10)
            KernelEngine.assign(engine, {CLIENT: everything_in(client), 7: everything_in(other)})
            exchange(both, 10)
            sent += taken(engine)
        sent += taken(engine)
        for stage in ("tx.host", "tx.total"):
            assert_all_are_counted(sent, stage, 300, client)


async def test_both_ends_are_measured_by_programs_on_devices_alone(
    start_engine: Start, bridged: Bridged
) -> None:
    host, client, server = bridged
    modules = frozenset(DEFAULT_MODULES)
    engine = await watch_on_devices(start_engine, host, client, server, modules=modules)
    attached = run_times(without=())
    assert not {TRACEPOINT, "netif_receive_skb"} & attached.keys()
    with connection(client.namespace, server.namespace, server.address) as both:
        exchange(both, MANY)
    measured = engine.read()
    for slot, pod in ((CLIENT, client), (SERVER, server)):
        assert_all_are_counted(measured[slot], "tx.total", MANY, pod)
        assert account_for(measured[slot], "rx.total") == (MANY, 0)
        assert_parts_add_up(measured[slot], "rx", "tx")
