"""Packets of a tunnel: their path through the host includes that of the outer packets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import (
    CLIENT,
    RX_PARTS,
    SERVER,
    TX_PARTS,
    account_for,
    assert_all_left,
    assert_is_there_alone,
    assert_parts_add_up,
    watch_on_host,
)
from tests.live.netfilter import take_time
from tests.live.pods import pods_on_bridge
from tests.live.sockets import connection, exchange, sent_again
from tests.live.stamped import DATAGRAMS, stamped
from tests.live.taps import tap
from tests.live.tunnels import VXLAN_PORT, vxlan

Start = Callable[..., KernelEngine]
OUTER = f"udp dport {VXLAN_PORT}"
MANY = 200

pytestmark = pytest.mark.shared_programs


async def test_the_path_of_the_outer_packets_to_the_pod_is_found_on_the_host(
    start_engine: Start,
) -> None:
    with (
        pods_on_bridge(1) as (host, (pod,)),
        vxlan(host) as far,
        stamped(far, pod) as datagrams,
    ):
        take_time(host, OUTER, "input")
        engine = await watch_on_host(start_engine, host, far, pod)
        took = datagrams.send_one_by_one()
        received = engine.read()[SERVER]
    assert account_for(received, "rx.host") == (DATAGRAMS, 0)
    took.assert_are_in(received.stage("rx.host").histogram)
    assert_is_there_alone(received, "rx.host", RX_PARTS)
    assert_parts_add_up(received, "rx")


@pytest.mark.thorough
async def test_the_path_of_the_outer_packets_from_the_pod_is_found_on_the_host(
    start_engine: Start,
) -> None:
    with (
        pods_on_bridge(1) as (host, (pod,)),
        vxlan(host) as far,
        stamped(pod, far) as datagrams,
    ):
        take_time(host, OUTER, "output")
        engine = await watch_on_host(start_engine, host, pod, far)
        took = datagrams.send_one_by_one()
        sent = engine.read()[CLIENT]
    assert account_for(sent, "tx.host") == (DATAGRAMS, 0)
    took.assert_are_in(sent.stage("tx.host").histogram)
    assert_is_there_alone(sent, "tx.host", TX_PARTS)
    assert_parts_add_up(sent, "tx")


@pytest.mark.parametrize("is_watched", [False, True], ids=["alone", "tap"])
async def test_segments_of_a_tunnel_are_followed_in_both_directions(
    start_engine: Start, is_watched: bool
) -> None:
    with pods_on_bridge(1) as (host, (pod,)), vxlan(host) as far:
        engine = await watch_on_host(start_engine, host, pod)
        with connection(far.namespace, pod.namespace, pod.address) as both:
            if is_watched:
                with tap(host):
                    exchange(both, MANY)
            else:
                exchange(both, MANY)
        measured = engine.read()[CLIENT]
        again = sent_again(pod.namespace)
    for stage in ("rx.host", "rx.total"):
        assert account_for(measured, stage) == (MANY, 0), stage
    for stage in ("tx.host", "tx.total"):
        assert_all_left(measured, stage, MANY, again)
    assert_parts_add_up(measured, "rx", "tx")
