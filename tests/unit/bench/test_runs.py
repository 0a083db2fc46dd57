"""Counts of programs' runs in the benchmarks."""

from __future__ import annotations

import pytest

from bench.paths import BRIDGE, NIC
from bench.programs import added_runs
from bench.runs import UNIX, Slice, _outcome, per_packet


def test_the_load_of_others_is_subtracted_for_as_long_as_the_traffic_took() -> None:
    idle = Slice({"receive": 30, "rare": 9}, seconds=0.3, sent=0)
    busy = Slice({"receive": 260, "rare": 1, "new": 200}, seconds=0.6, sent=100)
    assert per_packet(idle, busy) == pytest.approx({"receive": 2.0, "rare": 0.0, "new": 2.0})


def test_runs_of_one_tracepoint_are_added_and_other_programs_go_by_their_names() -> None:
    described = [
        {"prog_id": "1", "run_cnt": "5"},
        {"prog_id": "2", "run_cnt": "7"},
        {"prog_id": "2", "run_cnt": "7"},  # a second descriptor of the same program
        {"prog_id": "3", "run_cnt": "1"},
        {"prog_id": "4", "run_cnt": "2"},
        {"prog_id": "1", "link_id": "9", "tp_name": "receive"},
        {"map_id": "8"},
    ]
    names = {"1": "receive", "2": "receive", "3": "on_sock_ops", "4": ""}
    assert added_runs(described, names) == {"receive": 12, "on_sock_ops": 1, "program 4": 2}


def test_the_table_compares_the_median_of_all_programs_with_the_target() -> None:
    found = {
        (BRIDGE, "TCP alone"): [{"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.04}, {"a": 9.0, "b": 9.0}],
        (NIC, "TCP alone"): [{"a": 5.0, "b": 0.0}],
        (UNIX, "TCP alone"): [{"a": 0.0}],
    }
    bridge, nic, unix = _outcome(found).document["runs"]
    assert bridge["median"] == 3.04
    assert (bridge["met"], nic["met"], unix["met"]) == (True, False, True)
    assert nic["programs"] == {"a": 5.0}
