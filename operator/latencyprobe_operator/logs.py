"""The operator's log, without what its libraries say of their own steps."""

from __future__ import annotations

import logging

from latencyprobe.process import logs


def configure(*, form: str, level: str) -> None:
    """Send the log of the whole process to standard error, as `text` or `json`."""
    logs.configure(form=form, level=level)
    root = logging.getLogger()
    # Their debug lines hold whole requests, headers included.
    for chatty in ("aiohttp", "asyncio", "kubernetes", "grpc"):
        logging.getLogger(chatty).setLevel(max(logging.INFO, root.level))
    # kopf logs every step of its own at INFO.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, root.level))
    if root.level <= logging.DEBUG:
        logging.getLogger("kopf").setLevel(logging.INFO)
