"""Sets of pods, selected in memory: any number of probes, a few watches.

An informer follows the pods of the whole cluster. If the operator may see some namespaces only, one
informer follows each of them. A changed pod is compared with the sets of its own namespace alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from latencyprobe.process.tasks import Spawn, spawn
from latencyprobe_operator.kube.directory import PodIndex
from latencyprobe_operator.kube.informer import Change, Informer, PodsRefusal, Scope, Source
from latencyprobe_operator.kube.selector import LabelSelector
from latencyprobe_operator.model import Pod, read_pod

log = logging.getLogger(__name__)

# An edit of the only probe, or its pause, is no reason to list the cluster again.
_LINGER_S = 60.0


@dataclass(frozen=True, slots=True)
class PodsChange:
    """A change of a set of pods. Both may be empty: then the set was listed, or refused."""

    changed: Collection[Pod] = ()
    removed: Collection[str] = ()
    """UIDs."""


PodsListener = Callable[[PodsChange], None]
ReadPod = Callable[[Mapping[str, Any]], Pod]


@dataclass(eq=False)
class PodSet:
    """The pods that match one selector in one namespace, kept current by PodWatches."""

    namespace: str
    selector: LabelSelector
    pods: dict[str, Pod] = field(default_factory=dict)
    listed: bool = False
    """The pods are known, as of some time since the start."""
    refusal: PodsRefusal | None = None
    listeners: list[PodsListener] = field(default_factory=list)

    def take(self, change: Change[Pod]) -> PodsChange:
        """Take in the matching pods; return the change of this set."""
        changed = []
        removed = [uid for uid in change.removed if self.pods.pop(uid, None)]
        for pod in change.changed:
            before = self.pods.get(pod.uid)
            if self.selector.matches(pod.labels):
                self.pods[pod.uid] = pod
                if before is None or not pod.measured_like(before):
                    changed.append(pod)
            elif before:
                del self.pods[pod.uid]
                removed.append(pod.uid)
        return PodsChange(changed, removed)

    def notify(self, change: PodsChange) -> None:
        """Pass a change to all listeners; the failure of one does not affect the others."""
        for listener in list(self.listeners):
            try:
                listener(change)
            except Exception:
                log.exception(
                    "a listener to pods of %s with %r failed", self.namespace, str(self.selector)
                )


class PodWatches:
    """All subscribed sets of pods, and the informers that keep them current."""

    def __init__(
        self,
        source: Source,
        *,
        clusterwide: bool = True,
        linger_s: float = _LINGER_S,
        read: ReadPod = read_pod,
        spawn: Spawn = spawn,
    ) -> None:
        """Follow no pods yet.

        `clusterwide`: the operator may watch all namespaces. An informer goes on for `linger_s`
        after its last set has gone. `spawn`: begins an informer's task.
        """
        self._source = source
        self._read = read
        self._spawn = spawn
        self._clusterwide = clusterwide
        self._linger_s = linger_s
        self._followed: dict[str | None, _FollowedScope] = {}

    def subscribe(self, namespace: str, selector: LabelSelector, listener: PodsListener) -> PodSet:
        """Return the set of these pods; the listener gets every change from now on."""
        scope = self._scope_of(namespace)
        if scope not in self._followed:
            self._followed[scope] = _FollowedScope(self._source, scope, self._read, self._spawn)
        pods = self._followed[scope].set_of(namespace, selector)
        pods.listeners.append(listener)
        return pods

    def unsubscribe(self, pods: PodSet, listener: PodsListener) -> None:
        """Stop passing changes of a set to the listener; an informer without sets ends."""
        pods.listeners.remove(listener)
        scope = self._scope_of(pods.namespace)
        followed = self._followed.get(scope)
        if not pods.listeners and followed:
            followed.drop(pods)
            asyncio.get_running_loop().call_later(self._linger_s, self._end_unused, scope, followed)

    def at(self, address: bytes) -> Pod | None:
        """Return the followed pod with this address; None if there is none, or several."""
        pods = [pod for each in self._followed.values() if (pod := each.at(address)) is not None]
        return pods[0] if len(pods) == 1 else None

    def of_cgroup(self, node: str, uid: str) -> Pod | None:
        """Return the followed pod of this node with this UID in the names of its cgroups."""
        pods = (each.of_cgroup(uid) for each in self._followed.values())
        return next((pod for pod in pods if pod is not None and pod.node == node), None)

    async def close(self) -> None:
        """End all informers."""
        tasks = [followed.task for followed in self._followed.values()]
        self._followed.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _scope_of(self, namespace: str) -> str | None:
        return None if self._clusterwide else namespace

    def _end_unused(self, scope: str | None, followed: _FollowedScope) -> None:
        if not followed.in_use and self._followed.get(scope) is followed:
            self._followed.pop(scope).task.cancel()


class _FollowedScope:
    """One informer, and the sets of pods of its scope."""

    def __init__(self, source: Source, namespace: str | None, read: ReadPod, spawn: Spawn) -> None:
        self._index = PodIndex()
        self._informer = Informer(source, Scope(namespace), read, self, index=self._index)
        self._sets: dict[str, dict[LabelSelector, PodSet]] = {}
        self.task = spawn(self._informer.run(), str(self._informer.scope))

    @property
    def in_use(self) -> bool:
        """Return whether there is any set."""
        return bool(self._sets)

    def at(self, address: bytes) -> Pod | None:
        """Return the pod with this address."""
        return self._index.at(address)

    def of_cgroup(self, uid: str) -> Pod | None:
        """Return the pod with this UID in the names of its cgroups."""
        pod = self._informer.find(uid) or self._index.static(uid)
        return pod if pod is not None and pod.cgroup_uid == uid else None

    def set_of(self, namespace: str, selector: LabelSelector) -> PodSet:
        """Return the set of these pods, with those that are known already."""
        sets = self._sets.setdefault(namespace, {})
        if selector not in sets:
            pods = sets[selector] = PodSet(namespace, selector)
            pods.take(Change(changed=list(self._informer.pods_in(namespace).values())))
            pods.listed, pods.refusal = self._informer.listed, self._informer.refusal
        return sets[selector]

    def drop(self, pods: PodSet) -> None:
        """Forget a set."""
        sets = self._sets.get(pods.namespace, {})
        if sets.get(pods.selector) is pods:
            del sets[pods.selector]
            if not sets:
                del self._sets[pods.namespace]

    def on_list(self, changes: Mapping[str, Change[Pod]]) -> Iterator[None]:
        """Mark every set as known, and pass on its changes, set by set.

        A set that is made between two steps has the list's pods from the beginning.
        """
        for pods in list(self._all_sets()):
            pods.listed, pods.refusal = True, None
            pods.notify(pods.take(changes.get(pods.namespace, Change())))
            yield

    def on_change(self, namespace: str, change: Change[Pod]) -> None:
        """Pass a change to the sets of this namespace that it concerns."""
        for pods in list(self._sets.get(namespace, {}).values()):
            news = pods.take(change)
            if news.changed or news.removed:
                pods.notify(news)

    def on_refusal(self) -> None:
        """Pass the reason of the refusal to every set."""
        for pods in self._all_sets():
            pods.refusal = self._informer.refusal
            pods.notify(PodsChange())

    def _all_sets(self) -> Iterator[PodSet]:
        yield from [pods for sets in self._sets.values() for pods in sets.values()]
