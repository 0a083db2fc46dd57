"""kopf's lists and watches: as many requests as an informer's, and no error ends the operator.

kopf 1.45 asks again at once for a watch that has ended. A server or proxy that ends each watch at
once would get a request per round trip. An error in a watch, other than an expired version, ends
its operator. So does a list that the API server refuses: one that starts does not serve
LatencyProbes yet (404). No setting changes that, so its functions for both are wrapped here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Any, cast

import aiohttp
from kopf._cogs.clients import fetching, watching
from kopf._cogs.clients.errors import APIError

from latencyprobe.process.backoff import Backoff
from latencyprobe.process.repeated_lines import RepeatedLines

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
# A watch after which the next one is asked for this much later worked.
_LIVED_S = 10.0
# Of kopf, and of a page of a proxy in place of an answer.
_FAILURES = (APIError, ValueError, RecursionError, aiohttp.ClientResponseError)

Watch = Callable[..., AsyncIterator[Any]]
List = Callable[..., AsyncIterator[Any]]


@contextmanager
def paced_watches() -> Iterator[None]:
    """Pace kopf's watches, and its lists after a failure, for the time of the block."""
    unpaced, unpaced_list = watching.watch_objs, fetching.fetch_objs
    watching.watch_objs = PacedWatches(unpaced).watch
    fetching.fetch_objs = PacedLists(unpaced_list).list
    try:
        yield
    finally:
        watching.watch_objs, fetching.fetch_objs = unpaced, unpaced_list


class PacedWatches:
    """Watches of all resources, each after a pause that its earlier ones ask for."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._paces: dict[tuple[Any, Any], _Pace] = {}
        """By resource and namespace: kopf follows only the namespaces of our options."""
        self._lines = RepeatedLines(log)

    async def watch(self, *, resource: Any, namespace: Any, **rest: Any) -> AsyncGenerator[Any]:
        """Yield the events of one watch. Any failure becomes an expired version: kopf lists again.

        The events between the failed watch and the next one may be lost: the list has them.
        """
        await self._paces.setdefault((resource, namespace), _Pace()).pause()
        events = self._watch(resource=resource, namespace=namespace, **rest)
        async with aclosing(cast(AsyncGenerator[Any], events)):
            try:
                async for event in events:
                    if (failure := _failure_in(event)) is not None:
                        break
                    yield event
                else:
                    return
            except _FAILURES as error:
                failure = str(error) or repr(error)
        where = "all namespaces" if namespace is None else f"namespace {namespace}"
        self._lines.note("watch", f"watch of {resource} in {where}: {failure}; it is listed again")
        yield {"type": "ERROR", "object": {"code": HTTPStatus.GONE}}


class PacedLists:
    """Lists of all resources. After one that is refused there is a pause, and another one."""

    def __init__(self, list_: List) -> None:
        self._list = list_
        self._backoffs: dict[tuple[Any, Any], Backoff] = {}
        """By resource and namespace, of those whose last list was refused."""
        self._lines = RepeatedLines(log)

    async def list(self, *, resource: Any, namespace: Any, **rest: Any) -> AsyncGenerator[Any]:
        """Yield the parts of one list. Any refusal becomes a lost connection: kopf lists again."""
        pages = self._list(resource=resource, namespace=namespace, **rest)
        async with aclosing(cast(AsyncGenerator[Any], pages)):
            try:
                async for page in pages:
                    yield page
            except _FAILURES as error:
                failure = str(error) or repr(error)
            else:
                self._backoffs.pop((resource, namespace), None)
                return
        where = "all namespaces" if namespace is None else f"namespace {namespace}"
        self._lines.note("list", f"list of {resource} in {where}: {failure}; it is listed again")
        first = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        await asyncio.sleep(self._backoffs.setdefault((resource, namespace), first).next())
        raise aiohttp.ClientConnectionError(failure)


class _Pace:
    """The pauses between the watches of one resource."""

    def __init__(self) -> None:
        self._backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._began: float | None = None

    async def pause(self) -> None:
        """Wait before a watch: longer and longer while the watches before it end early."""
        clock = asyncio.get_running_loop().time
        if self._began is not None:
            if clock() - self._began >= _LIVED_S:
                self._backoff.reset()
            await asyncio.sleep(self._backoff.next())
        self._began = clock()


def _failure_in(event: Any) -> str | None:
    """Return the failure that an event reports; None for one that kopf can take."""
    match event:
        case {"type": "ERROR", "object": {"code": HTTPStatus.GONE}}:
            return None
        case {"type": "ERROR", "object": {"message": message, **rest}}:
            return f"{message} (code {rest.get('code')})"
        case {"type": str(kind), "object": {"metadata": {}}} if kind != "ERROR":
            return None
    return "cannot read an event of it"
