"""An API server of pods, LatencyProbes and Leases, with the requests of the operator's client."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from kubernetes.aio.client.configuration import Configuration

from latencyprobe_operator.kube.cluster import Cluster

Json = dict[str, Any]

# Of LatencyProbes: a whole one may have 240 KiB.
_MOST_OF_A_PAGE, _MOST_WHOLE = 500, 20
_MOST_PENDING = 1 << 16


@dataclass
class FakeApi:
    """An API server that holds pods, counts requests, and fails on demand.

    Large, because a test sets each resource and each failure, and reads each request, by an
    attribute, and all resources have one version.
    """

    pods: dict[str, Json] = field(default_factory=dict)
    version: int = 100
    page: int = 500
    refuse: tuple[int, str] | None = None
    refuse_in: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Refusals by the namespace of a request for pods; "" is all namespaces."""
    lists: int = 0
    watches: list[tuple[str, str]] = field(default_factory=list)
    """(selector, resourceVersion) of each watch."""
    asked: list[str] = field(default_factory=list)
    """The namespace of each request for pods; "" is all namespaces."""
    patches: list[Json] = field(default_factory=list)
    statuses: dict[str, Json] = field(default_factory=dict)
    """By the probe's name."""
    status_versions: dict[str, str] = field(default_factory=dict)
    """The resourceVersions of probes whose status was written."""
    leases: dict[str, Json] = field(default_factory=dict)
    """By name."""
    probes: list[Json] = field(default_factory=list)
    starting: bool = False
    """It has not read the CRDs yet: it does not serve LatencyProbes."""
    conflicts: int = 0
    """The number of patches of a probe that will fail with a conflict."""
    _streams: dict[asyncio.Queue[Json | None], str] = field(default_factory=dict)
    """The namespace that each watch is of."""

    def set(self, body: Json, *, quietly: bool = False) -> None:
        """Add or change a pod."""
        kind = "MODIFIED" if body["metadata"]["uid"] in self.pods else "ADDED"
        self.version += 1
        body = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        self.pods[body["metadata"]["uid"]] = body
        if not quietly:
            self.send({"type": kind, "object": body})

    def remove(self, uid: str, *, quietly: bool = False) -> None:
        """Delete a pod."""
        self.version += 1
        body = self.pods.pop(uid)
        body["metadata"]["resourceVersion"] = str(self.version)
        if not quietly:
            self.send({"type": "DELETED", "object": body})

    def send(self, event: Json | None) -> None:
        """Send an event to the watches of its namespace; None ends all watches."""
        about = event["object"]["metadata"].get("namespace") if event else None
        for stream, namespace in self._streams.items():
            if not about or namespace in ("", about):
                stream.put_nowait(event)

    def expire(self) -> None:
        """End all watches because their resourceVersion has expired."""
        status = {
            "kind": "Status",
            "metadata": {},
            "code": 410,
            "reason": "Expired",
            "message": "too old",
        }
        self.send({"type": "ERROR", "object": status})

    def change_status(self, name: str, status: Json) -> None:
        """Replace a status, as another operator would."""
        self.version += 1
        self.statuses[name], self.status_versions[name] = status, str(self.version)

    @property
    def watching(self) -> int:
        """The number of open watches."""
        return len(self._streams)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Cluster]:
        """Serve, and yield the operator's client of this server."""
        runner = web.AppRunner(self._application(), shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        configuration = Configuration()
        configuration.host = f"http://{host}:{port}"
        cluster = Cluster(configuration)
        try:
            yield cluster
        finally:
            self.send(None)
            await cluster.close()
            await runner.cleanup()

    def _application(self) -> web.Application:
        """Return the server's resources by their paths."""
        application = web.Application(middlewares=[self._serve_if_started])
        application.router.add_get("/api/v1/namespaces/{namespace}/pods", self._pods)
        application.router.add_get("/api/v1/pods", self._pods)
        application.router.add_patch(
            "/apis/latencyprobe.io/v1alpha1/namespaces/{namespace}/latencyprobes/{name}/status",
            self._patch,
        )
        probes = "/apis/latencyprobe.io/v1alpha1/namespaces/{namespace}/latencyprobes"
        application.router.add_get("/apis/latencyprobe.io/v1alpha1/latencyprobes", self._probes)
        application.router.add_get(probes, self._probes)
        application.router.add_get(f"{probes}/{{name}}", self._probe)
        application.router.add_patch(f"{probes}/{{name}}", self._patch_probe)
        leases = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        application.router.add_post(leases, self._create_lease)
        application.router.add_get(f"{leases}/{{name}}", self._read_lease)
        application.router.add_put(f"{leases}/{{name}}", self._replace_lease)
        return application

    @web.middleware
    async def _serve_if_started(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.starting and request.path.startswith("/apis/latencyprobe.io/"):
            # http.NotFound(), as of a CRD that does not exist (customresource_handler.go)
            return web.Response(text="404 page not found\n", status=404)
        return await handler(request)

    async def _pods(self, request: web.Request) -> web.StreamResponse:
        namespace = request.match_info.get("namespace", "")
        self.asked.append(namespace)
        if self.refuse or namespace in self.refuse_in:
            return self._refusal(namespace)
        if request.query.get("watch"):
            return await self._watch(request)
        self.lists += 1
        start = int(request.query.get("continue", 0))
        items = [
            pod for pod in self.pods.values() if namespace in ("", pod["metadata"]["namespace"])
        ]
        more = start + self.page < len(items)
        metadata = {
            "resourceVersion": str(self.version),
            "continue": str(start + self.page) if more else "",
        }
        return await _send_list(request, metadata, items[start : start + self.page])

    async def _probes(self, request: web.Request) -> web.StreamResponse:
        if self.refuse:
            return self._refusal()
        namespace = request.match_info.get("namespace")
        of_all = namespace is None
        items = [p for p in self.probes if of_all or p["metadata"]["namespace"] == namespace]
        of_metadata = "PartialObjectMetadataList" in request.headers.get("Accept", "")
        limit = int(request.query.get("limit", sys.maxsize))
        if limit > (_MOST_OF_A_PAGE if of_metadata else _MOST_WHOLE):
            return _status(400, "such a list of LatencyProbes may be of any size")
        start = int(request.query.get("continue", 0))
        end = start + limit
        found = items[start:end]
        return web.json_response(
            {
                "metadata": {
                    "resourceVersion": "7",
                    "continue": str(end) if end < len(items) else "",
                },
                # as the API server, which has no empty lists of metadata
                "items": ([{"metadata": p["metadata"]} for p in found] or None)
                if of_metadata
                else found,
            }
        )

    async def _patch_probe(self, request: web.Request) -> web.Response:
        if self.conflicts:
            self.conflicts -= 1
            return web.json_response({"kind": "Status", "message": "has changed"}, status=409)
        metadata = (await request.json())["metadata"]
        for probe in self.probes:
            if probe["metadata"]["name"] == request.match_info["name"]:
                assert metadata["resourceVersion"] == probe["metadata"]["resourceVersion"]
                probe["metadata"].pop("finalizers")
                if metadata["finalizers"]:
                    probe["metadata"]["finalizers"] = metadata["finalizers"]
        return web.json_response({})

    def _refusal(self, namespace: str = "") -> web.Response:
        status, message = self.refuse or self.refuse_in[namespace]
        return web.json_response({"kind": "Status", "message": message}, status=status)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        selector = request.query.get("labelSelector", "")
        self.watches.append((selector, request.query["resourceVersion"]))
        response = web.StreamResponse()
        await response.prepare(request)
        stream: asyncio.Queue[Json | None] = asyncio.Queue()
        self._streams[stream] = request.match_info.get("namespace", "")
        try:
            while event := await stream.get():
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            del self._streams[stream]
        return response

    async def _patch(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/merge-patch+json"
        if self.refuse:
            return self._refusal()
        body = await request.json()
        self.patches.append(body)
        name = request.match_info["name"]
        version = body.get("metadata", {}).get("resourceVersion")
        if version and version != self.status_versions.get(name, version):
            return _status(409, f"{name}: the object has been modified")
        self.change_status(name, apply_merge_patch(self.statuses.get(name), body["status"]))
        return web.json_response(self._stored(name))

    async def _probe(self, request: web.Request) -> web.Response:
        if self.refuse:
            return self._refusal()
        name = request.match_info["name"]
        if name not in self.statuses:
            return _status(404, f"{name} not found")
        return web.json_response(self._stored(name))

    def _stored(self, name: str) -> Json:
        metadata = {"uid": f"uid-{name}", "resourceVersion": self.status_versions[name]}
        return {"metadata": metadata, "status": self.statuses[name]}

    async def _read_lease(self, request: web.Request) -> web.Response:
        if self.refuse:
            return self._refusal()
        name = request.match_info["name"]
        if name not in self.leases:
            return _status(404, f"leases {name} not found")
        return web.json_response(self.leases[name])

    async def _create_lease(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/json"
        body = await request.json()
        name = body["metadata"]["name"]
        if name in self.leases:
            return _status(409, f"leases {name} already exists")
        return self._store_lease(name, body)

    async def _replace_lease(self, request: web.Request) -> web.Response:
        if self.refuse:
            return self._refusal()
        assert request.content_type == "application/json"
        body, name = await request.json(), request.match_info["name"]
        if name not in self.leases:
            return _status(404, f"leases {name} not found")
        if body["metadata"]["resourceVersion"] != self.leases[name]["metadata"]["resourceVersion"]:
            return _status(409, f"leases {name}: the object has been modified")
        return self._store_lease(name, body)

    def _store_lease(self, name: str, body: Json) -> web.Response:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.leases[name] = body
        return web.json_response(body)


async def _send_list(
    request: web.Request, metadata: Json, items: Sequence[Json]
) -> web.StreamResponse:
    """Send a list as it is encoded, some of its items at a time: it may be large."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    pending = f'{{"metadata": {json.dumps(metadata)}, "items": ['
    for index, item in enumerate(items):
        pending += (", " if index else "") + json.dumps(item)
        if len(pending) > _MOST_PENDING:
            await response.write(pending.encode())
            pending = ""
    await response.write(f"{pending}]}}".encode())
    return response


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "message": message}, status=code)


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """Apply a patch after RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = apply_merge_patch(result.get(key), value)
    return result
