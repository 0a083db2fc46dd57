"""The push as a block of a process. The messages of OTLP are imported only if it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from latencyprobe.otlp.resources import ProcessResource
from latencyprobe.otlp.settings import OtlpSettings

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def pushed(
    settings: OtlpSettings | None, registry: CollectorRegistry, service: str
) -> AsyncIterator[None]:
    """Push the metrics of a registry for the time of the block, or do nothing without settings.

    Raises OtlpFileError.
    """
    if settings is None:
        yield
        return
    # 2.5 MiB, for those who push.
    from latencyprobe.otlp.client import OtlpClient  # noqa: PLC0415
    from latencyprobe.otlp.encoding import Encoder  # noqa: PLC0415
    from latencyprobe.otlp.pusher import OtlpPusher  # noqa: PLC0415

    client = OtlpClient(settings)
    encoder = Encoder(ProcessResource.make(service, settings.attributes))
    pusher = OtlpPusher(client, registry, encoder, interval_s=settings.interval_s)
    log.info("pushing metrics by OTLP to %s every %g s", settings.endpoint, settings.interval_s)
    task = asyncio.create_task(pusher.run(), name="OTLP")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await pusher.flush()
        await client.close()
