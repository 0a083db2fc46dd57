"""Pods whose netfilter drops packets."""

from __future__ import annotations

from contextlib import suppress

from tests.live.pods import Pod
from tests.live.sockets import PORT, udp_socket


def load_rules(pod: Pod, rules: str) -> None:
    """Load nftables rules inside a pod."""
    pod.namespace.load_rules(rules)


DROP_OUTGOING = """
table inet silent {
  chain output {
    type filter hook output priority 0;
    udp dport 7000 drop
  }
}
"""


def send_what_netfilter_drops(client: Pod, server: Pod, count: int) -> None:
    """Datagrams that a rule of the client's own drops on their way out."""
    load_rules(client, DROP_OUTGOING)
    with udp_socket(client.namespace) as sending:
        for _ in range(count):
            with suppress(PermissionError):  # send() tells of it
                sending.sendto(b"d", (server.address, PORT))
