"""Kubeconfig files: the address of the API server, its authority, and the user.

They are written as JSON, which is YAML too. Certificates are included, so that a file can be
copied.
"""

import base64
import json
from pathlib import Path


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def write(
    path: Path, *, url: str, authority: Path, user: dict[str, str], namespace: str = "default"
) -> None:
    """Write one cluster, one user (a map of the kubeconfig's own fields), one context."""
    cluster = {"server": url, "certificate-authority-data": _inline(authority)}
    context = {"cluster": "latencyprobe", "user": "user", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "latencyprobe", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "latencyprobe", "context": context}],
        "current-context": "latencyprobe",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=2) + "\n")


def certificate_user(certificates: Path, name: str) -> dict[str, str]:
    """Return the user whom the client certificate NAME.crt stands for."""
    return {
        "client-certificate-data": _inline(certificates / f"{name}.crt"),
        "client-key-data": _inline(certificates / f"{name}.key"),
    }


def token_user(token: str) -> dict[str, str]:
    """Return the user whom a bearer token stands for."""
    return {"token": token}
