"""Mutual TLS: the agent's certificate, and the CA of its clients.

The certificates are read again when their files change, so that a renewal (cert-manager, a Secret
that the kubelet updates) needs no restart. A change is used only once key and certificate match.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

# gRPC's protocol inside TLS; its clients insist on the negotiation (RFC 9113, section 3.2).
_HTTP2 = "h2"
_HTTP1 = "http/1.1"


class TlsFileError(Exception):
    """An unusable certificate or key. The message has its file and the reason."""


@dataclass(frozen=True, slots=True)
class ServerTlsFiles:
    """Paths of PEM files: the clients' CA, and the agent's own certificate and key."""

    ca: Path
    certificate: Path
    key: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return self.ca, self.certificate, self.key

    def context(self) -> ssl.SSLContext:
        """Make a context for clients with a certificate of our CA; raise TlsFileError.

        OpenSSL also checks that the certificate is valid now, and for client authentication.
        """
        context = server_context(self.certificate, self.key, self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols([_HTTP2])
        return context


@dataclass(frozen=True, slots=True)
class MetricsTlsFiles:
    """Paths of PEM files: the agent's own certificate and key, and the CA of those who scrape it.

    Without that CA no client certificate is asked for.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))

    def context(self) -> ssl.SSLContext:
        """Make a context; raise TlsFileError.

        A client may have no certificate: the kubelet has none. One of another CA is refused.
        """
        context = server_context(self.certificate, self.key, self.client_ca)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
        context.set_alpn_protocols([_HTTP1])
        return context


class TlsFiles(Protocol):
    """Files of which a context is made."""

    @property
    def certificate(self) -> Path:
        """The server's certificate."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""

    def context(self) -> ssl.SSLContext:
        """Make a context; raise TlsFileError."""


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Make a server's context of TLS 1.2 or newer; raise TlsFileError.

    A resumed session skips the checks of the client's certificate, so no tickets are issued. TLS
    1.2 also resumes by session ID, from a cache in the context that Python's `ssl` cannot turn off.
    So the code that admits clients compares `validity_of` with the clock. A new context has an
    empty cache: no session outlives a change of the authority.
    """
    for path in (client_ca, certificate, key):
        if path is not None:
            _require_readable(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET  # TLS 1.2
    context.num_tickets = 0  # TLS 1.3
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsFileError(f"{client_ca} is not a PEM certificate: {error}") from None
    try:
        # An empty password, so that an encrypted key is an error and not a question.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise TlsFileError(
            f"{key} is not an unencrypted PEM key of the certificate {certificate}: {error}"
        ) from None
    return context


def _require_readable(path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise TlsFileError(f"cannot read {path}: {error.strerror}") from None


class RenewedContext:
    """The context of the current files. Raises TlsFileError if the first ones are unusable."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = self._stamp()
        self._warned: tuple[tuple[int, int], ...] | None = self._stamps
        self._context = files.context()

    def current(self) -> ssl.SSLContext:
        """Return the context of the next connection. Files that do not match change nothing."""
        stamps = self._stamp()
        if stamps != self._stamps:
            try:
                self._context = self._files.context()
            except TlsFileError as error:
                self._warn(stamps, error)
            else:
                self._stamps = stamps
                log.info("certificates renewed from %s", self._files.certificate)
        return self._context

    def _warn(self, stamps: tuple[tuple[int, int], ...] | None, error: TlsFileError) -> None:
        """Log the error once for each change of the files."""
        if stamps != self._warned:
            self._warned = stamps
            log.warning("keeping the old certificates: %s", error)

    def _stamp(self) -> tuple[tuple[int, int], ...] | None:
        try:
            stats = [path.stat() for path in self._files.paths]
            return tuple((each.st_ino, each.st_mtime_ns) for each in stats)
        except OSError:
            return None


def validity_of(certificate: Mapping[str, Any]) -> tuple[float, float]:
    """Return the begin and the end of a verified certificate, in seconds since 1970."""
    begin, end = (ssl.cert_time_to_seconds(certificate[key]) for key in ("notBefore", "notAfter"))
    return begin, end


def names_in(certificate: Mapping[str, Any]) -> frozenset[str]:
    """Return the DNS names of a verified certificate from SSLObject.getpeercert()."""
    return frozenset(name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS")
