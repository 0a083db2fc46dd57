"""Packets as `latencyprobe trace` receives them."""

from __future__ import annotations

from ipaddress import ip_address

from latencyprobe.domain.packets import Endpoint, TracedPacket, User

SERVER = Endpoint(ip_address("198.51.100.2"), 7000)
CLIENT = Endpoint(ip_address("198.51.100.1"), 40752)
RECEIVED = TracedPacket(
    ended_unix_ns=1_700_000_000_123_456_789,
    user=User(4242, 4243, "server"),
    cpu=1,
    protocol="TCP",
    local=SERVER,
    remote=CLIENT,
    stages_ns={
        "rx.softirq": 500,
        "rx.stack": 1_500,
        "rx.socket": 5_000_000,
        "rx.total": 5_002_000,
    },
)

SENT = TracedPacket(
    ended_unix_ns=1_700_000_000_000_000_000,
    user=None,
    cpu=12,
    protocol="UDP",
    local=None,
    remote=None,
    stages_ns={"tx.qdisc": 16_000_000, "tx.total": 16_000_000},
)
