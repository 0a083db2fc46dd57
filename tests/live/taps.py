"""Packet sockets that see what passes the host, as tcpdump opens them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.live.pods import Namespace
from tests.live.sockets import inside

ETH_P_ALL = 3
# include/uapi/linux/if_packet.h
SOL_PACKET, PACKET_RX_RING, PACKET_VERSION, TPACKET_V3 = 263, 5, 10, 2
# struct tpacket_req3: size and number of blocks, of frames, and three options
RING = struct.pack("=7I", 1 << 16, 8, 1 << 11, 256, 100, 0, 0)

Prepare = Callable[[socket.socket], None]


@contextmanager
def tap(host: Namespace, prepare: Prepare = lambda _: None) -> Iterator[socket.socket]:
    """A packet socket for every protocol, on all devices of the host unless it is bound to one."""
    with inside(host):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with made:
        prepare(made)
        yield made


def with_a_ring(packets: socket.socket) -> None:
    """What `tcpdump -i any` asks for."""
    packets.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
    packets.setsockopt(SOL_PACKET, PACKET_RX_RING, RING)


def on_the_servers_device(packets: socket.socket) -> None:
    """Only what passes the host's end of the second pod's veth."""
    packets.bind(("veth1", ETH_P_ALL))
