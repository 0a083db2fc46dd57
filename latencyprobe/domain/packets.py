"""Traced packets: process, endpoints and all stages of each.

`latencyprobe trace` shows them one by one. An unknown value is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from latencyprobe.domain.stages import PACKET_STAGES, Stage

# The kernel side counts a packet that took longer as unmatched, and does not report it.
LONGEST_NS = 60_000_000_000

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a connection. An IPv4-mapped IPv6 address is shown as IPv4."""

    address: Address
    port: int

    @classmethod
    def of(cls, packed: bytes, port: int) -> Endpoint:
        """Make an endpoint from 4 or 16 bytes in network order."""
        address = ip_address(packed)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return cls(mapped or address, port)

    def __str__(self) -> str:
        if isinstance(self.address, IPv6Address):
            return f"[{self.address}]:{self.port}"
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class User:
    """The process that read the packet or sent it; `thread_id` is the thread that did."""

    pid: int
    thread_id: int
    command: str


@dataclass(frozen=True, slots=True)
class TracedPacket:
    """One packet. `ended_unix_ns`: the end of its last stage, in nanoseconds since 1970.

    `stages_ns` holds the stages that it had: the parts add up to their total. `slots`: the agent's
    numbers of the targets that it counted for; empty for a client.
    """

    ended_unix_ns: int
    user: User | None
    cpu: int
    protocol: str
    local: Endpoint | None
    remote: Endpoint | None
    stages_ns: Mapping[str, int]
    slots: frozenset[int] = frozenset()

    @property
    def total(self) -> str:
        """The name of its total: rx.total for a received packet, tx.total for a sent one."""
        return next(
            stage.name
            for stage in PACKET_STAGES
            if stage.whole is None and stage.name in self.stages_ns
        )


@dataclass(frozen=True, slots=True)
class TraceCounts:
    """The counts of the packets that reached the limit.

    `reported`: sent to the client. `limited`: over the rate limit. `lost`: dropped because the ring
    was full.
    """

    reported: int = 0
    limited: int = 0
    lost: int = 0

    def __add__(self, other: TraceCounts) -> TraceCounts:
        return TraceCounts(
            self.reported + other.reported, self.limited + other.limited, self.lost + other.lost
        )

    def __sub__(self, other: TraceCounts) -> TraceCounts:
        return TraceCounts(
            self.reported - other.reported, self.limited - other.limited, self.lost - other.lost
        )

    @property
    def seen(self) -> int:
        """The sum of all counts."""
        return self.reported + self.limited + self.lost


def parts_of_packet(total: str) -> tuple[Stage, ...]:
    """Return the stages that a packet with this total can have, in order, without the total."""
    return tuple(stage for stage in PACKET_STAGES if stage.whole == total)
