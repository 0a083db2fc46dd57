"""Pods, watched: what matches a selector in a namespace, from the first list on for ever.

All who ask for the same namespace and selector share one watch. While the API server is away, the
last known pods stand; after that, what changed in between is told as if it had just happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from latencyprobe.process.backoff import Backoff
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError, Cluster, Event, ExpiredError
from latencyprobe_operator.model import Pod, read_pod

logger = logging.getLogger(__name__)

_INVALID_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class PodsChange:
    """What happened to a set of pods. Both may be empty: then the set was listed, or refused."""

    changed: Collection[Pod] = ()
    removed: Collection[str] = ()
    """UIDs."""


PodsListener = Callable[[PodsChange], None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the API server does not show these pods."""

    invalid: bool
    """Whether the selector is at fault, and not a missing permission."""
    message: str


@dataclass(eq=False)
class PodSet:
    """The pods that match one selector in one namespace, kept current by PodWatches."""

    namespace: str
    selector: str
    pods: dict[str, Pod] = field(default_factory=dict)
    listed: bool = False
    """Whether the pods are known, as of some time since the start."""
    refusal: Refusal | None = None
    listeners: list[PodsListener] = field(default_factory=list)

    def tell(self, change: PodsChange) -> None:
        """Let all listeners know."""
        for listener in list(self.listeners):
            listener(change)


@dataclass
class _Cursor:
    version: str | None = None
    """None: list first."""


class PodWatches:
    """All watches of pods, one for each namespace and selector that anybody asked for."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._sets: dict[tuple[str, str], PodSet] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def subscribe(self, namespace: str, selector: str, listener: PodsListener) -> PodSet:
        """The set of these pods; the listener hears of every change from now on."""
        key = (namespace, selector)
        if key not in self._sets:
            self._sets[key] = PodSet(namespace, selector)
            self._tasks[key] = asyncio.create_task(
                self._follow(self._sets[key]), name=f"pods of {namespace} with {selector!r}"
            )
        self._sets[key].listeners.append(listener)
        return self._sets[key]

    def unsubscribe(self, pods: PodSet, listener: PodsListener) -> None:
        """Stop hearing of a set; nobody left to hear of it ends its watch."""
        pods.listeners.remove(listener)
        key = (pods.namespace, pods.selector)
        if not pods.listeners and self._sets.get(key) is pods:
            del self._sets[key]
            self._tasks.pop(key).cancel()

    async def close(self) -> None:
        """End all watches."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._sets.clear()
        self._tasks.clear()

    async def _follow(self, pods: PodSet) -> None:
        cursor = _Cursor()
        backoff = Backoff(0.2, 5)
        while True:
            delay = 0.0
            try:
                if cursor.version is None:
                    cursor.version = await self._list(pods)
                    backoff.reset()
                async for event in self._cluster.watch_pods(
                    pods.namespace, pods.selector, since=cursor.version
                ):
                    self._take(pods, event)
                    # Where this watch breaks, the next one goes on.
                    cursor.version = event.resource_version
                    backoff.reset()
            except ExpiredError:
                cursor.version = None
                delay = backoff.next()
            except ApiError as error:
                cursor.version = None
                delay = self._refused(pods, error, backoff)
            except UNAVAILABLE as error:
                delay = backoff.next()
                _log_unavailable(pods, error, delay)
            except (ValueError, KeyError):
                logger.exception("pods of namespace %s: unreadable answer", pods.namespace)
                cursor.version = None
                delay = backoff.next()
            await asyncio.sleep(delay)

    async def _list(self, pods: PodSet) -> str:
        """List, and tell the difference to what was known; answers the resource version."""
        found: dict[str, Pod] = {}
        version = ""
        async for page in self._cluster.list_pods(pods.namespace, pods.selector):
            version = page.resource_version
            found.update((pod.uid, pod) for pod in map(read_pod, page.bodies))
        changed = [pod for uid, pod in found.items() if pods.pods.get(uid) != pod]
        removed = [uid for uid in pods.pods if uid not in found]
        pods.pods, pods.listed, pods.refusal = found, True, None
        pods.tell(PodsChange(changed, removed))
        return version

    @staticmethod
    def _take(pods: PodSet, event: Event) -> None:
        match event.kind:
            case "ADDED" | "MODIFIED":
                pod = read_pod(event.body)
                if pods.pods.get(pod.uid) != pod:
                    pods.pods[pod.uid] = pod
                    pods.tell(PodsChange(changed=[pod]))
            case "DELETED":
                uid = event.body["metadata"]["uid"]
                if pods.pods.pop(uid, None):
                    pods.tell(PodsChange(removed=[uid]))

    @staticmethod
    def _refused(pods: PodSet, error: ApiError, backoff: Backoff) -> float:
        """Remember why, where the server will not change its mind; answers how long to wait.

        A server that starts also refuses what is allowed (401 and 403, until it has read the
        roles): that takes nothing away from what is known already.
        """
        if error.status == 429 or error.status >= 500:
            return backoff.next()
        invalid = error.status in (400, 422)
        refusal = Refusal(invalid, str(error))
        if (invalid or not pods.listed) and pods.refusal != refusal:
            pods.refusal = refusal
            pods.tell(PodsChange())
        delay = _INVALID_RETRY_SECONDS if invalid else backoff.next()
        logger.warning(
            "pods of namespace %s: %s; next attempt in %.1f s", pods.namespace, error, delay
        )
        return delay


def _log_unavailable(pods: PodSet, error: Exception, delay: float) -> None:
    # A broken connection that the next attempt heals is no news.
    level = logging.WARNING if delay > 1 else logging.DEBUG
    what = str(error) or type(error).__name__
    logger.log(
        level,
        "pods of namespace %s: the API server is away (%s); next attempt in %.1f s",
        pods.namespace,
        what,
        delay,
    )
