"""The bill of materials of an image, as CycloneDX JSON.

It lists what the layers contain: Debian's packages, the locked Python packages, and our wheel. The
same layers give the same bytes: the serial number is a hash of the content.

It is a file in the image's last layer, so that no push, copy or import loses it. Scanners (Trivy,
Syft) find it there by its name. A copy beside the archive is for `cosign attest`.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    XsUri,
)
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.utils import canonicalize_name

from tools.images.errors import ImageError

FOLDER = Path("usr/share/sbom")
SUFFIX = ".cdx.json"

_OS_RELEASE = re.compile(r"\./usr/lib/os-release")
_DEBIAN = re.compile(r"\./var/lib/dpkg/status\.d/[^/]+")
_PYTHON = re.compile(r"\./usr/local/lib/[^/]+/dist-packages/[^/]+\.dist-info/METADATA")
_PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?P<rest>(?:.*\\\n)+.*)$", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# Of version 5 UUIDs: a namespace of our own (RFC 9562, 5.5).
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "latencyprobe.io")


class SbomError(ImageError):
    """A layer that does not fit its lock."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The inputs of a bill. `layers`: tar files by name; `lock`: of the Python packages."""

    name: str
    version: str
    created: datetime
    layers: Mapping[str, Path]
    lock: Path
    wheel: Path


def bill_of_materials(contents: Contents) -> str:
    """Return the bill as JSON. Raises SbomError."""
    bom = Bom()
    bom.metadata.timestamp = contents.created
    bom.metadata.component = image = Component(
        type=ComponentType.CONTAINER,
        name=contents.name,
        version=contents.version,
        bom_ref=f"image:{contents.name}",
    )
    system = _system(contents.layers["debian"])
    debian = [_debian(each, system) for each in _headers(contents.layers["debian"], _DEBIAN)]
    locked = _locked(contents.lock.read_text())
    found = _headers(contents.layers["dependencies"], _PYTHON)
    python = [_python(each, locked) for each in found]
    ours = _wheel(contents)
    for component in (system, *debian, *python, ours):
        bom.components.add(component)
    bom.register_dependency(image, [system, *debian, ours])
    bom.register_dependency(ours, python)
    bom.serial_number = uuid.UUID(int=0)
    bom.serial_number = uuid.uuid5(_NAMESPACE, _json(bom))
    return _json(bom) + "\n"


def _json(bom: Bom) -> str:
    return JsonV1Dot6(bom).output_as_string(indent=1)


def _files(layer: Path, pattern: re.Pattern[str]) -> Iterator[bytes]:
    """Yield the contents of the layer's files with such paths."""
    with tarfile.open(layer) as tar:
        for member in tar:
            file = tar.extractfile(member) if pattern.fullmatch(member.name) else None
            if file is not None:
                yield file.read()


def _headers(layer: Path, pattern: re.Pattern[str]) -> Iterator[Message]:
    """Yield the descriptions of packages: Debian's and Python's have the form of mail headers."""
    return map(BytesHeaderParser().parsebytes, _files(layer, pattern))


def _system(layer: Path) -> Component:
    (text,) = _files(layer, _OS_RELEASE)
    fields = dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)
    return Component(
        type=ComponentType.OPERATING_SYSTEM,
        name=fields["ID"].strip('"'),
        version=fields["VERSION_ID"].strip('"'),
        bom_ref="system",
    )


def _debian(fields: Message, system: Component) -> Component:
    name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
    source = (fields["Source"] or name).split(" ")[0]
    qualifiers = {"arch": architecture, "distro": f"{system.name}-{system.version}"}
    if source != name:
        qualifiers["upstream"] = source
    purl = PackageURL("deb", system.name, name, version, qualifiers)
    return Component(name=name, version=version, purl=purl, bom_ref=str(purl))


def _python(fields: Message, locked: Mapping[tuple[str, str], tuple[str, ...]]) -> Component:
    name, version = canonicalize_name(fields["Name"]), fields["Version"]
    if (name, version) not in locked:
        raise SbomError(f"{name} {version} is in the image but not in its lock; run `make lock`")
    purl = PackageURL("pypi", None, name, version)
    return Component(
        name=name,
        version=version,
        purl=purl,
        bom_ref=str(purl),
        # pip installed the file with one of these: the one for this architecture.
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION,
                url=XsUri(f"https://pypi.org/project/{name}/{version}/"),
                hashes=map(_sha256, locked[name, version]),
            )
        ],
    )


def _wheel(contents: Contents) -> Component:
    purl = PackageURL("generic", None, "latencyprobe", contents.version)
    return Component(
        name="latencyprobe",
        version=contents.version,
        purl=purl,
        bom_ref=str(purl),
        hashes=[_sha256(hashlib.sha256(contents.wheel.read_bytes()).hexdigest())],
    )


def _locked(lock: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the hashes of a lock by package and version."""
    return {
        (canonicalize_name(pin["name"]), pin["version"]): tuple(_HASH.findall(pin["rest"]))
        for pin in _PIN.finditer(lock)
    }


def _sha256(content: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=content)
