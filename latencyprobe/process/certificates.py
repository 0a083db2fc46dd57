"""The validity of a certificate in a PEM file, without a library for that: images have none."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BEGIN = "-----BEGIN CERTIFICATE-----"
_EXPLICIT_0 = 0xA0
_UTC_TIME = 0x17
_LONG = 0x80


class Validity(NamedTuple):
    """The time in which a certificate is valid, in seconds since 1970."""

    end: float
    begin: float


def first_to_end(path: Path) -> Validity | None:
    """Return the validity of a certificate in a file; of several, of the one that ends first.

    None: there is no file, or no certificate in it.
    """
    try:
        text = path.read_text()
        found = [_validity_of(ssl.PEM_cert_to_DER_cert(pem)) for pem in _certificates(text)]
    except (OSError, ValueError, IndexError):
        return None
    return min(found, default=None)


def _certificates(text: str) -> Iterator[str]:
    for part in text.split(_BEGIN)[1:]:
        body, end, _ = part.partition("-----END CERTIFICATE-----")
        if end:
            yield f"{_BEGIN}{body}{end}\n"


def _validity_of(der: bytes) -> Validity:
    """Return the validity (RFC 5280, section 4.1)."""
    (_, certificate), *_ = _elements(der)
    (_, unsigned), *_ = _elements(certificate)
    fields = [each for each in _elements(unsigned) if each[0] != _EXPLICIT_0]
    # serial number, signature, issuer, validity
    begin, end = (_time(tag, content) for tag, content in _elements(fields[3][1]))
    return Validity(end, begin)


def _time(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    time = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
    return time.timestamp()


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and the content of each element in a row."""
    place = 0
    while place < len(data):
        tag, length = data[place], data[place + 1]
        place += 2
        if length & _LONG:
            size = length & ~_LONG
            length = int.from_bytes(data[place : place + size], "big")
            place += size
        yield tag, data[place : place + length]
        place += length
