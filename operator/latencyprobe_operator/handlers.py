"""kopf's side: the LatencyProbes of the cluster, and a finalizer that lets agents detach first.

kopf stores nothing of ours: no handler returns a value, and there are no change handlers, which
would write annotations. The little that kopf may store goes into annotations with our prefix.

kopf keeps each object until its next event. Of a LatencyProbe, nearly all is the status, and the
probe has its own copy of that, packed. So the status is taken out of each object that comes in.

kopf runs only in the leader. One that is deposed may still send a patch of a finalizer. That does
no harm: the patch tests the resourceVersion, and the new leader wants the same. If a finalizer is
removed too early, the new leader sees the deletion, and has the agents detach.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import kopf

from latencyprobe.process.tasks import first_to_end
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.kube.cluster import GROUP, PLURAL, VERSION, Cluster
from latencyprobe_operator.release import FINALIZER

_PREFIX = "kopf.latencyprobe.io"
# Time for which a ServiceAccount's bound token counts as current; kubelet renews it hourly.
_TOKEN_S = 300
# Deletion waits in Controller.remove for up to 3 s; kopf is to notice its end at once.
_EXIT_S = 5.0
# A status has 240 KiB, and takes some ten times that once it is decoded.
_PAGE = 20


class EndlessBackoffs:
    """Endless delays between attempts: the API server may be unavailable for an hour."""

    def __iter__(self) -> Iterator[float]:
        """Yield short delays first, then a few seconds each."""
        return itertools.chain((0.3, 1.0, 2.0), itertools.repeat(3.0))


def build_registry(
    controller: Controller, cluster: Cluster, *, scan: bool
) -> kopf.OperatorRegistry:
    """Register the handlers that serve this controller.

    `scan`: kopf follows CRDs and namespaces, which needs the permission to watch them.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(id="start", registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings, scan=scan)
        await controller.start()

    @kopf.on.cleanup(id="stop", registry=registry)
    async def stop(**_: Any) -> None:
        await controller.close()

    @kopf.on.login(id="log in", registry=registry)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        connection = await cluster.connection()
        lifetime = datetime.timedelta(seconds=_TOKEN_S)
        return kopf.ConnectionInfo(
            server=connection.server,
            ca_path=connection.ca_path,
            certificate_path=connection.certificate_path,
            private_key_path=connection.key_path,
            token=connection.token,
            scheme="Bearer" if connection.token else None,
            insecure=connection.insecure,
            expiration=datetime.datetime.now(datetime.UTC) + lifetime if connection.token else None,
        )

    @kopf.on.event(GROUP, VERSION, PLURAL, id="notice", registry=registry)
    async def notice(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
        _take_in(controller, event, memo)

    @kopf.daemon(
        GROUP,
        VERSION,
        PLURAL,
        id="measure",
        registry=registry,
        backoff=5,
        cancellation_polling=2,
    )
    async def measure(
        body: kopf.Body, memo: kopf.Memo, stopped: kopf.DaemonStopped, **_: Any
    ) -> None:
        probe = controller.add({**body, "status": memo.status})
        memo.status = {}
        try:
            await first_to_end(probe.run(), probe.stopped.wait(), stopped.wait())
        except BaseException:
            # kopf calls this again.
            memo.status = probe.status
            controller.abandon(probe)
            raise
        reason = stopped.reason
        if reason and kopf.DaemonStoppingReason.OPERATOR_EXITING in reason:
            controller.abandon(probe)
        else:
            await controller.remove(probe)

    return registry


def _take_in(controller: Controller, event: kopf.RawEvent, memo: kopf.Memo) -> None:
    """Pass an object on, and take its status out. The memo has it until the probe is added."""
    body: dict[str, Any] = {**event["object"]}
    status = event["object"].pop("status", {})
    if event["type"] == "DELETED":
        controller.vanish(body)
    elif not body["metadata"].get("deletionTimestamp"):
        if not controller.serves(body):
            memo.status = status
        controller.update(body)


class _DiffBase(kopf.AnnotationsDiffBaseStorage):
    """kopf's comparison of an object with the one before, without a copy of the status."""

    def build(
        self, *, body: kopf.Body, extra_fields: Iterable[kopf.FieldSpec] | None = None
    ) -> kopf.BodyEssence:
        """Return a copy of the parts to compare. kopf would copy the status too, to drop it."""
        rest = {key: value for key, value in body.items() if key != "status"}
        return super().build(body=kopf.Body(cast(kopf.RawBody, rest)), extra_fields=extra_fields)


def _configure(settings: kopf.OperatorSettings, *, scan: bool) -> None:
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = not scan
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=_PREFIX)
    settings.persistence.diffbase_storage = _DiffBase(prefix=_PREFIX)
    settings.watching.chunk_size = _PAGE
    settings.watching.server_timeout = 290
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 0.5
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = EndlessBackoffs()
    settings.background.instant_exit_timeout = _EXIT_S
    settings.process.ultimate_exiting_timeout = 30
