"""The kernel's accounts of waiting for a CPU, as recorded from kernels and mangled."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_agent.evidence.cpu import (
    Throttling,
    parse_cgroups,
    parse_cpu_time,
    parse_pressure,
    parse_steal,
    parse_throttling,
)

S = 10**9
# /sys/fs/cgroup/cpu/*/cpu.stat of 6.18, of a group with a fifth of a CPU.
V1 = """\
nr_periods 102
nr_throttled 39
throttled_time 2816143209
nr_bursts 0
burst_time 0
wait_sum 0
"""
# /sys/fs/cgroup/*/cpu.stat of 6.12, with the controller.
V2 = """\
usage_usec 1203311
user_usec 1042211
system_usec 161100
nice_usec 0
core_sched.force_idle_usec 0
nr_periods 61
nr_throttled 57
throttled_usec 4702113
nr_bursts 0
burst_usec 0
"""
# The same on a hybrid node, where the controller is in v1.
WITHOUT_CONTROLLER = "usage_usec 1203311\nuser_usec 1042211\nsystem_usec 161100\n"
# /proc/stat of a virtual machine whose host gave its CPUs to others.
BEFORE = """\
cpu  84211 17 39417 11235017 9133 0 2310 41107 0 0
cpu0 42011 9 19710 5617104 4566 0 1870 20310 0 0
cpu1 42200 8 19707 5617913 4567 0 440 20797 0 0
intr 5123411 0 9 0 0
"""
AFTER = BEFORE.replace("84211", "84402").replace("41107", "42382")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (V1, Throttling(2816143209, 39, 102)),
        (V2, Throttling(4702113000, 57, 61)),
        (WITHOUT_CONTROLLER, None),
        (V1.replace("39", "-1"), None),
        ("", None),
        ("nr_periods\nnr_throttled x\n\x00\n", None),
    ],
)
def test_the_account_of_a_quota_is_the_same_in_both_versions(
    text: str, expected: Throttling | None
) -> None:
    assert parse_throttling(text) == expected


def test_an_account_that_has_begun_again_has_not_grown() -> None:
    before, after = Throttling(300, 3, 9), Throttling(500, 4, 12)
    assert after.since(before) == Throttling(200, 1, 3)
    assert before.since(after) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("some avg10=0.00 avg60=1.20 avg300=0.44 total=5310424\nfull avg10=0 total=7\n", 5310424),
        ("full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n", None),
        ("some avg10=0.00 total=\n", None),
        ("", None),
    ],
)
def test_pressure_is_the_time_in_which_some_thread_waited(text: str, expected: int | None) -> None:
    assert parse_pressure(text) == (expected * 1000 if expected is not None else None)


def test_steal_is_the_time_that_all_cpus_lost_to_others() -> None:
    before, after = parse_steal(BEFORE), parse_steal(AFTER)
    assert before is not None
    assert after is not None
    assert after - before == (42382 - 41107) * S // os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("text", ["", "cpu", "cpu  1 2 3", "cpu  1 2 3 4 5 6 7 x 9", "intr 1"])
def test_a_file_without_steal_is_no_error(text: str) -> None:
    assert parse_steal(text) is None
    assert parse_cpu_time(text) is None


def test_the_time_of_all_cpus_is_the_whole_of_which_steal_is_a_part() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    assert parse_cpu_time("cpu  84 17 39 1123 91 0 23 41 7 0\ncpu0 1\n") == 1418 * S // ticks


def test_the_cgroups_of_a_process_are_found_by_controller() -> None:
    text = "12:cpu,cpuacct:/a:b/c\n1:name=systemd:/d\n0::/e (deleted)\n5:memory\n\nx\n"
    assert parse_cgroups(text) == {
        "cpu": "/a:b/c",
        "cpuacct": "/a:b/c",
        "name=systemd": "/d",
        "": "/e (deleted)",
    }


@given(st.text())
def test_no_text_is_an_error(text: str) -> None:
    parse_throttling(text), parse_pressure(text), parse_cpu_time(text), parse_cgroups(text)
    parse_steal(text)
