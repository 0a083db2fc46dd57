"""TLS for the agent's HTTP pages, and the right to read its metrics.

The metrics have the pods of all tenants. A client shows a certificate or a token to read them. The
pages for health have nothing to hide, and the kubelet shows neither.
"""

from __future__ import annotations

import hmac
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from latencyprobe.process.http_server import Response
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_agent.serving.tls import MetricsTlsFiles, RenewedContext, validity_of

log = logging.getLogger(__name__)

_GUARDED = frozenset({"/metrics"})
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class MetricsAccessFiles:
    """The files of TLS, and the file of a token that opens the metrics."""

    tls: MetricsTlsFiles
    token: Path | None = None


class MetricsAccess:
    """The protection of the HTTP pages. Raises TlsFileError if the files are unusable.

    All files are read again when they change.
    """

    def __init__(
        self, files: MetricsAccessFiles, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._files = files
        self._clock = clock
        self._context = RenewedContext(files.tls)
        self._lines = RepeatedLines(log)

    def context(self) -> ssl.SSLContext:
        """Return the context of the next connection."""
        return self._context.current()

    def refusal(
        self, path: str, headers: Mapping[str, str], certificate: Mapping[str, Any]
    ) -> Response | None:
        """Return the answer to a client that may not read this page; None to the others."""
        is_open = not (self._files.tls.client_ca or self._files.token)
        if path not in _GUARDED or is_open:
            return None
        if self._is_valid(certificate) or self._has_token(headers):
            return None
        text = b"a client certificate or a bearer token is needed\n"
        return Response(text, HTTPStatus.FORBIDDEN)

    def _is_valid(self, certificate: Mapping[str, Any]) -> bool:
        """Return True for a certificate that our CA has signed, and that is valid now.

        A resumed TLS session has the certificate of its first handshake.
        """
        if not certificate:
            return False
        begin, end = validity_of(certificate)
        return begin <= self._clock() < end

    def _has_token(self, headers: Mapping[str, str]) -> bool:
        authorization = headers.get("authorization", "")
        if self._files.token is None or authorization[: len(_BEARER)].lower() != _BEARER:
            return False
        try:
            token = self._files.token.read_bytes().strip()
        except OSError as error:
            self._lines.note("token", f"cannot read {self._files.token}: {error.strerror}")
            return False
        shown = authorization[len(_BEARER) :].strip().encode("latin-1", "replace")
        return bool(token) and hmac.compare_digest(token, shown)
