"""The operator's TLS credentials, read from files that another program renews."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

Credentials = Callable[[], grpc.ChannelCredentials]
"""Reads the files; returns the same object for the same contents. Raises OSError."""


class CredentialsError(Exception):
    """The operator's own certificate, key or CA cannot be used."""


@dataclass(frozen=True, slots=True)
class ClientTlsFiles:
    """The operator's certificate, its key, and the CA that signed the agents' certificates."""

    ca: Path
    certificate: Path
    key: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files now, so that renewed ones serve the next connection; raises OSError."""
        return _credentials(
            self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
        )


@functools.lru_cache(maxsize=2)
def _credentials(ca: bytes, key: bytes, certificate: bytes) -> grpc.ChannelCredentials:
    """Parse the files once, for all connections."""
    return grpc.ssl_channel_credentials(
        root_certificates=ca, private_key=key, certificate_chain=certificate
    )
