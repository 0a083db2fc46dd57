"""All situations, by name, and the rows that are known not to be right yet."""

from __future__ import annotations

from tests.live.situations import controls, network, processors, readers, reports
from tests.live.situations.situation import CATALOGUE, End

__all__ = [
    "CATALOGUE",
    "NOT_RIGHT_YET",
    "RIGHT_NOW_AND_THEN",
    "controls",
    "network",
    "processors",
    "readers",
    "reports",
]

# Strict: a row that has become right is taken off, and any other that is not right fails.
NOT_RIGHT_YET: frozenset[tuple[str, End]] = frozenset(
    {
        ("loss_of_2_5_percent", End.CLIENT),
        ("loss_of_2_5_percent", End.SERVER),
        ("loss_of_33_percent", End.CLIENT),
        ("loss_of_33_percent", End.SERVER),
        ("one_syn_in_twelve_lost", End.CLIENT),
        ("dns_query_dropped_on_the_node", End.CLIENT),
        ("rtt_growing_from_2_to_50_ms", End.CLIENT),
        ("rtt_growing_from_2_to_50_ms", End.SERVER),
        ("rtt_growing_from_20_to_44_ms", End.CLIENT),
        ("rtt_growing_from_20_to_44_ms", End.SERVER),
        ("pooled_connection_in_a_black_hole", End.CLIENT),
        ("body_waits_for_a_delayed_ack", End.CLIENT),
        ("client_writes_twice_then_reads", End.CLIENT),
        ("client_writes_twice_then_reads", End.SERVER),
        ("slow_start_after_idle", End.CLIENT),
        ("slow_start_after_idle", End.SERVER),
        ("receive_buffer_of_8_kb", End.CLIENT),
        ("receive_buffer_of_8_kb", End.SERVER),
        ("cpu_quota", End.SERVER),
        ("hog_of_another_cgroup", End.SERVER),
        ("hog_of_another_cgroup_with_sched", End.SERVER),
        ("own_threads_too_many", End.SERVER),
        ("own_threads_too_many_with_sched", End.SERVER),
        ("reader_that_never_reads", End.CLIENT),
        ("reader_that_never_reads", End.SERVER),
        ("accept_loop_of_20_ms_with_backlog_1", End.SERVER),
        ("unix_sockets", End.CLIENT),
        ("unix_sockets", End.SERVER),
        ("refused_connects", End.CLIENT),
        ("connects_that_a_policy_drops", End.CLIENT),
        ("large_packets_vanish", End.CLIENT),
        ("large_packets_vanish", End.SERVER),
        ("name_server_with_a_slow_upstream", End.CLIENT),
        ("name_server_with_a_slow_upstream", End.SERVER),
        ("single_synchronous_worker", End.SERVER),
        ("silent_connection_has_the_only_worker", End.CLIENT),
        ("silent_connection_has_the_only_worker", End.SERVER),
        ("corked_answer", End.SERVER),
    }
)

# Right or not as the machine's other load has it: a busy CPU makes readers late, too. Recorded
# evidence has one of the two verdicts.
RIGHT_NOW_AND_THEN: frozenset[tuple[str, End]] = frozenset(
    {
        ("server_speaks_first_and_streams", End.CLIENT),
        ("server_speaks_first_and_streams", End.SERVER),
        ("both_directions_at_once", End.CLIENT),
        ("both_directions_at_once", End.SERVER),
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
        ("mixed_healthy_load", End.CLIENT),
        ("mixed_healthy_load", End.SERVER),
        ("pipelining", End.CLIENT),
        ("pipelining", End.SERVER),
    }
)
