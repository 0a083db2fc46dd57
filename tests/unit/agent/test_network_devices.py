"""The devices of a namespace: which of them packets come by first."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from latencyprobe_agent.kernel.runtime import network_devices
from latencyprobe_agent.kernel.runtime.network_devices import (
    Device,
    devices,
    devices_with_default_route,
    has_news,
)


def attribute(kind: int, content: bytes) -> bytes:
    length = 4 + len(content)
    return struct.pack("=HH", length, kind) + content + bytes(-length % 4)


def link(index: int, flags: int, *attributes: bytes) -> bytes:
    """An RTM_NEWLINK message."""
    body = struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), 16, 2, 1, 0) + body


def name(text: str) -> bytes:
    return attribute(3, text.encode() + b"\0")


def kind(text: str) -> bytes:
    return attribute(18 | 1 << 15, attribute(1, text.encode() + b"\0"))


DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)
PEER = attribute(5, struct.pack("=I", 7))
ACROSS = attribute(37, struct.pack("=i", 0))


def test_a_listing_of_the_kernel_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [
        link(1, 0x8, name("lo")) + link(2, 0x1, name("eth0"), kind("veth"), PEER, ACROSS),
        link(3, 0x1, name("nic0")) + DONE,
    ]
    ours, kernels = socket.socketpair(type=socket.SOCK_SEQPACKET)
    monkeypatch.setattr("socket.socket", lambda *_: ours)
    with kernels:
        for message in messages:
            kernels.send(message)
        found = devices()
    assert found == (
        Device(1, "lo", is_loopback=True),
        Device(2, "eth0", "veth", lower=7, is_across=True),
        Device(3, "nic0"),
    )


def test_a_refusal_of_the_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, kernels = socket.socketpair(type=socket.SOCK_SEQPACKET)
    monkeypatch.setattr("socket.socket", lambda *_: ours)
    with kernels:
        kernels.send(struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -13))
        with pytest.raises(PermissionError, match="RTM_GETLINK"):
            devices()


@pytest.mark.parametrize(
    ("device", "is_first"),
    [
        (Device(1, "lo", is_loopback=True), True),
        (Device(2, "eth0"), True),
        (Device(2, "eth0", "veth", lower=7, is_across=True), True),
        (Device(2, "one", "veth", lower=3), True),
        (Device(2, "vxlan0", "vxlan", lower=1), True),
        (Device(2, "eth0", "macvlan", lower=3, is_across=True), True),
        (Device(3, "top", "macvlan", lower=2), False),
        (Device(3, "eth0.7", "vlan", lower=2), False),
        (Device(3, "br0", "bridge"), False),
        (Device(3, "bond0", "bond"), False),
    ],
    ids=lambda value: value.kind or value.name if isinstance(value, Device) else "",
)
def test_packets_come_first_by_the_lowest_device_of_a_namespace(
    device: Device, is_first: bool
) -> None:
    assert device.receives_first is is_first


def test_devices_of_default_routes_lead_out_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    ipv4 = """\
Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t010010AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t000010AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
    zeros = "0" * 32
    ipv6 = f"""\
{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 00000003     eth2
{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo
{"f" * 32} 80 {zeros} 00 {zeros} 00000000 00000001 00000000 00000001     eth3
"""
    files = {"route": ipv4.splitlines(), "ipv6_route": ipv6.splitlines()}
    monkeypatch.setattr(network_devices, "_lines", files.__getitem__)
    assert devices_with_default_route() == {"eth0", "eth2"}


def test_changes_are_reported_once() -> None:
    ours, kernels = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with ours, kernels:
        ours.setblocking(False)
        assert not has_news(ours)
        kernels.send(b"changed")
        kernels.send(b"and again")
        assert has_news(ours)
        assert not has_news(ours)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_routes_that_cannot_be_read_now_are_not_taken_for_none(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fails(path: str, **_: str) -> None:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr("builtins.open", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        devices_with_default_route()


def test_a_namespace_without_ipv6_has_no_route_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str, **_: str) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    monkeypatch.setattr("builtins.open", fails)
    assert devices_with_default_route() == frozenset()
