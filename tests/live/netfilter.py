"""Netfilter that drops packets, or takes its time for them."""

from __future__ import annotations

from contextlib import suppress

from tests.live.pods import Namespace, Pod
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


RULES, TIMES = 100_000, 10
# What matches is compared with all of the rules, and with all of them again.
LONG_CHAIN = """
table {family} long {{
  chain every {{
    {rules}
  }}
  chain {hook} {{
    type filter hook {hook} priority 0;
    {jumps}
  }}
}}
"""


def take_time(host: Namespace, match: str, hook: str = "forward", *, family: str = "ip") -> None:
    """Have a namespace's netfilter take more than a millisecond for what matches."""
    rules = "ip saddr 203.0.113.1 drop\n" * RULES
    jumps = f"{match} jump every\n" * TIMES
    host.load_rules(LONG_CHAIN.format(family=family, hook=hook, rules=rules, jumps=jumps))


def send_what_netfilter_drops(client: Pod, server: Pod, count: int) -> None:
    """Datagrams that a rule of the client's own drops on their way out."""
    load_rules(client, DROP_OUTGOING)
    with udp_socket(client.namespace) as sending:
        for _ in range(count):
            with suppress(PermissionError):  # send() tells of it
                sending.sendto(b"d", (server.address, PORT))
