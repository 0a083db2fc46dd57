"""The API server: list and watch pods, write statuses, read and write a Lease.

A thin layer over kubernetes.aio that returns the API's JSON. Its typed models would cost the watch
of a large cluster more time and memory than the rest of the operator.

Watches have connections of their own. A watch holds its connection for minutes: in a pool with a
limit, a hundred of them would leave no connection for requests. Leases have one too: they are
renewed in time, however many statuses wait to be written.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from latencyprobe_operator.kube.listing import ListReader

GROUP, VERSION, PLURAL = "latencyprobe.io", "v1alpha1", "latencyprobes"
_PAGE = 500
# Of LatencyProbes only the metadata is listed: with its annotations 256 KiB at most, else 1 KiB.
_PROBES_PAGE = 50
_METADATA_ALONE = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
# Decoding this many pods takes some milliseconds; then others have their turn.
_SLICE = 50
# `sock_connect`, for `connect` also limits the time that a request waits for a free connection.
_REQUEST = aiohttp.ClientTimeout(total=30, sock_connect=10)
# A page is decoded while it arrives, which may take longer.
_LIST = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
# The server ends a watch after this time, drawn for each watch, so that watches that began together
# do not end together.
_WATCH_S = (290, 580)
# Before that it sends a bookmark each minute: a connection without one for longer is dead
# (kube-apiserver, bookmarkFrequency).
_WATCH = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
_WITHOUT_LIMIT = 0

Json = dict[str, Any]

# The errors of a request while the API server, or the network to it, is unavailable.
UNAVAILABLE = (aiohttp.ClientError, TimeoutError, OSError)
# Malformed objects, and a proxy's page in place of an answer, end in one of these.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class ApiError(Exception):
    """The API server's refusal: its HTTP status, its reason and its message.

    `fields`: the paths of the fields that an object must not have so, as `status.pods[0].name`.
    """

    def __init__(
        self, status: int, reason: str, message: str, fields: tuple[str, ...] = ()
    ) -> None:
        self.status, self.reason, self.fields = status, reason, fields
        super().__init__(message)


class NotServedError(ApiError):
    """HTTP status 404 of a path, not of an object: there is no CRD, or the API server starts.

    A server that starts serves custom resources once it has read their CRDs. Until then it answers
    with the text "404 page not found" in place of a Status (customresource_handler.go).
    """


class ExpiredError(ApiError):
    """HTTP status 410: the API server has forgotten the version of a watch or page. List again."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch. `kind` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    kind: str
    body: Json
    resource_version: str


@dataclass(frozen=True, slots=True)
class Connection:
    """The address and credentials of the API server, for other clients. Never logged."""

    server: str
    ca_path: str | None
    certificate_path: str | None
    key_path: str | None
    token: str | None
    insecure: bool

    def __repr__(self) -> str:
        return f"Connection({self.server})"


class Cluster:
    """A client of one API server. Made by `connect`. Large, because each request is a method."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._requests, self._watches = ApiClient(configuration), ApiClient(configuration)
        self._leases = ApiClient(configuration)
        self._watches.rest_client.maxsize = _WITHOUT_LIMIT
        for client in (self._requests, self._watches, self._leases):
            client.user_agent = "latencyprobe-operator"

    @classmethod
    async def connect(cls, kubeconfig: Path | None) -> Cluster:
        """Connect to the cluster of this kubeconfig; else this pod's own; else that of $KUBECONFIG.

        Raises kubernetes.aio.config.ConfigException.
        """
        configuration = Configuration()
        if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            kube_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=None if kubeconfig is None else str(kubeconfig),
                client_configuration=configuration,
                persist_config=False,
            )
        return cls(configuration)

    async def close(self) -> None:
        """Close all connections."""
        await self._requests.close()  # type: ignore[no-untyped-call]
        await self._watches.close()  # type: ignore[no-untyped-call]
        await self._leases.close()  # type: ignore[no-untyped-call]

    async def connection(self) -> Connection:
        """Return the address and the present credentials of the API server."""
        configuration = self._configuration
        header = await configuration.get_api_key_with_prefix("BearerToken", "authorization")
        return Connection(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            certificate_path=configuration.cert_file,
            key_path=configuration.key_file,
            token=header.split(" ", 1)[-1].strip() if header else None,
            insecure=not configuration.verify_ssl,
        )

    # ----------------------------------------------------------------- requests

    async def list_probes(self, namespace: str | None) -> list[Json]:
        """List the LatencyProbes of one namespace, or of all: their metadata alone."""
        where = f"/namespaces/{namespace}" if namespace else ""
        path = f"/apis/{GROUP}/{VERSION}{where}/{PLURAL}"
        query, probes = {"limit": str(_PROBES_PAGE)}, list[Json]()
        while True:
            response = await self._request(
                "GET", path, query, timeout=_REQUEST, accept=_METADATA_ALONE
            )
            async with response:
                page = await _read(response)
            # null, if there are none
            probes += [{"metadata": body["metadata"]} for body in page["items"] or ()]
            if not (more := page["metadata"].get("continue")):
                return probes
            query["continue"] = more

    async def read_probe(self, namespace: str, name: str) -> Json:
        """Read a LatencyProbe."""
        return await self._get(
            f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}", {}
        )

    async def patch_status(self, namespace: str, name: str, patch: Mapping[str, Any]) -> Json:
        """Merge this into the status of a LatencyProbe; return the object as it is then."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}/status"
        response = await self._request(
            "PATCH",
            path,
            {"fieldManager": "latencyprobe-operator"},
            timeout=_REQUEST,
            body=dict(patch),
        )
        async with response:
            return cast(Json, await _read(response))

    async def delete_probe(self, namespace: str, name: str, *, uid: str, version: str) -> None:
        """Delete a LatencyProbe if it is this one, and has not changed since this version."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}"
        options = {"preconditions": {"uid": uid, "resourceVersion": version}}
        response = await self._request(
            "DELETE",
            path,
            {},
            timeout=_REQUEST,
            body={"apiVersion": "v1", "kind": "DeleteOptions", **options},
            content_type="application/json",
        )
        async with response:
            await _read(response)

    async def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """Create an Event."""
        response = await self._request(
            "POST",
            f"/apis/events.k8s.io/v1/namespaces/{namespace}/events",
            {},
            timeout=_REQUEST,
            body=dict(body),
            content_type="application/json",
        )
        async with response:
            await _read(response)

    async def patch_event(self, namespace: str, name: str, series: Mapping[str, Any]) -> None:
        """Merge this into the series of an Event."""
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events/{name}"
        body = {"series": dict(series)}
        response = await self._request("PATCH", path, {}, timeout=_REQUEST, body=body)
        async with response:
            await _read(response)

    async def call_leases(self, method: str, path: str, body: Json | None = None) -> Json:
        """Send a request about Leases; return the object. `path` begins with the namespace."""
        response = await self._request(
            method,
            f"/apis/coordination.k8s.io/v1/namespaces/{path}",
            {},
            timeout=_REQUEST,
            body=body,
            content_type="application/json",
            client=self._leases,
        )
        async with response:
            return cast(Json, await _read(response))

    async def patch_probe(self, namespace: str, name: str, patch: Mapping[str, Any]) -> None:
        """Merge this into a LatencyProbe, its status aside."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}"
        response = await self._request("PATCH", path, {}, timeout=_REQUEST, body=dict(patch))
        async with response:
            await _read(response)

    async def list_pods(
        self, namespace: str | None, selector: str, take: Callable[[Json], None]
    ) -> str:
        """Pass each matching pod to `take`; return the version from which a watch can go on.

        The namespace None stands for all namespaces, the selector "" for every pod.
        """
        query = {"limit": str(_PAGE), **_selecting(selector)}
        while True:
            response = await self._request("GET", _pods_path(namespace), query, timeout=_LIST)
            async with response:
                metadata = await _take_page(response, take)
            if not metadata.get("continue"):
                return cast(str, metadata["resourceVersion"])
            query["continue"] = metadata["continue"]

    async def watch_pods(
        self, namespace: str | None, selector: str, *, since: str
    ) -> AsyncIterator[WatchEvent]:
        """Yield the changes of the matching pods after a version, for some minutes."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(random.randint(*_WATCH_S)),  # noqa: S311 - jitter
            **_selecting(selector),
        }
        response = await self._request(
            "GET", _pods_path(namespace), query, timeout=_WATCH, client=self._watches
        )
        async with response:
            if response.status >= 400:
                await _read(response)
            async for line in _lines(response.content):
                yield _event(json.loads(line))

    async def _get(self, path: str, query: Mapping[str, str]) -> Json:
        response = await self._request("GET", path, query, timeout=_REQUEST)
        async with response:
            return cast(Json, await _read(response))

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's, not ours
        body: Json | None = None,
        content_type: str = "application/merge-patch+json",
        client: ApiClient | None = None,
        accept: str = "application/json",
    ) -> aiohttp.ClientResponse:
        client = client or self._requests
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        _, url, headers, _, _ = await client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            auth_settings=["BearerToken"],
        )
        answer = await client.call_api(method, url, headers, body, _request_timeout=timeout)
        return cast(aiohttp.ClientResponse, answer.response)


def _pods_path(namespace: str | None) -> str:
    return "/api/v1/pods" if namespace is None else f"/api/v1/namespaces/{namespace}/pods"


def _selecting(selector: str) -> dict[str, str]:
    return {"labelSelector": selector} if selector else {}


async def _take_page(response: aiohttp.ClientResponse, take: Callable[[Json], None]) -> Json:
    """Pass each item of a list to `take`; return the list's metadata. Raises ApiError."""
    if response.status >= 400:
        await _read(response)
    page, number = ListReader(response.content.iter_any()), 0
    async for body in page:
        take(body)
        number += 1
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return page.metadata


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a stream, of any length: `readline` refuses those beyond its buffer."""
    pending = bytearray()
    async for chunk in content.iter_any():
        pending += chunk
        if b"\n" not in chunk:
            continue
        *whole, rest = pending.split(b"\n")
        pending = bytearray(rest)
        for line in whole:
            if line.strip():
                yield bytes(line)


def _event(document: Json) -> WatchEvent:
    body = document["object"]
    if document["type"] == "ERROR":
        raise _error(int(body.get("code") or 500), body)
    return WatchEvent(document["type"], body, body["metadata"]["resourceVersion"])


async def _read(response: aiohttp.ClientResponse) -> Any:
    """Read the response's JSON; raises ApiError for a refusal."""
    return json.loads(await _text(response))


async def _text(response: aiohttp.ClientResponse) -> bytes:
    """Read the response; raises ApiError for a refusal."""
    text = await response.read()
    if response.status < 400:
        return text
    try:
        body = json.loads(text)
    except ValueError:
        body = {"message": text[:200].decode(errors="replace")}
    raise _error(response.status, body if isinstance(body, dict) else {})


def _error(status: int, body: Mapping[str, Any]) -> ApiError:
    message = body.get("message") or f"HTTP status {status}"
    kind = ApiError
    if status == 410:
        kind = ExpiredError
    elif status == 404 and body.get("kind") != "Status":
        kind = NotServedError
    causes = (body.get("details") or {}).get("causes") or ()
    fields = tuple(str(cause.get("field") or "") for cause in causes)
    return kind(status, body.get("reason") or "", message, fields)
