"""The devices of the calling thread's network namespace, by rtnetlink."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from latencyprobe.process.os_errors import is_transient

# include/uapi/linux/netlink.h: struct nlmsghdr and struct nlattr
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ATTRIBUTE_TYPE = (1 << 14) - 1
_REQUEST, _DUMP = 1, 0x300
_ERROR, _DONE = 2, 3
_MESSAGE_BYTES = 1 << 16
# include/uapi/linux/rtnetlink.h: struct ifinfomsg
_GET_LINK, _NEW_LINK = 18, 16
_LINK = struct.Struct("=BxHiII")
_EXTENSIONS, _WITHOUT_STATISTICS = 29, 1 << 3
# include/uapi/linux/if_link.h
_NAME, _LOWER, _QDISC, _LINK_INFO, _LOWER_NETNSID = 3, 5, 6, 18, 37
_INFO_KIND = 1
_LOOPBACK = 0x8  # IFF_LOOPBACK, include/uapi/linux/if.h
_CHANGES = 1 | 8  # RTMGRP_LINK and RTMGRP_TC, include/uapi/linux/rtnetlink.h
_UINT = struct.Struct("=I")

_WITHOUT_QUEUE = frozenset({"noqueue", "noop"})
_PAIRS = frozenset({"veth", "netkit"})
# What they receive was received before by a device under them; the last two receive nothing.
_UPPER = frozenset({"bridge", "bond", "team", "vrf", "ifb", "openvswitch", "hsr", "dummy", "nlmon"})
# The same, if the device under them is in the same namespace.
_ON_ANOTHER = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"})


@dataclass(frozen=True, slots=True)
class Device:
    """A device. `kind`: of its rtnl_link_ops; "" for hardware and the loopback device.

    `lower`: the ifindex of the device under it, or of a pair's other end; 0 for none.
    `is_across`: that one is in another namespace.
    """

    index: int
    name: str
    kind: str = ""
    lower: int = 0
    is_across: bool = False
    is_loopback: bool = False
    qdisc: str = "noqueue"

    @property
    def has_queue(self) -> bool:
        """True if packets may wait for the device."""
        return self.qdisc not in _WITHOUT_QUEUE

    @property
    def is_pair(self) -> bool:
        """True if it receives what another device sends."""
        return self.kind in _PAIRS

    @property
    def receives_first(self) -> bool:
        """True if packets come to this namespace by it, and not from a device under it."""
        if self.kind in _ON_ANOTHER:
            return self.is_across
        return self.kind not in _UPPER


def devices() -> tuple[Device, ...]:
    """Return the devices of the calling thread's namespace. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        return tuple(_dump(channel))


def devices_with_default_route() -> frozenset[str]:
    """Return the names of the devices by which the namespace reaches all others.

    Raises OSError if the error is transient: without a name, that device would lose its program.
    """
    return frozenset((*_ipv4_defaults(), *_ipv6_defaults()))


def link_changes() -> socket.socket:
    """Return a socket that is readable once a device of this namespace, or its queue, changes."""
    channel = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        channel.bind((0, _CHANGES))
    except BaseException:
        channel.close()
        raise
    return channel


def has_news(changes: socket.socket) -> bool:
    """Return True if a device has changed since the last call; `changes`: of `link_changes`."""
    found = False
    while True:
        try:
            changes.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return found
        except OSError:  # ENOBUFS: more has changed than there was room for
            return True
        found = True


def _dump(channel: socket.socket) -> Iterator[Device]:
    extensions = _ATTRIBUTE.pack(_ATTRIBUTE.size + _UINT.size, _EXTENSIONS)
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + extensions + _UINT.pack(_WITHOUT_STATISTICS)
    length = _HEADER.size + len(body)
    channel.send(_HEADER.pack(length, _GET_LINK, _REQUEST | _DUMP, 1, 0) + body)
    while True:
        messages = channel.recv(_MESSAGE_BYTES)
        while messages:
            length, kind, *_ = _HEADER.unpack_from(messages)
            content, messages = messages[_HEADER.size : length], messages[_aligned(length) :]
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", content)[0]
                raise OSError(code, os.strerror(code), "RTM_GETLINK")
            if kind == _NEW_LINK:
                yield _device(content)


def _device(message: bytes) -> Device:
    _, _, index, flags, _ = _LINK.unpack_from(message)
    found = dict(_attributes(message[_LINK.size :]))
    info = dict(_attributes(found.get(_LINK_INFO, b"")))
    return Device(
        index,
        _text(found.get(_NAME, b"")),
        _text(info.get(_INFO_KIND, b"")),
        _UINT.unpack(found[_LOWER])[0] if _LOWER in found else 0,
        _LOWER_NETNSID in found,
        bool(flags & _LOOPBACK),
        _text(found.get(_QDISC, b"noqueue")),
    )


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    while len(content) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(content)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _ATTRIBUTE_TYPE, content[_ATTRIBUTE.size : length]
        content = content[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode(errors="replace")


def _ipv4_defaults() -> Iterator[str]:
    for line in _lines("route")[1:]:
        name, destination, _, _, _, _, _, mask, *_ = line.split()
        if destination == mask == "00000000":
            yield name


def _ipv6_defaults() -> Iterator[str]:
    for line in _lines("ipv6_route"):
        destination, length, *_, name = line.split()
        if length == "00" and not int(destination, 16) and name != "lo":
            yield name


def _lines(file: str) -> list[str]:
    try:
        with open(f"/proc/thread-self/net/{file}", encoding="ascii", errors="replace") as lines:
            return lines.read().splitlines()
    except OSError as error:
        if is_transient(error):
            raise
        return []
