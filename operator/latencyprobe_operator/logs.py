"""Log lines on standard error: for people, or as JSON for a collector."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure(*, form: str, level: str) -> None:
    """Send the log of the whole process to standard error, as `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their debug lines hold whole requests, headers included.
    for chatty in ("aiohttp", "asyncio", "kubernetes", "grpc"):
        logging.getLogger(chatty).setLevel(max(logging.INFO, root.level))
    # A line for each look of the kubelet at /healthz.
    logging.getLogger("aiohttp.access").setLevel(max(logging.WARNING, root.level))
    # kopf tells at INFO of every step of its own.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, root.level))
    if root.level <= logging.DEBUG:
        logging.getLogger("kopf").setLevel(logging.INFO)
