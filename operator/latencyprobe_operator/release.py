"""`latencyprobe release-probes`: removes the operator's finalizer from remaining LatencyProbes.

The finalizer delays the deletion of a LatencyProbe until the operator has detached the agents.
After the operator is gone for good, the probe and its namespace could never be deleted. The agents
need no message: a lease ends the measurement for an operator that has disconnected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from kubernetes.aio.config import ConfigException

from latencyprobe_operator import logs
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError, Cluster

log = logging.getLogger(__name__)

# The finalizer that kopf adds to each probe (handlers.py).
FINALIZER = "latencyprobe.io/detach"
_ATTEMPTS = 10
_REST_S = 1.0


class NotReleasedError(Exception):
    """Probes whose finalizer an operator adds again."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(
            f"cannot remove the finalizer {FINALIZER} of {', '.join(names)}: a running operator "
            "adds it again; stop the operator first"
        )


async def release_probes(cluster: Cluster, namespaces: Sequence[str] = ()) -> int:
    """Remove the finalizer from all probes, of these namespaces or of all; return their number.

    Repeats until no probe has it, since an operator that is just ending may add it again. Raises
    NotReleasedError, and ApiError or one of `cluster.UNAVAILABLE` if the API server refuses.
    """
    released: set[str] = set()
    held: list[dict[str, Any]] | None = []
    for _ in range(_ATTEMPTS):
        held = await _held(cluster, namespaces)
        if held is None:
            await asyncio.sleep(_REST_S)
            continue
        if not held:
            return len(released)
        for body in held:
            await _release(cluster, body)
            released.add(body["metadata"]["uid"])
        await asyncio.sleep(_REST_S)
    if held is None:
        log.info("the API server does not serve LatencyProbes: without a CRD there are none")
        return len(released)
    raise NotReleasedError([_name(body) for body in held])


async def _held(cluster: Cluster, namespaces: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the probes that have the finalizer; None if the API server does not serve probes."""
    everywhere: list[str | None] = [None]
    try:
        probes = [
            body
            for namespace in namespaces or everywhere
            for body in await cluster.list_probes(namespace)
        ]
    except ApiError as error:
        if error.status == 404:
            return None  # no CRD (any more), or an API server that starts
        raise
    return [body for body in probes if FINALIZER in body["metadata"].get("finalizers", ())]


async def _release(cluster: Cluster, body: dict[str, Any]) -> None:
    metadata = body["metadata"]
    kept = [finalizer for finalizer in metadata["finalizers"] if finalizer != FINALIZER]
    # With the version, so that a finalizer added by another client since then is not lost.
    patch = {"metadata": {"finalizers": kept, "resourceVersion": metadata["resourceVersion"]}}
    try:
        await cluster.patch_probe(metadata["namespace"], metadata["name"], patch)
    except ApiError as error:
        if error.status not in (404, 409):  # it has gone, or has changed: the next list shows
            raise
    else:
        log.info("%s: released", _name(body))


def _name(body: dict[str, Any]) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


async def _run(kubeconfig: Path | None, namespaces: Sequence[str]) -> int:
    cluster = await Cluster.connect(kubeconfig)
    try:
        return await release_probes(cluster, namespaces)
    finally:
        await cluster.close()


@click.command("release-probes", context_settings={"auto_envvar_prefix": "LATENCYPROBE"})
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Kubeconfig of the cluster. Default: the cluster this runs in, else $KUBECONFIG.",
)
@click.option(
    "--watch-namespace",
    "namespaces",
    multiple=True,
    help="Release only the LatencyProbes of this namespace; repeatable. Default: all.",
)
def release_command(kubeconfig: Path | None, namespaces: tuple[str, ...]) -> None:
    """Remove the finalizers of LatencyProbes after the operator is gone.

    Helm runs this after an uninstall. Run it by hand if a LatencyProbe, or a namespace with one,
    cannot be deleted because the operator is gone.
    """
    logs.configure(form="text", level="info")
    try:
        count = asyncio.run(_run(kubeconfig, namespaces))
    except ConfigException as error:
        raise click.ClickException(f"cannot find a cluster: {error}") from error
    except (ApiError, NotReleasedError) as error:
        raise click.ClickException(str(error)) from error
    except UNAVAILABLE as error:
        raise click.ClickException(f"cannot reach the API server: {error}") from error
    click.echo(f"{count} LatencyProbe(s) released")
