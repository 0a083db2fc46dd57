"""The files of the push: TLS, and headers. No message has a part of a header."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from pathlib import Path

import grpc

from latencyprobe.otlp.settings import OtlpSettings, OtlpTlsFiles

Headers = tuple[tuple[str, str], ...]
Stamps = tuple[tuple[int, int] | None, ...]

# Names that gRPC takes of a client; `-bin` ones are of bytes, and `grpc-` ones are its own.
_NAME = re.compile(r"(?!grpc-)[a-z0-9_.-]+(?<!-bin)")
_RESERVED = frozenset({"content-type", "te", "user-agent"})
_VALUE = re.compile(r"[\x20-\x7e]+")


class OtlpFileError(Exception):
    """An unusable file. The message has its path and the reason, and nothing of its contents."""


def check_files(settings: OtlpSettings) -> None:
    """Raise OtlpFileError if the files of these settings are unusable."""
    if settings.tls is not None:
        _check(settings.tls)
    if settings.headers is not None:
        read_headers(settings.headers)


def stamps(paths: Iterable[Path]) -> Stamps:
    """Return values that change with the files; a Secret's new file takes the place of the old."""
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def read_headers(path: Path) -> Headers:
    """Return the headers of a file; raise OtlpFileError."""
    try:
        lines = _read(path).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise OtlpFileError(f"{path} has bytes that are not ASCII; encode such values") from None
    headers = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            headers.append(_header(text, f"{path}, line {number}"))
    return tuple(headers)


def _header(text: str, place: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip().lower(), value.strip()
    if not colon or not _VALUE.fullmatch(value):
        raise OtlpFileError(f"{place} is no header; write NAME: VALUE, in printable ASCII")
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise OtlpFileError(
            f"{place} has a name that gRPC does not take; use letters, digits, '_', '-' and '.'. "
            f"Reserved are grpc-*, *-bin, {', '.join(sorted(_RESERVED))}"
        )
    return name, value


def channel_credentials(files: OtlpTlsFiles) -> grpc.ChannelCredentials:
    """Return the credentials in these files; raise OtlpFileError."""
    _check(files)
    return grpc.ssl_channel_credentials(
        root_certificates=_read(files.ca) if files.ca else None,
        private_key=_read(files.key) if files.key else None,
        certificate_chain=_read(files.certificate) if files.certificate else None,
    )


def _check(files: OtlpTlsFiles) -> None:
    """Raise OtlpFileError where gRPC would fail later, without the name of the file."""
    for path in files.paths:
        _read(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if files.ca is not None:
        try:
            context.load_verify_locations(files.ca)
        except (ssl.SSLError, OSError) as error:
            raise OtlpFileError(f"{files.ca} is not a PEM certificate: {error}") from None
    if files.certificate is not None and files.key is not None:
        try:
            # An empty password, so that an encrypted key is an error and not a question.
            context.load_cert_chain(files.certificate, files.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise OtlpFileError(
                f"{files.key} is not an unencrypted PEM key of the certificate "
                f"{files.certificate}: {error}"
            ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OtlpFileError(f"cannot read {path}: {error.strerror}") from None
