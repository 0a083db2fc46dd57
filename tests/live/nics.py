"""A host's device by which packets come from another node."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl

from tests.live.pods import Namespace
from tests.live.sockets import PORT, inside
from tests.live.tunnels import FAR_ADDRESS, NIC_ADDRESS
from tests.live.tuns import IFF_NO_PI, IFF_TUN, TUNSETIFF


class Nic:
    """A tun device of a host's: what is written to it comes from another node."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._id = 0

    def send(self, address: str, payload: bytes) -> None:
        """A datagram to PORT."""
        self._id += 1
        datagram = struct.pack(">HHHH", PORT, PORT, 8 + len(payload), 0) + payload
        header = struct.pack(
            ">BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(datagram), self._id, 0, 64, socket.IPPROTO_UDP, 0),
            *(socket.inet_aton(FAR_ADDRESS), socket.inet_aton(address)),
        )
        total = sum(struct.unpack(">10H", header))
        checksum = ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF
        os.write(
            self._descriptor, header[:10] + struct.pack(">H", checksum) + header[12:] + datagram
        )


@contextmanager
def nic(host: Namespace) -> Iterator[Nic]:
    with inside(host):
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        ioctl(descriptor, TUNSETIFF, struct.pack("16sH", b"nic0", IFF_TUN | IFF_NO_PI))
    try:
        host.ip("link", "set", "nic0", "up")
        host.ip("address", "add", NIC_ADDRESS, "peer", FAR_ADDRESS, "dev", "nic0")
        host.execute("sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield Nic(descriptor)
    finally:
        os.close(descriptor)
