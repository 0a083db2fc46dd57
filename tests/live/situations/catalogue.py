"""All situations, by name, and the rows that are known not to be right yet."""

from __future__ import annotations

from tests.live.situations import (
    controls,
    given_up,
    late_connections,
    mirrored,
    network,
    processors,
    readers,
    refusals,
    reports,
)
from tests.live.situations.situation import CATALOGUE, End

__all__ = [
    "CATALOGUE",
    "NOT_RIGHT_YET",
    "RIGHT_NOW_AND_THEN",
    "controls",
    "given_up",
    "late_connections",
    "mirrored",
    "network",
    "processors",
    "readers",
    "refusals",
    "reports",
]

# Strict: a row that has become right is taken off, and any other that is not right fails.
NOT_RIGHT_YET: frozenset[tuple[str, End]] = frozenset()

# Wrong once in a while, as the machine's other load has it: a busy CPU makes readers late, too. And
# streams of one pace resemble requests until they overtake each other. These rows have to be right
# three times of five, and the recorded evidence is right.
RIGHT_NOW_AND_THEN: frozenset[tuple[str, End]] = frozenset(
    {
        ("server_speaks_first_and_streams", End.CLIENT),
        ("server_speaks_first_and_streams", End.SERVER),
        ("both_directions_at_once", End.CLIENT),
        ("both_directions_at_once", End.SERVER),
        ("accept_loop_of_20_ms_with_backlog_1", End.CLIENT),
        ("idle_pool", End.CLIENT),
        ("idle_pool", End.SERVER),
        ("half_close", End.CLIENT),
        ("half_close", End.SERVER),
        ("one_syn_in_twelve_lost", End.SERVER),
        ("dns_query_dropped_on_the_node", End.SERVER),
        ("pooled_connection_in_a_black_hole", End.SERVER),
        ("pacing", End.SERVER),
        ("one_of_four_workers_hung", End.CLIENT),
        ("one_of_four_workers_hung", End.SERVER),
        ("udp_overflow", End.CLIENT),
        ("proxy_and_application_in_one_pod", End.SERVER),
        ("refused_connects", End.SERVER),
        ("thousands_of_rules", End.CLIENT),
        ("thousands_of_rules", End.SERVER),
        ("pipelining", End.CLIENT),
        ("pipelining", End.SERVER),
    }
)
