"""An API server for a whole operator: kopf discovers the resource there, lists and watches it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from latencyprobe_operator.kube.cluster import GROUP, PLURAL, VERSION
from latencyprobe_operator.release import FINALIZER
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, probe_body

_CRDS = "apiextensions.k8s.io"


class WatchedApi(FakeApi):
    """An API server whose LatencyProbes can be watched. No probe changes."""

    def add_probe(self, name: str, **spec: Any) -> Json:
        """Add a LatencyProbe, as one that an operator has served before; return it."""
        body = probe_body(name, **spec)
        body |= {"apiVersion": f"{GROUP}/{VERSION}", "kind": "LatencyProbe"}
        body["metadata"] |= {
            "resourceVersion": "1",
            "finalizers": [FINALIZER],
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        self.probes.append(body)
        return body

    def _application(self) -> web.Application:
        application = super()._application()
        pages: dict[str, Json] = {
            "/api": {"versions": ["v1"]},
            "/api/v1": _resources("namespaces", "Namespace", namespaced=False),
            "/apis": {"groups": [_group(GROUP, VERSION), _group(_CRDS, "v1")]},
            f"/apis/{GROUP}/{VERSION}": _resources(PLURAL, "LatencyProbe", namespaced=True),
            # kopf waits until it knows these two kinds, though it asks for no objects of them.
            f"/apis/{_CRDS}/v1": _resources(
                "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
            ),
        }
        for path, page in pages.items():
            application.router.add_get(path, _answering(page))
        return application

    async def _probes(self, request: web.Request) -> web.StreamResponse:
        if not request.query.get("watch"):
            return await super()._probes(request)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"\n")
        await asyncio.Event().wait()
        return response


def _group(name: str, version: str) -> Json:
    served = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [served], "preferredVersion": served}


def _resources(plural: str, kind: str, *, namespaced: bool) -> Json:
    resource = {
        "name": plural,
        "singularName": kind.lower(),
        "kind": kind,
        "namespaced": namespaced,
        "verbs": ["list", "watch", "patch"],
    }
    return {"resources": [resource]}


def _answering(page: Json) -> Any:
    text = json.dumps(page)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type="application/json")

    return answer
