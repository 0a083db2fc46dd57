"""The deletion of completed LatencyProbes after spec.ttlSecondsAfterFinished.

It follows the objects in the API server alone: the time of completion is in their status. So it
goes on after a restart, and with another leader.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from latencyprobe.process.backoff import Backoff
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_operator.api.lifetime import Lifetime, lifetime_of
from latencyprobe_operator.api.spec import ProbeKey, probe_key
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError, NotServedError
from latencyprobe_operator.kube.leading import NotLeadingError, while_leading

log = logging.getLogger(__name__)

_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0
_FAILURE_LOG_S = 600.0
_GONE, _CHANGED = 404, 409


class Probes(Protocol):
    """The LatencyProbes in the API server: a part of `Cluster`."""

    async def read_probe(self, namespace: str, name: str) -> dict[str, Any]:
        """Read a LatencyProbe."""

    async def delete_probe(self, namespace: str, name: str, *, uid: str, version: str) -> None:
        """Delete a LatencyProbe if it is this one, and has not changed since this version."""


@dataclass(slots=True)
class _Expiring:
    """A completed probe, as last seen, and the task that deletes it."""

    lifetime: Lifetime
    version: str
    task: asyncio.Task[None]


class Expirations:
    """The completed probes that are to be deleted.

    `remaining_s`: the rest of the Lease; 0: not held. `wall_clock`: the one that wrote the time of
    completion.
    """

    def __init__(
        self,
        probes: Probes,
        remaining_s: Callable[[], float] = lambda: math.inf,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._probes = probes
        self._remaining_s = remaining_s
        self._wall_clock = wall_clock
        self._expiring: dict[str, _Expiring] = {}
        self._failures = RepeatedLines(log)

    def follow(self, body: Mapping[str, Any]) -> None:
        """Take in a LatencyProbe as the API server has it."""
        key, version = probe_key(body), body["metadata"].get("resourceVersion", "")
        lifetime = _lifetime(body)
        known = self._expiring.get(key.uid)
        if known and known.lifetime == lifetime:
            known.version = version
            return
        self.forget(key.uid)
        if lifetime is None:
            return
        # The wall clock serves for the time until now. From now on, setting it changes nothing.
        rest_s = lifetime.remaining_s(self._wall_clock())
        task = asyncio.create_task(self._expire(key, rest_s), name=f"expiry of {key}")
        self._expiring[key.uid] = _Expiring(lifetime, version, task)

    def forget(self, uid: str) -> None:
        """Delete this probe no more: it is gone, or measures again."""
        if known := self._expiring.pop(uid, None):
            known.task.cancel()

    async def close(self) -> None:
        """Delete nothing more."""
        tasks = [each.task for each in self._expiring.values()]
        self._expiring.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _expire(self, key: ProbeKey, rest_s: float) -> None:
        await asyncio.sleep(rest_s)
        backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        while not await self._delete(key):  # noqa: ASYNC110 - attempts, not polls
            await asyncio.sleep(backoff.next())
        del self._expiring[key.uid]

    async def _delete(self, key: ProbeKey) -> bool:
        """Delete the probe; return False if another attempt may succeed."""
        expiring = self._expiring[key.uid]
        request = partial(
            self._probes.delete_probe,
            key.namespace,
            key.name,
            uid=key.uid,
            version=expiring.version,
        )
        try:
            await while_leading(self._remaining_s, request)
        except ApiError as error:
            if error.status == _CHANGED:
                return await self._is_another(key)
            if not _is_gone(error):
                self._note_failure(key, error)
            return _is_gone(error)
        except (NotLeadingError, *UNAVAILABLE) as error:
            self._note_failure(key, error)
            return False
        log.info("%s: deleted, as spec.ttlSecondsAfterFinished is %d", key, expiring.lifetime.ttl_s)
        return True

    async def _is_another(self, key: ProbeKey) -> bool:
        """Read the probe again after it has changed; return whether it is not to be deleted.

        The watch reports the change too, perhaps late.
        """
        try:
            body = await self._probes.read_probe(key.namespace, key.name)
        except ApiError as error:
            return _is_gone(error)
        except UNAVAILABLE:
            return False
        expiring = self._expiring[key.uid]
        if probe_key(body) != key or _lifetime(body) != expiring.lifetime:
            return True
        expiring.version = body["metadata"]["resourceVersion"]
        return False

    def _note_failure(self, key: ProbeKey, error: Exception) -> None:
        self._failures.note(
            "failed",
            f"{key}: cannot delete the completed LatencyProbe: "
            f"{str(error) or type(error).__name__}; it is tried again",
            interval_s=_FAILURE_LOG_S,
        )


def _is_gone(error: ApiError) -> bool:
    return error.status == _GONE and not isinstance(error, NotServedError)


def _lifetime(body: Mapping[str, Any]) -> Lifetime | None:
    """Return the lifetime of a probe that is not being deleted."""
    return None if body["metadata"].get("deletionTimestamp") else lifetime_of(body)
