"""The directory of pods: by their addresses, and by the UIDs in the names of their cgroups."""

from __future__ import annotations

from typing import Protocol

from latencyprobe_operator.model import Pod, split_addresses


class PodDirectory(Protocol):
    """A directory of all pods that the operator may see."""

    def at(self, address: bytes) -> Pod | None:
        """Return the pod with this address, in network order; None if it is not known."""

    def of_cgroup(self, node: str, uid: str) -> Pod | None:
        """Return the pod of this node with this UID in its cgroups; None if there is none."""


class _NoPods:
    """A directory without pods."""

    def at(self, _: bytes) -> None:
        """Return None."""

    def of_cgroup(self, _node: str, _uid: str) -> None:
        """Return None."""


NO_PODS = _NoPods()


class PodIndex:
    """The pods of one informer by their addresses, and static ones by the UIDs of their kubelets.

    Two pods with the same address are not found by it, since either may be meant.
    """

    __slots__ = ("_by_address", "_static")

    def __init__(self) -> None:
        # A list for each pod would take as much memory as all the rest.
        self._by_address: dict[bytes, Pod | list[Pod]] = {}
        self._static: dict[str, Pod] = {}

    def update(self, before: Pod | None, after: Pod | None) -> None:
        """Take in a pod that is new, changed or gone."""
        if before is not None:
            for address in split_addresses(before.addresses):
                self._remove(address, before.uid)
            self._remove_static(before)
        if after is not None:
            for address in split_addresses(after.addresses):
                self._add(address, after)
            if after.cgroup_uid != after.uid:
                self._static[after.cgroup_uid] = after

    def clear(self) -> None:
        """Forget all pods."""
        self._by_address.clear()
        self._static.clear()

    def at(self, address: bytes) -> Pod | None:
        """Return the only pod with this address; None if there is none."""
        found = self._by_address.get(address)
        return None if isinstance(found, list) else found

    def static(self, uid: str) -> Pod | None:
        """Return the static pod with this UID of its kubelet."""
        return self._static.get(uid)

    def _remove_static(self, pod: Pod) -> None:
        """Remove a mirror, unless another one has come in its place: a list reports that first."""
        known = self._static.get(pod.cgroup_uid)
        if known is not None and known.uid == pod.uid:
            del self._static[pod.cgroup_uid]

    def _add(self, address: bytes, pod: Pod) -> None:
        known = self._by_address.get(address)
        if known is None:
            self._by_address[address] = pod
        elif isinstance(known, list):
            known.append(pod)
        else:
            self._by_address[address] = [known, pod]

    def _remove(self, address: bytes, uid: str) -> None:
        known = self._by_address.get(address)
        if isinstance(known, list):
            left = [pod for pod in known if pod.uid != uid]
            self._by_address[address] = left if len(left) > 1 else left[0]
        elif known is not None and known.uid == uid:
            del self._by_address[address]
