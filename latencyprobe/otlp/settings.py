"""The settings of the push, as options give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

DEFAULT_INTERVAL_S = 30.0


class OtlpEndpoint(NamedTuple):
    """The host and the port of a collector."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class OtlpTlsFiles:
    """PEM files: the collector's CA, and the certificate that the collector asks for, if any."""

    ca: Path | None = None
    """None: the public authorities that gRPC has."""
    certificate: Path | None = None
    key: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return tuple(path for path in (self.ca, self.certificate, self.key) if path is not None)


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """All settings. `tls`: None for a connection without TLS."""

    endpoint: OtlpEndpoint
    tls: OtlpTlsFiles | None = field(default_factory=OtlpTlsFiles)
    headers: Path | None = None
    """A file of headers, one a line. They are secrets."""
    interval_s: float = DEFAULT_INTERVAL_S
    attributes: Mapping[str, str] = field(default_factory=dict)
    """More attributes of the process's resource."""
