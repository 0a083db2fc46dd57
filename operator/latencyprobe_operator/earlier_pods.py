"""Pods that may have ended before this operator led: those that it never asked an agent for.

An agent reports on such a pod until its window has passed. It may not invent any: the pod must be
in the status that the operator before has written, or in the API server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from latencyprobe_operator.dns_names import is_subdomain

_LONGEST_UID = 128


@dataclass(frozen=True, slots=True)
class KnownPods:
    """The pods of one probe that this operator knows itself."""

    exists: Callable[[str, str, str], bool] = lambda _node, _uid, _name: False
    """Decides whether the API server has a pod on this node, of this UID and name."""
    is_placed: Callable[[str], bool] = lambda _name: False
    """Decides whether a pod of this name is measured, on any node."""


_NO_PODS = KnownPods()
# One for all nodes: it stays empty, since no name is added to a node's.
_NO_NAMES: dict[str, str | None] = {}


class EarlierPods:
    """The pods of one probe on one node that an agent may report on though it was not asked.

    For one window, a slot of it and an interval after the first state that the agent is sent. Times
    are seconds of one monotonic clock.
    """

    __slots__ = ("_known", "_node", "_uids", "_until")

    def __init__(
        self, names: Iterable[str] = (), known: KnownPods = _NO_PODS, node: str = ""
    ) -> None:
        """Take these names from the status; it has no UIDs."""
        self._uids: dict[str, str | None] = dict.fromkeys(names) or _NO_NAMES
        self._known = known
        self._node = node
        self._until: float | None = None

    def open(self, at: float, *, span_s: float) -> None:
        """Note that the agent is about to be sent a state. Later ones prolong nothing."""
        if self._until is None:
            self._until = at + span_s

    def is_open(self, at: float) -> bool:
        """Decide whether the agent may still report on such pods."""
        return self._until is not None and at <= self._until

    def admits(self, pod_uid: str, name: str, *, at: float) -> bool:
        """Decide whether the agent may report on the pod of this UID, under this name.

        A name of the status stands for the first UID that comes with it.
        """
        if not self.is_open(at) or not _is_sound(pod_uid, name):
            return False
        if not self._known.exists(self._node, pod_uid, name) and not self._is_listed(pod_uid, name):
            return False
        if self._known.is_placed(name):
            self._uids.pop(name, None)
            return False
        if name in self._uids:
            self._uids[name] = pod_uid
        return True

    def _is_listed(self, pod_uid: str, name: str) -> bool:
        return self._uids.get(name, "") in (None, pod_uid)


def _is_sound(pod_uid: str, name: str) -> bool:
    return is_subdomain(name) and 0 < len(pod_uid) <= _LONGEST_UID and pod_uid.isprintable()
