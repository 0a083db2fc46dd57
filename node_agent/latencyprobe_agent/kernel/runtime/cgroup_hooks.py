"""The hooks on the targets' cgroups, which serve instead of those for all sockets of the node."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.hooks import SEGMENT
from latencyprobe_agent.kernel.load.loader import ADDRESS_ATTACH_TYPES, ScopedHook
from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason
from latencyprobe_agent.kernel.runtime.cgroup_links import CgroupLinks, CgroupProgram
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory

# At least this is between two checks that no program of another came to a target's cgroup, or above
# it. Readings are at most 10 s apart.
CHECK_S = 5.0
_ATTACH_TYPES: Mapping[str, int] = {
    "tcp_set_state": libbpf.ATTACH_TYPE_SOCK_OPS,
    "ingress": libbpf.ATTACH_TYPE_CGROUP_INGRESS,
    **ADDRESS_ATTACH_TYPES,
}


class CgroupHooks:
    """These hooks of one object.

    `scoped`: event to its hook. `programs`: those of these hooks, by function. `are_used`: they
    serve now.
    """

    def __init__(
        self,
        scoped: Mapping[str, ScopedHook],
        programs: Mapping[str, int],
        attachments: Attachments,
        configuration: ConfigMemory,
    ) -> None:
        self._links = CgroupLinks(
            [
                CgroupProgram(programs[hook.function], _ATTACH_TYPES[hook.symbol])
                for each in scoped.values()
                for hook in (each.hook, *each.hook.also)
            ]
        )
        self._others = tuple(each.instead_of for each in scoped.values() if each.instead_of)
        self._exist = bool(programs)
        self._have_segments = SEGMENT in scoped
        self._attachments = attachments
        self._configuration = configuration
        self._checked_at = -math.inf
        self._are_lost = False
        self.are_used = False

    @property
    def is_check_due(self) -> bool:
        """True if programs of others may have come to the targets' cgroups since `follow`."""
        return time.monotonic() - self._checked_at >= CHECK_S

    @property
    def refused(self) -> str:
        """The reason why some cgroup has no program; empty if all have theirs."""
        return next(iter(self._links.refused.values()), "")

    def follow(self, directories: Collection[str] | None) -> None:
        """Have programs run for these cgroups only, where there are such programs.

        None: some targets are no cgroups. Then, and where a cgroup is refused, the programs for all
        sockets are attached. They stay: a socket that they saw first has no flag for the others.
        Raises EngineError if they cannot be attached again; the cgroups then keep their programs.
        """
        self._checked_at = time.monotonic()
        if not self._exist or self._are_lost:
            return
        if directories is not None:
            self._links.follow(directories)
        if directories is None or self._links.refused:
            self._attachments.keep_off(OffReason.ON_CGROUPS, ())
            self._are_lost = True
            self._use(False)
            self._links.close()
            return
        if not self.are_used:
            self._use(True)
            self._attachments.keep_off(OffReason.ON_CGROUPS, self._others)

    def close(self) -> None:
        """Detach everything, and use the programs no more: they end. Idempotent."""
        self._links.close()
        self._exist = False

    def _use(self, wanted: bool) -> None:
        self.are_used = wanted
        settings = self._configuration.settings
        sees_segments = wanted and self._have_segments
        self._configuration.configure(replace(settings, sees_segments=sees_segments))
