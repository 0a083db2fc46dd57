"""The provenance of built archives: an in-toto statement with SLSA's predicate, version 1.

It says which files came from which commit and which locks. It holds no time, so the same release
has the same statement. tools/sign-release signs it.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.images import sbom, source
from tools.images.components import COMPONENTS, ROOT
from tools.images.errors import ImageError

# docs/security.md describes it.
BUILD_TYPE = "https://latencyprobe.io/build/images/v1"
_REVISION = "org.opencontainers.image.revision"


class ProvenanceError(ImageError):
    """Archives without a provenance that a releaser can sign."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The facts that an archive holds on itself."""

    reference: str
    digest: str
    revision: str


def read_archive(path: Path) -> Archive:
    """Return the facts on an image from its archive."""
    with tarfile.open(path) as tar:
        (entry,) = _json(tar, "./index.json")["manifests"]
        manifest = _json(tar, f"./blobs/{entry['digest'].replace(':', '/')}")
    return Archive(
        reference=entry["annotations"]["org.opencontainers.image.ref.name"],
        digest=entry["digest"],
        revision=manifest["annotations"][_REVISION],
    )


def statement(folder: Path, builder: str) -> dict[str, Any]:
    """Return the statement on all archives in the folder. Raises ProvenanceError.

    `builder`: a URI that names the machine or service of the build.
    """
    archives = sorted(folder.glob("*.tar"))
    if not archives:
        raise ProvenanceError(f"no archives in {folder}; run `make images`")
    images = [read_archive(path) for path in archives]
    revision = _revision(images)
    bills = sorted(folder.glob(f"*{sbom.SUFFIX}"))
    locks = [
        ROOT / "requirements-build.lock",
        *(component.requirements for component in COMPONENTS.values()),
        *(component.containerfile for component in COMPONENTS.values()),
    ]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            *({"name": path.name, "digest": _sha256(path)} for path in (*archives, *bills)),
            *({"name": each.reference, "digest": _digest(each.digest)} for each in images),
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"revision": revision},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": revision}},
                    *(
                        {"name": str(path.relative_to(ROOT)), "digest": _sha256(path)}
                        for path in locks
                    ),
                ],
            },
            "runDetails": {"builder": {"id": builder}},
        },
    }


def _revision(images: Sequence[Archive]) -> str:
    """Return the commit of all images, which must be the checkout's, without changes."""
    revision = source.describe().revision
    if revision == "unknown" or revision.endswith("-dirty"):
        raise ProvenanceError(
            f"the checkout is at {revision}; commit its changes, then run `make images`"
        )
    for image in images:
        if image.revision != revision:
            raise ProvenanceError(
                f"{image.reference} was built from {image.revision}, but the checkout is at "
                f"{revision}; run `make images`"
            )
    return revision


def _json(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    assert file is not None
    return json.load(file)


def _sha256(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(text: str) -> dict[str, str]:
    algorithm, _, value = text.partition(":")
    return {algorithm: value}
