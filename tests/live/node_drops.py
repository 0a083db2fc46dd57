"""A host between two pods that drops packets by its netfilter, and counts them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.pods import Namespace, Pod, pods_on_routes
from tests.live.sockets import PATIENCE_SECONDS, PORT, udp_socket

DROPPED = 7
_COUNTED = StageCoverage("drops", CoverageState.ACTIVE)
NODE_DROPS = """
table inet node {{
  chain forward {{
    type filter hook forward priority 0;
    {rule} counter drop
  }}
}}
"""


@contextmanager
def routed() -> Iterator[tuple[Namespace, Pod, Pod]]:
    """A host that routes between a (client, server) pair. The client has the host's address."""
    with pods_on_routes(2) as (host, (client, server)):
        find_neighbour(client, server)
        yield host, client, server


def find_neighbour(client: Pod, server: Pod) -> None:
    """Have the client's datagrams leave without waiting for an answer of ARP."""
    with udp_socket(server.namespace, server.address, PORT) as reading:
        reading.settimeout(PATIENCE_SECONDS)
        send_datagrams(client, server.address, 1)
        reading.recv(100)


def dropped_by(host: Namespace) -> int:
    """The packets that the rules of a namespace have counted."""
    command = ["ip", "netns", "exec", host.name, "nft", "list", "ruleset"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sum(map(int, re.findall(r"counter packets (\d+)", shown)))


def are_missing(engine: KernelEngine) -> bool:
    """Whether this kernel tells no reason of a drop, as the coverage then says: before 5.17."""
    rows = {each.name: each for each in engine.coverage}
    if rows.get("drops", _COUNTED).state is not CoverageState.UNAVAILABLE:
        return False
    assert "added in Linux 5.17" in rows["drops"].reason
    assert "cannot load" not in rows["drops"].reason
    return True


def send_datagrams(client: Pod, address: str, count: int = DROPPED) -> None:
    with udp_socket(client.namespace) as sending:
        for number in range(count):
            sending.sendto(b"query %d" % number, (address, PORT))
