"""The traffic and the targets of the benchmarks: pods behind a bridge, and a NIC of the node."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.network import Namespace
from bench.paths import BRIDGE, NIC, NODE, ROOT_PROCESS, STRANGERS, TARGETS, Scene, scene

SECONDS = 0.05
# Packets that carry no request: of this connection, and of the one before.
ENDS_OF_CONNECTIONS = 8


@pytest.fixture(scope="module")
def made() -> Iterator[Scene]:
    with scene() as found:
        yield found


def sent_by(namespace: Namespace, device: str) -> int:
    """How many packets a device has transmitted."""
    shown = subprocess.run(
        ["ip", "-n", namespace.name, "-s", "-j", "link", "show", device],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(json.loads(shown.stdout)[0]["stats64"]["tx"]["packets"])


@pytest.mark.parametrize("path", [BRIDGE, NIC, NODE])
def test_requests_are_answered_on_each_path_and_on_a_new_connection_each_time(
    made: Scene, path: str
) -> None:
    for _ in range(3):
        assert made.sources[path].exchange(SECONDS).transactions > 0


def test_one_packet_leaves_by_the_nic_for_each_request_to_beyond_it_and_for_no_other(
    made: Scene,
) -> None:
    made.sources[BRIDGE].exchange(SECONDS)
    before = sent_by(made.pods.host, "nic0")
    made.sources[BRIDGE].exchange(SECONDS)
    assert sent_by(made.pods.host, "nic0") - before <= ENDS_OF_CONNECTIONS
    before = sent_by(made.pods.host, "nic0")
    requests = made.sources[NIC].exchange(SECONDS).packets // 2
    assert abs(sent_by(made.pods.host, "nic0") - before - requests) <= ENDS_OF_CONNECTIONS


def test_targets_have_the_cgroups_and_namespaces_that_the_agent_finds(made: Scene) -> None:
    (idle,) = made.slots[STRANGERS].values()
    (busy,) = made.slots[TARGETS].values()
    for spec in (idle, busy):
        assert {Path(each).stat().st_ino for each in spec.cgroup_directories} == spec.cgroup_ids
    assert not idle.cgroup_ids & busy.cgroup_ids
    assert idle.netns.isdisjoint(busy.netns)
    (process,) = made.slots[ROOT_PROCESS].values()
    assert len(process.tgids) == 1
    assert process.netns == {made.pods.host.inode}
    assert not process.cgroup_ids
