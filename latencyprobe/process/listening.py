"""Addresses to listen on, as options give them, and their sockets."""

from __future__ import annotations

import socket
from typing import NamedTuple

import click

# Connections that the kernel keeps until they are accepted; they cost no descriptor.
_BACKLOG = 128


class ListenAddress(NamedTuple):
    """A host and a port. An empty host is every address of this machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ListenAddressType(click.ParamType[ListenAddress]):
    """HOST:PORT as an option's value; an IPv6 address is written in brackets."""

    name = "HOST:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> ListenAddress:
        """Return the address, or fail with an example of one."""
        if isinstance(value, ListenAddress):
            return value
        host, colon, port = str(value).rpartition(":")
        if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:
            self.fail(f"{value!r} is not HOST:PORT, for example 0.0.0.0:9443", param, ctx)
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            self.fail(
                f"{value!r} has an IPv6 address without brackets; write [::]:9443", param, ctx
            )
        return ListenAddress(host.removeprefix("[").removesuffix("]"), int(port))


def listen(host: str, port: int) -> socket.socket:
    """Listen; raise OSError. `::` means every address, with IPv4 if the machine supports it."""
    if host in ("::", "") and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
        )
    if host in ("::", ""):
        host = "0.0.0.0"  # noqa: S104  (asked for)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
