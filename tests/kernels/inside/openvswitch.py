"""A switch of Open vSwitch's kernel module, by its generic netlink families alone.

Its programs would bring a daemon of the machine's. include/uapi/linux/openvswitch.h
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

NETLINK_GENERIC = 16
NLM_F_REQUEST, NLM_F_ACK, NLMSG_ERROR = 1, 4, 2
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
NLA_F_NESTED = 1 << 15
NEW, DELETE = 1, 2  # commands of all families
NETDEV = 1  # OVS_VPORT_TYPE_NETDEV
SILENT = struct.pack("=I", 0)  # no socket is asked what to do with a packet
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def _attribute(kind: int, value: bytes) -> bytes:
    whole = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return whole + bytes(-len(whole) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | NLA_F_NESTED, b"".join(attributes))


class _Netlink:
    """A socket that asks the kernel for one thing at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)

    def close(self) -> None:
        self._socket.close()

    def ask(self, family: int, command: int, version: int, payload: bytes) -> bytes:
        """The first answer's attributes. Raises OSError with what the kernel says."""
        body = struct.pack("=BBH", command, version, 0) + payload
        flags = NLM_F_REQUEST | NLM_F_ACK
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), family, flags, 1, 0) + body)
        answer = b""
        while True:
            received = self._socket.recv(1 << 16)
            while received:
                length, kind, *_ = _HEADER.unpack_from(received)
                if kind == NLMSG_ERROR:
                    (error,) = struct.unpack_from("=i", received, _HEADER.size)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return answer
                answer = answer or received[_HEADER.size + 4 : length]
                received = received[length + -length % 4 :]

    def family(self, name: str) -> int:
        answer = self.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, _text(CTRL_ATTR_FAMILY_NAME, name))
        while answer:
            length, kind = _ATTRIBUTE.unpack_from(answer)
            if kind == CTRL_ATTR_FAMILY_ID:
                return int(struct.unpack_from("=H", answer, _ATTRIBUTE.size)[0])
            answer = answer[length + -length % 4 :]
        raise LookupError(f"the kernel has no netlink family {name}")


class Switch:
    """A datapath in this network namespace. It drops what no flow is for."""

    def __init__(self, netlink: _Netlink, name: str) -> None:
        self._netlink, self._name = netlink, name

    def add_port(self, number: int, device: str) -> None:
        attributes = (
            _number(1, number),
            _number(2, NETDEV),
            _text(3, device),
            _attribute(5, SILENT),
        )
        self._ask("ovs_vport", NEW, 1, self._index(), *attributes)

    def connect(self, port: int, other: int) -> None:
        """Let what comes in by one port go out by another one."""
        any_address = _attribute(4, bytes(12))
        key = _nested(1, _number(3, port), any_address)
        output = _nested(2, _number(1, other))
        mask = _nested(7, _number(3, 0xFFFFFFFF), any_address)
        self._ask("ovs_flow", NEW, 1, self._index(), key, output, mask)

    def make(self) -> None:
        self._ask("ovs_datapath", NEW, 2, 0, _text(1, self._name), _attribute(2, SILENT))

    def delete(self) -> None:
        self._ask("ovs_datapath", DELETE, 2, 0, _text(1, self._name))

    def _index(self) -> int:
        return socket.if_nametoindex(self._name)

    def _ask(self, family: str, command: int, version: int, index: int, *attributes: bytes) -> None:
        payload = struct.pack("=i", index) + b"".join(attributes)
        self._netlink.ask(self._netlink.family(family), command, version, payload)


@contextmanager
def switch(name: str) -> Iterator[Switch]:
    """A new switch."""
    netlink = _Netlink()
    try:
        made = Switch(netlink, name)
        made.make()
        try:
            yield made
        finally:
            made.delete()
    finally:
        netlink.close()
