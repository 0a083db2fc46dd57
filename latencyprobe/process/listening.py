"""Listening TCP sockets."""

from __future__ import annotations

import socket

# Connections that the kernel keeps until they are accepted; they cost no descriptor.
_BACKLOG = 128


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError. `::` is every address, of IPv4 too where it can be."""
    if host in ("::", "") and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
        )
    if host in ("::", ""):
        host = "0.0.0.0"  # noqa: S104  (asked for)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
