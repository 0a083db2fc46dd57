"""Informers: pods listed once and then watched, through all failures of the API server.

One informer serves one scope: the pods of a namespace, or of all. While the API server is
unavailable, the last known pods stay; changes in between are reported afterwards. As client-go's
reflector does, an informer goes on from the last version that it saw. If the API server has
forgotten that version, it lists again. It pauses after every failure and every watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from latencyprobe.process.backoff import Backoff
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_operator.kube import heap
from latencyprobe_operator.kube.cluster import (
    UNAVAILABLE,
    UNREADABLE,
    ApiError,
    ExpiredError,
    Json,
    WatchEvent,
)

log = logging.getLogger(__name__)

_INVALID = (400, 422)
_INVALID_RETRY_S = 30.0
_LONGEST_PAUSE_S = 10.0
# A watch that lasted this long worked. A shorter one may be a server or proxy that ends every watch
# at once.
_LIVED_S = 10.0
# A server that starts has read the roles by then.
_LASTING_REFUSAL_S = 20.0


class Source(Protocol):
    """The part of `Cluster` that an informer needs."""

    async def list_pods(
        self, namespace: str | None, selector: str, take: Callable[[Json], None]
    ) -> str:
        """Pass each matching pod to `take`; return the version from which a watch can go on."""

    def watch_pods(
        self, namespace: str | None, selector: str, *, since: str
    ) -> AsyncIterator[WatchEvent]:
        """Yield the changes of the matching pods after a version, for some minutes."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The pods that an informer follows."""

    namespace: str | None
    """None: all namespaces."""
    selector: str = ""
    """The API server's `labelSelector`, for a scope that is small by it; "" is every pod."""

    def __str__(self) -> str:
        namespace = "all namespaces" if self.namespace is None else f"namespace {self.namespace}"
        return f"pods of {namespace}" + (f" with {self.selector!r}" if self.selector else "")


@dataclass(frozen=True, slots=True)
class PodsRefusal:
    """The API server's reason for not showing these pods."""

    invalid: bool
    """The selector is at fault, and not a missing permission."""
    message: str
    lasting: bool = False
    """It is no refusal of a server that starts: it has gone on for long, or is `invalid`."""


class Kept(Protocol):
    """The form in which a pod is kept."""

    @property
    def uid(self) -> str:
        """The pod's UID."""

    def sharing_with(self, before: Self) -> Self:
        """Return an equal pod that shares what it can with its earlier self."""


P = TypeVar("P", bound=Kept)


@dataclass(frozen=True, slots=True)
class Change(Generic[P]):
    """Pods of one namespace that came, changed or went."""

    changed: Sequence[P] = ()
    removed: Sequence[str] = ()
    """UIDs."""


P_contra = TypeVar("P_contra", contravariant=True)


class Index(Protocol[P_contra]):
    """Another order of the pods of an informer."""

    def update(self, before: P_contra | None, after: P_contra | None) -> None:
        """Take in a pod that is new, changed or gone."""

    def clear(self) -> None:
        """Forget all pods."""


class Audience(Protocol[P]):
    """The listener of an informer, called after the informer's own state has changed."""

    def on_list(self, changes: Mapping[str, Change[P]]) -> Iterable[None] | None:
        """Take in a list of all pods: changes since the last list and its watch, by namespace.

        It may be taken in by an iteration over what this returns. Other tasks go on between its
        steps, and the informer takes nothing else in before its end.
        """

    def on_change(self, namespace: str, change: Change[P]) -> None:
        """Take in a pod that is new, changed or gone."""

    def on_refusal(self) -> None:
        """Note that the API server does not show the pods, for the reason in `refusal`."""


class _UnreadablePods:
    """The pods that are left out: each is logged once, and not too many at once."""

    def __init__(self) -> None:
        self._uids: set[str] = set()
        self._lines = RepeatedLines(log)

    def note(self, metadata: Json, error: Exception) -> None:
        """Log the pod, unless it was logged before."""
        if metadata["uid"] in self._uids:
            return
        self._uids.add(metadata["uid"])
        self._lines.note(
            "unreadable",
            f"pod {metadata['namespace']}/{metadata['name']} is left out, since it cannot be read: "
            f"{error}",
        )

    def discard(self, uid: str) -> None:
        """Forget a pod that is gone."""
        self._uids.discard(uid)

    def clear(self) -> None:
        """Forget all of them: they are listed again."""
        self._uids.clear()


class _Pods(Generic[P]):
    """The pods of an informer by namespace and UID, and in another order."""

    def __init__(self, index: Index[P] | None) -> None:
        self.by_namespace: dict[str, dict[str, P]] = {}
        self._index = index

    def find(self, uid: str) -> P | None:
        """Return the pod of this UID, of any namespace."""
        found = (pods.get(uid) for pods in self.by_namespace.values())
        return next((pod for pod in found if pod is not None), None)

    def get(self, namespace: str, uid: str) -> P | None:
        """Return a pod; None if it is not known."""
        return self.by_namespace.get(namespace, {}).get(uid)

    def put(self, namespace: str, known: P | None, pod: P) -> P:
        """Store a new or changed pod, and return it as it is stored."""
        pod = pod if known is None else pod.sharing_with(known)
        self.by_namespace.setdefault(namespace, {})[pod.uid] = pod
        if self._index is not None:
            self._index.update(known, pod)
        return pod

    def remove(self, namespace: str, uid: str) -> bool:
        """Remove a pod; return False if it was not known."""
        pods = self.by_namespace.get(namespace, {})
        pod = pods.pop(uid, None)
        if pod is None:
            return False
        if self._index is not None:
            self._index.update(pod, None)
        if not pods:
            del self.by_namespace[namespace]
        return True

    def remove_unseen(self, seen: Container[str]) -> dict[str, Sequence[str]]:
        """Remove the pods that a list lacks; return their UIDs by namespace."""
        gone = {
            namespace: [uid for uid in pods if uid not in seen]
            for namespace, pods in self.by_namespace.items()
        }
        for namespace, uids in gone.items():
            for uid in uids:
                self.remove(namespace, uid)
        return {namespace: uids for namespace, uids in gone.items() if uids}

    def clear(self) -> None:
        """Forget all of them."""
        self.by_namespace.clear()
        if self._index is not None:
            self._index.clear()


class _Refusals:
    """The newest refusal of an informer's requests, and the time since when they were refused."""

    def __init__(self) -> None:
        self.newest: PodsRefusal | None = None
        self._since: float | None = None

    def take(self, error: ApiError) -> bool:
        """Take in a refusal; return False if it is as the one before."""
        at = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = at
        invalid = error.status in _INVALID
        lasting = invalid or at - self._since >= _LASTING_REFUSAL_S
        before, self.newest = self.newest, PodsRefusal(invalid, str(error), lasting)
        return self.newest != before

    def interrupt(self) -> None:
        """Note a failure of another kind: the next refusal may be one of a server that starts."""
        self._since = None

    def end(self) -> None:
        """Note that the pods were shown."""
        self.newest = self._since = None


class Informer(Generic[P]):
    """The pods of one scope, kept current while `run` runs."""

    def __init__(
        self,
        source: Source,
        scope: Scope,
        read: Callable[[Json], P],
        audience: Audience[P],
        *,
        index: Index[P] | None = None,
    ) -> None:
        """Know no pod yet. `index`: another order of the same pods, kept with them."""
        self.scope = scope
        self.listed = False
        """The pods are known, as of some time since the start."""
        self._refusals = _Refusals()
        self._source = source
        self._read = read
        self._audience = audience
        self._pods = _Pods(index)
        self._unreported: dict[str, set[str]] = {}
        """The UIDs of pods that a broken list has changed, by namespace."""
        self._unreadable = _UnreadablePods()
        self._version: str | None = None
        """The version from which the next watch goes on; None: list first."""
        self._watching_since: float | None = None
        self._backoff = Backoff(0.2, _LONGEST_PAUSE_S)

    @property
    def refusal(self) -> PodsRefusal | None:
        """Return the reason why the API server does not show the pods; None without one."""
        return self._refusals.newest

    @property
    def decided(self) -> bool:
        """Return whether the pods are known, or the API server does not show them for long."""
        return self.listed or (self.refusal is not None and self.refusal.lasting)

    def find(self, uid: str) -> P | None:
        """Return the pod of this UID, of any namespace; None if there is none."""
        return self._pods.find(uid) if self.listed else None

    def pods_in(self, namespace: str) -> Mapping[str, P]:
        """Return the namespace's pods by UID. Do not change them."""
        return self._pods.by_namespace.get(namespace, {}) if self.listed else {}

    async def run(self) -> None:
        """Follow the pods until cancelled."""
        while True:
            self._watching_since = None
            trouble: Exception | None = None
            try:
                if self._version is None:
                    self._version = await self._list()
                    heap.give_back()
                await self._watch(self._version)
            except ExpiredError:
                self._version = None
            except ApiError as error:
                trouble = error
                self._take_refusal(error)
            except UNAVAILABLE as error:
                trouble = error
                self._refusals.interrupt()
            except UNREADABLE:
                log.exception("%s: cannot read the API server's answer", self.scope)
                self._version = None
            seconds = self._pause_s()
            if trouble:
                self._log_trouble(trouble, seconds)
            await asyncio.sleep(seconds)

    def _pause_s(self) -> float:
        """Back off, unless the watch that has ended did its work."""
        now = asyncio.get_running_loop().time()
        if self._watching_since is not None and now - self._watching_since >= _LIVED_S:
            self._backoff.reset()
        if self.refusal and self.refusal.invalid:
            return _INVALID_RETRY_S
        return self._backoff.next()

    # --------------------------------------------------------------------- list, watch

    async def _list(self) -> str:
        """List the pods, and report the differences to the known ones; return the version.

        The known pods are updated in place: a second store beside the first is the largest part of
        an operator's memory. If a list breaks, the next one reports its changes too.
        """
        if not self.listed:
            self._pods.clear()  # those of a list that broke
        seen: set[str] = set()

        def take(body: Json) -> None:
            if (pod := self._read_body(body)) is not None:
                namespace = body["metadata"]["namespace"]
                known = self._pods.get(namespace, pod.uid)
                if known != pod:
                    known = self._pods.put(namespace, known, pod)
                    self._unreported.setdefault(namespace, set()).add(known.uid)
                # The equal one that is there already costs no memory.
                seen.add(known.uid)

        self._unreadable.clear()
        version = await self._source.list_pods(self.scope.namespace, self.scope.selector, take)
        changed, self._unreported = self._unreported, {}
        removed = self._pods.remove_unseen(seen)
        pods = self._pods.by_namespace
        self.listed = True
        self._refusals.end()
        steps = self._audience.on_list(
            {
                namespace: Change(
                    changed=[
                        pods[namespace][uid]
                        for uid in changed.get(namespace, ())
                        if uid in pods.get(namespace, {})
                    ],
                    removed=removed.get(namespace, ()),
                )
                for namespace in changed.keys() | removed.keys()
            }
        )
        for _ in steps or ():
            await asyncio.sleep(0)
        return version

    async def _watch(self, since: str) -> None:
        self._watching_since = asyncio.get_running_loop().time()
        events = self._source.watch_pods(self.scope.namespace, self.scope.selector, since=since)
        async with aclosing(cast(Any, events)):
            async for event in events:
                self._take(event)
                # Where this watch breaks, the next one goes on.
                self._version = event.resource_version

    def _take(self, event: WatchEvent) -> None:
        match event.kind:
            case "ADDED" | "MODIFIED":
                pod = self._read_body(event.body)
                if pod is None:
                    self._remove(event.body)
                else:
                    self._set(event.body["metadata"]["namespace"], pod)
            case "DELETED":
                self._unreadable.discard(event.body["metadata"]["uid"])
                self._remove(event.body)

    def _set(self, namespace: str, pod: P) -> None:
        known = self._pods.get(namespace, pod.uid)
        if known != pod:
            stored = self._pods.put(namespace, known, pod)
            self._audience.on_change(namespace, Change(changed=[stored]))

    def _remove(self, body: Json) -> None:
        namespace, uid = body["metadata"]["namespace"], body["metadata"]["uid"]
        if self._pods.remove(namespace, uid):
            self._audience.on_change(namespace, Change(removed=[uid]))

    def _read_body(self, body: Json) -> P | None:
        """Read a pod; one that cannot be read is left out, without harm to the others."""
        try:
            return self._read(body)
        except UNREADABLE as error:
            self._unreadable.note(body["metadata"], error)
            return None

    # ------------------------------------------------------------------------ failures

    def _take_refusal(self, error: ApiError) -> None:
        """Remember the reason of a lasting refusal.

        A server that starts also refuses permitted requests (401 and 403, until it has read the
        roles). Pods that are known already stay known.
        """
        if error.status != 429:  # the server is busy: a list would add to its load
            self._version = None
        if error.status == 429 or error.status >= 500:
            self._refusals.interrupt()
            return
        if (error.status in _INVALID or not self.listed) and self._refusals.take(error):
            self._audience.on_refusal()

    def _log_trouble(self, trouble: Exception, seconds: float) -> None:
        level, reason = logging.WARNING, str(trouble) or type(trouble).__name__
        if not isinstance(trouble, ApiError):
            reason = f"cannot reach the API server ({reason})"
            # A broken connection that the next attempt heals is no news.
            level = logging.WARNING if seconds > 1 else logging.DEBUG
        log.log(level, "%s: %s; next attempt in %.1f s", self.scope, reason, seconds)
