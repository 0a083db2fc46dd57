"""The cgroups that a target waited for, as the protocol carries them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.stages import cgroup_counter
from latencyprobe.printable import bounded, printable
from latencyprobe.protocol.limits import check_length
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

# Of one target or pod. A newer agent may send more of them than this one does.
MAX_CGROUPS = 64
# A pod's UID is a UUID; a static pod's is the hash of its file.
_POD_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_LONGEST_PATH = 256


def cgroups_to_proto(cgroups: Iterable[Cgroup]) -> list[pb.Cgroup]:
    """Encode cgroups."""
    return [
        pb.Cgroup(
            id=cgroup.id,
            pod_uid=cgroup.pod_uid,
            container_id=cgroup.container_id,
            path=bounded(cgroup.path, _LONGEST_PATH),
        )
        for cgroup in cgroups
    ]


def cgroups_from_proto(
    messages: Sequence[pb.Cgroup], counters: Collection[str], field: str
) -> tuple[Cgroup, ...]:
    """Decode and check cgroups; raise CorruptMessageError. Those without a counter are left out."""
    check_length(field, len(messages), MAX_CGROUPS)
    for index, message in enumerate(messages):
        if message.pod_uid and not _POD_UID.fullmatch(message.pod_uid):
            raise CorruptMessageError(
                f"{field}[{index}].pod_uid", f"invalid UID {printable(message.pod_uid[:80])!r}"
            )
        if message.container_id and not _CONTAINER_ID.fullmatch(message.container_id):
            raise CorruptMessageError(
                f"{field}[{index}].container_id",
                f"invalid ID {printable(message.container_id[:80])!r}",
            )
    if len({message.id for message in messages}) < len(messages):
        raise CorruptMessageError(field, "a cgroup is repeated")
    return tuple(
        Cgroup(
            message.id,
            pod_uid=message.pod_uid,
            container_id=message.container_id,
            path=bounded(message.path, _LONGEST_PATH),
        )
        for message in messages
        if cgroup_counter(message.id) in counters
    )
