"""Datagrams with the kernel's own time stamps of both ends: the truth of what is between them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.live.pods import Pod
from tests.live.sockets import PORT, udp_socket
from tests.live.targets import until
from tests.live.traffic import SO_TIMESTAMPING, SOF_RX_SOFTWARE, SOF_SOFTWARE, stamps
from tests.live.truth import Durations, Moment

SOF_TX_SOFTWARE, SOF_OPT_TSONLY = 1 << 1, 1 << 11  # include/uapi/linux/net_tstamp.h
RECEIVE_STAMPS = SOF_RX_SOFTWARE | SOF_SOFTWARE
SEND_STAMPS = SOF_TX_SOFTWARE | SOF_SOFTWARE | SOF_OPT_TSONLY
DATAGRAMS = 110


class Stamped:
    """Datagrams from one pod to another, with the kernel's stamps of both ends."""

    def __init__(self, sending: socket.socket, reading: socket.socket, address: str) -> None:
        self._sending, self._reading, self._address = sending, reading, address

    def send(self) -> tuple[list[int], list[int]]:
        """One, until it is read: when it left by its driver, veth_xmit(), and when it arrived."""
        self._sending.sendto(b"d" * 64, (self._address, PORT))
        _, arrived, *_ = self._reading.recvmsg(64, 512)
        _, left, *_ = self._sending.recvmsg(64, 512, socket.MSG_ERRQUEUE)
        return stamps(left), stamps(arrived)

    def send_one_by_one(self) -> Durations:
        """How long the kernel had them between the pods."""
        took = Durations()
        for _ in range(DATAGRAMS):
            (left_ns,), (arrived_ns,) = self.send()
            took.add(Moment(left_ns, left_ns), Moment(arrived_ns, arrived_ns))
        return took


@contextmanager
def stamped(client: Pod, server: Pod) -> Iterator[Stamped]:
    """As soon as arrivals are stamped, which net_enable_timestamp() may leave to a worker.

    So the first datagram is past, which is cloned while its neighbour's address is asked for:
    neigh_probe(), net/core/neighbour.c.
    """
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        reading.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RECEIVE_STAMPS)
        sending.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SEND_STAMPS)
        made = Stamped(sending, reading, server.address)
        made.send()
        until(lambda: bool(made.send()[1]), "stamps of what arrives")
        yield made
