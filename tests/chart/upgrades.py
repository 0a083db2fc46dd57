"""A cluster whose Secrets the chart finds again: what an upgrade makes of its certificates."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

from tests.chart.helm import Helm, Manifests
from tools.helm.chart import CHART, NAMESPACE, RELEASE

SECRETS = {"operator": "latencyprobe-operator-tls", "agent": "latencyprobe-agent-tls"}
END = "-----END CERTIFICATE-----\n"

Secrets = dict[str, dict[str, Any]]


class Cluster:
    """An API server that knows Secrets, for the chart's `lookup`."""

    def __init__(self, helm: Helm, server: ThreadingHTTPServer, secrets: Secrets) -> None:
        self.secrets = secrets
        self._helm = helm
        self._url = f"http://127.0.0.1:{server.server_address[1]}"

    def store(self, *secrets: dict[str, Any]) -> None:
        """Put Secrets there that another has made."""
        self.secrets.update({secret["metadata"]["name"]: secret for secret in secrets})

    def upgrade(self, *settings: str) -> Secrets:
        """Render the chart against the cluster, and put its Secrets there."""
        text = self._helm.run(
            *("template", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--dry-run=server"),
            *("--disable-openapi-validation", "--no-hooks", "--take-ownership"),
            f"--kube-apiserver={self._url}",
            *(f"--set={setting}" for setting in settings),
        )
        items = yaml.load_all(text, Loader=yaml.CSafeLoader)
        self.store(*(item for item in items if item and item["kind"] == "Secret"))
        return dict(self.secrets)


@contextmanager
def empty_cluster(helm: Helm) -> Iterator[Cluster]:
    """A cluster without Secrets."""
    secrets: Secrets = {}
    discovery = _discovery(helm.manifests())

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = _answer(self.path.partition("?")[0], secrets, discovery)
            self.send_response(answer.get("code", 200))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Cluster(helm, server, secrets)
        finally:
            server.shutdown()
            thread.join()


def _answer(path: str, secrets: Secrets, discovery: dict[str, Any]) -> dict[str, Any]:
    missing = {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}
    return discovery.get(path) or secrets.get(path.rpartition("/")[2]) or missing


def _discovery(manifests: Manifests) -> dict[str, Any]:
    """What an API server that knows these kinds says of itself, by path."""
    resources: dict[str, dict[str, Any]] = {}
    for item in manifests:
        kind = item["kind"]
        plural = re.sub("ys$", "ies", re.sub("sss$", "sses", kind.lower() + "s"))
        resources.setdefault(item["apiVersion"], {})[kind] = {
            "name": plural,
            "kind": kind,
            "namespaced": "namespace" in item["metadata"],
            "verbs": ["get"],
        }
    groups: dict[str, list[dict[str, str]]] = {}
    for version in resources.keys() - {"v1"}:
        entry = {"groupVersion": version, "version": version.partition("/")[2]}
        groups.setdefault(version.partition("/")[0], []).append(entry)
    pages: dict[str, Any] = {
        f"/apis/{version}" if "/" in version else f"/api/{version}": {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": list(kinds.values()),
        }
        for version, kinds in resources.items()
    }
    listed = [{"name": name, "versions": each} for name, each in groups.items()]
    pages["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    pages["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
    pages["/version"] = {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    return pages


def authorities(secrets: Secrets, component: str) -> list[str]:
    """The certificates in ca.crt."""
    text = base64.b64decode(secrets[SECRETS[component]]["data"]["ca.crt"]).decode()
    return [part + END for part in text.split(END)[:-1]]


def keys(secrets: Secrets) -> set[str]:
    """The keys of both sides."""
    return {secret["data"]["tls.key"] for secret in secrets.values()}
