"""Obstacles to measuring a packet in full, from the programs' note to the coverage."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe_agent.kernel.abi import CONFIG, Obstacle
from latencyprobe_agent.kernel.runtime.configuration import CONFIG_BYTES, ConfigMemory
from latencyprobe_agent.kernel.runtime.obstacles import mention

HOST = StageCoverage("rx.host", CoverageState.ACTIVE, "tp_btf/netif_receive_skb")
IDLE = StageCoverage("tx.host", CoverageState.IDLE, reason="no probe asks for its module")


def test_the_agent_reads_what_programs_noted_until_it_forgets_it() -> None:
    descriptor = os.memfd_create("configuration")
    try:
        os.truncate(descriptor, CONFIG_BYTES)
        memory = ConfigMemory(descriptor)
        assert not memory.obstacles()
        first = CONFIG.offset("obstacles")
        os.pwrite(descriptor, b"\1", first + Obstacle.XDP)
        os.pwrite(descriptor, b"\1", first + Obstacle.UNKNOWN_DEVICE)
        os.pwrite(descriptor, b"mystery\0", CONFIG.offset("unknown_kind"))
        assert memory.obstacles() == {Obstacle.XDP: "", Obstacle.UNKNOWN_DEVICE: "mystery"}
        memory.forget_obstacles()
        assert not memory.obstacles()
        memory.close()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("obstacle", set(Obstacle) - {Obstacle.STEERING, Obstacle.NO_QUOTA_ACCOUNT})
def test_each_obstacle_is_a_reason_of_covered_stages_alone(obstacle: Obstacle) -> None:
    stages = tuple(
        StageCoverage(name, CoverageState.ACTIVE, "a hook")
        for name in ("rx.host", "rx.socket", "tx.host", "tx.socket", "tx.driver")
    )
    mentioned = mention((*stages, IDLE), {obstacle: "detail"})
    changed = [
        (before, after) for before, after in zip(stages, mentioned, strict=False) if before != after
    ]
    assert changed
    assert all(after.reason.endswith(" (detail)") for _, after in changed)
    assert mentioned[-1] == IDLE


def test_a_stage_that_packets_are_missing_from_is_partial_and_an_absent_one_is_not() -> None:
    (lost,) = mention((HOST,), {Obstacle.XDP: ""})
    (absent,) = mention((HOST,), {Obstacle.OTHER_NETNS: ""})
    assert (lost.state, absent.state) == (CoverageState.PARTIAL, CoverageState.ACTIVE)


def test_reasons_are_added_to_those_that_are_there() -> None:
    (both,) = mention((replace(HOST, reason="first"),), {Obstacle.XDP: "", Obstacle.TUN: ""})
    assert both.reason.split("; ")[0] == "first"
    assert len(both.reason.split("; ")) == 3


def test_a_counter_that_the_kernel_has_no_account_for_is_named_once() -> None:
    obstacles = {Obstacle.NO_QUOTA_ACCOUNT: ""}
    mentioned = mention((HOST,), obstacles)
    assert [(each.name, each.state) for each in mentioned[1:]] == [
        ("waitedThrottledNs", CoverageState.UNAVAILABLE)
    ]
    assert "added in Linux 6.6" in mentioned[1].reason
    stopped = StageCoverage("waitedThrottledNs", CoverageState.UNAVAILABLE, reason="stopped")
    assert mention((HOST, stopped), obstacles) == (HOST, stopped)
