"""Peers, as an agent may send them."""

from __future__ import annotations

from hypothesis import strategies as st

from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import KINDS_OF_PEERS, MAX_REPORTED_PEERS, Peer
from latencyprobe.domain.pending import LONGEST_PENDING_NS

_NUMBERS = st.integers(0, 2**53 - 1)
# An IPv4 address is never one of IPv6.
endpoints = st.builds(
    lambda address, port: Endpoint.of(address.packed, port),
    st.ip_addresses(),
    st.integers(0, 65535),
)
peers = st.builds(
    Peer,
    endpoints,
    st.sampled_from(KINDS_OF_PEERS),
    _NUMBERS,
    st.integers(0, LONGEST_PENDING_NS),
    _NUMBERS,
)
some_peers = st.lists(
    peers, max_size=MAX_REPORTED_PEERS, unique_by=lambda peer: (peer.address, peer.kind)
).map(tuple)
