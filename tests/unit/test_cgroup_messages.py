"""Cgroups in messages: they arrive as they were sent, and are checked."""

from __future__ import annotations

import pytest

from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.protocol.cgroups import MAX_CGROUPS, cgroups_from_proto, cgroups_to_proto
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

UID, ID = "11111111-2222-3333-4444-555555555555", "0123456789abcdef" * 4
COUNTERS = {"waitedForCgroup.7", "waitedForCgroup.18446744073709551615"}


def test_they_arrive_as_they_were_sent() -> None:
    sent = (Cgroup(7, pod_uid=UID, container_id=ID), Cgroup(2**64 - 1, path="/é"))
    message = pb.PodReport(cgroups=cgroups_to_proto(sent))
    received = pb.PodReport.FromString(message.SerializeToString())
    assert cgroups_from_proto(received.cgroups, COUNTERS, "cgroups") == sent


def test_a_path_becomes_printable_and_bounded() -> None:
    sent = cgroups_to_proto([Cgroup(7, path="/\x1b[31m" + 999 * "x")])
    (received,) = cgroups_from_proto([pb.Cgroup(id=7, path="/\x1b[31m")], COUNTERS, "cgroups")
    assert received.path == r"/\x1b[31m"
    assert len(sent[0].path) == 256
    assert sent[0].path.isprintable()


def test_cgroups_that_were_not_waited_for_are_left_out() -> None:
    assert cgroups_from_proto([pb.Cgroup(id=8, pod_uid=UID)], COUNTERS, "cgroups") == ()


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([pb.Cgroup(id=7)] * (MAX_CGROUPS + 1), "cgroups: 65 entries, but at most 64"),
        ([pb.Cgroup(id=7)] * 2, "cgroups: a cgroup is repeated"),
        (
            [pb.Cgroup(id=8), pb.Cgroup(id=7, pod_uid="../../etc")],
            r"cgroups\[1\].pod_uid: invalid UID '../../etc'",
        ),
        ([pb.Cgroup(id=7, pod_uid=UID.upper() + "F")], r"cgroups\[0\].pod_uid: invalid UID"),
        ([pb.Cgroup(id=7, pod_uid=UID + "\n")], r"cgroups\[0\].pod_uid: invalid UID"),
        ([pb.Cgroup(id=7, container_id=ID[1:])], r"cgroups\[0\].container_id: invalid ID"),
    ],
)
def test_impossible_cgroups_are_refused(messages: list[pb.Cgroup], problem: str) -> None:
    with pytest.raises(CorruptMessageError, match=problem):
        cgroups_from_proto(messages, COUNTERS, "cgroups")
