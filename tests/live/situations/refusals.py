"""Situations in which somebody says no: a router, a peer, a rule or the pod's own kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tests.live.situations.answers import HEALTHY_AND_QUIET, Cause, answer
from tests.live.situations.scenes import ABSENT, back_to_back, through_node, with_sysctls
from tests.live.situations.situation import Situation, client, server, situation

REJECT = """
table inet node {{
  chain forward {{
    type filter hook forward priority 0;
    tcp dport 7001 counter reject with icmp type {}
  }}
}}
"""
DROP_REPLIES = """
table inet node {
  chain forward {
    type filter hook forward priority 0;
    udp sport 53 numgen inc mod 30 == 0 counter drop
  }
}
"""
# A kernel sends one error a second to each address, else.
EACH_ERROR_IS_SENT = {"net.ipv4.icmp_ratelimit": "0", "net.ipv4.icmp_msgs_per_sec": "10000"}
EACH_SECOND: Mapping[str, object] = {
    "reconnect": True,
    "gap": 20,
    "ports": [7000, 7001],
    "seconds": 5,
}
FAILED = "{client[connect_failed]:.0f} connects failed, {client[count]:.0f} answers"


def _rejected(message: str, counter: str) -> Situation:
    """Each second connect of the clients is rejected by the node, by this message of ICMP."""
    return Situation(
        scene=through_node(REJECT.format(message), EACH_ERROR_IS_SENT),
        server=server("answer"),
        client=client("ask", connections=4, **EACH_SECOND),
        was_made=lambda facts: facts["client"]["connect_failed"] >= 50,
        truth=FAILED,
        from_client=answer(Cause.CONNECT_FAILURES, says=counter),
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def service_without_endpoints() -> Situation:
    """The node's rules answer connects to a Service without endpoints by an ICMP error.

    https://github.com/kubernetes/kubernetes/issues/24875
    """
    return _rejected("port-unreachable", "connectRejected")


@situation
def service_without_endpoints_and_a_client_that_waits() -> Situation:
    """The same, and the clients wait in connect(): there the first error of ICMP is not seen.

    https://github.com/kubernetes/kubernetes/issues/24875
    """
    return replace(
        service_without_endpoints(),
        client=client("ask", connections=12, **EACH_SECOND, patience=0),
        was_made=lambda facts: facts["client"]["connect_failed"] >= 30,
        truth=FAILED + ", each after a second",
    )


@situation
def router_without_a_route() -> Situation:
    """A router answers connects to one of two endpoints by "host unreachable".

    https://github.com/projectcalico/calico/issues/2145
    """
    return _rejected("host-unreachable", "connectUnreachable")


@situation
def endpoint_without_a_neighbour() -> Situation:
    """Nobody has the first address any more: the pod's own kernel gives up after three ARPs."""
    return Situation(
        scene=back_to_back,
        server=server("answer"),
        client=client("fall_back", absent=ABSENT, after=10_000, threads=8, seconds=9),
        was_made=lambda facts: facts["client"]["p50_ms"] > 1000,
        truth="{client[count]:.0f} requests, p50 {client[p50_ms]:.0f} ms, nearly all of it for an "
        "address without a neighbour",
        from_client=answer(Cause.CONNECT_FAILURES),
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def no_local_port_is_left() -> Situation:
    """Closed connections keep the pod's few local ports: connect() fails at once."""
    return Situation(
        scene=with_sysctls(client={"net.ipv4.ip_local_port_range": "32768 32867"}),
        server=server("answer"),
        client=client("ask", connections=4, reconnect=True, gap=5, seconds=6),
        was_made=lambda facts: facts["client"]["connect_failed"] >= 100,
        truth=FAILED + "; all 100 local ports are in use",
        from_client=answer(Cause.CONNECT_FAILURES, says="connectsNotSent"),
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def name_server_that_is_gone() -> Situation:
    """Nothing listens to port 53 there: each query is answered by an ICMP error at once."""
    return Situation(
        scene=with_sysctls(server=EACH_ERROR_IS_SENT),
        server=server("answer"),
        client=client("look_up", port=53, seconds=6, threads=4, gap=50, patience=1000),
        was_made=lambda facts: facts["client"]["failed"] >= 100,
        truth="{client[failed]:.0f} look-ups were refused",
        from_client=answer(Cause.DNS, Cause.CONNECT_FAILURES),
        from_server=answer(Cause.NONE, Cause.INSUFFICIENT_DATA),
    )


@situation
def replies_of_a_name_server_are_dropped() -> Situation:
    """A rule of the node drops one DNS reply in 30; the resolver asks again after 1 s."""
    return Situation(
        scene=through_node(DROP_REPLIES),
        server=server("datagrams", port=53),
        client=client("query", port=53, seconds=6, threads=4, gap=4, patience=1000),
        was_made=lambda facts: facts["client"]["slow"] >= 4 and facts["nft"]["packets"] >= 4,
        truth="{client[slow]:.0f} of {client[count]:.0f} lookups took 1 s; "
        "the node dropped {nft[packets]:.0f} replies",
        from_client=answer(Cause.DNS, Cause.DROPS),
        from_server=answer(Cause.DROPS, half=[Cause.NONE]),
    )


@situation
def server_that_aborts() -> Situation:
    """The server resets one connection in five instead of an answer, as one that crashes."""
    return Situation(
        scene=back_to_back,
        server=server("answer", polls=[0, 0, 0, 0, -1]),
        client=client("ask", connections=4, gap=10, seconds=5),
        was_made=lambda facts: facts["client"]["failed"] >= 50,
        truth="{client[failed]:.0f} requests ended in a reset, {client[count]:.0f} answers",
        from_client=answer(Cause.NONE, Cause.PEER, says="reset"),
        from_server=answer(Cause.NONE, Cause.APPLICATION, says="reset"),
    )
