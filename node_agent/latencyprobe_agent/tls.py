"""Mutual TLS: the agent's certificate, and who may talk to it.

The certificates are read again when their files change, so that a renewal (cert-manager, a Secret
that the kubelet updates) needs no restart. A change is taken in only once key and certificate fit.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

log = logging.getLogger(__name__)

_SAN = "x509_subject_alternative_name"


class TlsFileError(Exception):
    """A certificate or key that can't be used. The message says which and why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the clients' CA, and the agent's own certificate and key."""

    ca: Path
    certificate: Path
    key: Path

    def read(self) -> TlsMaterial:
        """What is in the files; raises TlsFileError where they can't be used together.

        gRPC would log no more than that a handshake failed, so we look first, with Python's ssl.
        """
        material = TlsMaterial(*(_read_pem(path) for path in (self.ca, self.certificate, self.key)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_verify_locations(self.ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsFileError(f"{self.ca} is no PEM certificate: {error}") from None
        try:
            # An empty password, so that an encrypted key is an error and not a question.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise TlsFileError(
                f"{self.key} is not the PEM key (without password) of the PEM certificate "
                f"{self.certificate}: {error}"
            ) from None
        return material


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """PEM texts."""

    ca: bytes
    certificate: bytes
    key: bytes

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC takes it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.ca)


def _read_pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFileError(f"{path}: {error.strerror}") from None


class _Renewal:
    """Asked by gRPC at each handshake, in one of its threads: the files, if they are new."""

    def __init__(self, files: TlsFiles, current: TlsMaterial) -> None:
        self._files = files
        self._current = current
        self._stamps = self._stamp()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        stamps = self._stamp()
        if stamps == self._stamps:
            return None
        try:
            material = self._files.read()
        except TlsFileError as error:
            log.warning("new certificates are not taken: %s", error)
            return None
        self._stamps = stamps
        if material == self._current:
            return None
        self._current = material
        log.info("certificates renewed from %s", self._files.certificate)
        return material.configuration()

    def _stamp(self) -> tuple[tuple[int, int], ...] | None:
        files = (self._files.ca, self._files.certificate, self._files.key)
        try:
            return tuple((s.st_ino, s.st_mtime_ns) for s in (path.stat() for path in files))
        except OSError:
            return None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that require a client certificate of our CA; raises TlsFileError."""
    material = files.read()
    # None from the fetcher means "no news" (grpc.dynamic_ssl_server_credentials); the types forget.
    fetcher = cast(Callable[[], grpc.ServerCertificateConfiguration], _Renewal(files, material))
    return grpc.dynamic_ssl_server_credentials(
        material.configuration(), fetcher, require_client_authentication=True
    )


def peer_names(auth_context: Mapping[str, Iterable[bytes]]) -> frozenset[str]:
    """The names in the client's (verified) certificate."""
    return frozenset(name.decode("utf-8", "replace") for name in auth_context.get(_SAN, ()))
