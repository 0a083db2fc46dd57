"""A packet that was traced: whose it was, between which ends, and all its stages.

What `latencyprobe trace` shows one by one. Whatever could not be known is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from latencyprobe.domain.stages import PACKET_STAGES, Stage

# The kernel side counts a packet that took longer as unmatched, and tells of none.
LONGEST_NS = 60_000_000_000

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a connection. An IPv4 address that an IPv6 socket uses is shown as what it is."""

    address: Address
    port: int

    @classmethod
    def of(cls, packed: bytes, port: int) -> Endpoint:
        """From 4 or 16 bytes in network order."""
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
    """One packet. `ended_unix_ns`: when its last stage ended, in nanoseconds since 1970.

    `stages_ns` holds the stages that it had: the parts add up to their total.
    """

    ended_unix_ns: int
    user: User | None
    cpu: int
    protocol: str
    local: Endpoint | None
    remote: Endpoint | None
    stages_ns: Mapping[str, int]

    @property
    def total(self) -> str:
        """The name of its total, which tells a received packet from a sent one."""
        return next(
            stage.name
            for stage in PACKET_STAGES
            if stage.whole is None and stage.name in self.stages_ns
        )


@dataclass(frozen=True, slots=True)
class TraceCounts:
    """What became of the packets that reached the limit.

    `told`: handed on. `limited`: left out by the rate limit. `lost`: for want of room in the ring.
    """

    told: int = 0
    limited: int = 0
    lost: int = 0

    def __add__(self, other: TraceCounts) -> TraceCounts:
        return TraceCounts(
            self.told + other.told, self.limited + other.limited, self.lost + other.lost
        )

    def __sub__(self, other: TraceCounts) -> TraceCounts:
        return TraceCounts(
            self.told - other.told, self.limited - other.limited, self.lost - other.lost
        )

    @property
    def seen(self) -> int:
        """All of them."""
        return self.told + self.limited + self.lost


def parts_of_packet(total: str) -> tuple[Stage, ...]:
    """The stages that a packet with this total may have, in its order, without the total."""
    return tuple(stage for stage in PACKET_STAGES if stage.whole == total)
