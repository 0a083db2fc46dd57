"""Images as OCI archives, which `ctr images import`, podman and docker load.

umoci makes the image: it is Debian's and Ubuntu's, small, and needs neither privileges nor a store
of images. An archive is the tar file of the image's layout. We add the names by which containerd
and docker identify an image, since umoci adds only tags.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tools.images.errors import ImageError

_TAG = "image"


class ArchiveError(ImageError):
    """An image that could not be written."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image. `layers` are tar files; `architecture` is OCI's name of it."""

    reference: str
    architecture: str
    created: datetime
    layers: Sequence[Path]
    entrypoint: Sequence[str]
    user: str = "0:0"
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """An archive. `digest`: of the image's manifest; `layer_bytes`: of the compressed layers."""

    path: Path
    digest: str
    layer_bytes: int


def write_tar(folder: Path, tar: Path, *, modified: int = 0) -> None:
    """Write the folder as a layer: the same bytes for the same files."""
    command = ["tar", "--create", f"--file={tar}", "--sort=name", f"--mtime=@{modified}"]
    command += ["--owner=0", "--group=0", "--numeric-owner", "--format=posix"]
    # The headers that would hold times of access, and the name of the process.
    command += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"]
    subprocess.run([*command, f"--directory={folder}", "."], check=True)


def write_archive(image: Image, archive: Path) -> Written:
    """Write the image as an OCI archive: the same bytes for the same image."""
    with tempfile.TemporaryDirectory() as scratch:
        layout = Path(scratch, "layout")
        _umoci("init", f"--layout={layout}")
        _umoci("new", f"--image={layout}:{_TAG}")
        _configure(image, layout)
        for layer in image.layers:
            _add_layer(image, layout, layer)
        _umoci("gc", f"--layout={layout}")  # remove the blobs that the earlier steps replaced
        written = _name(image.reference, layout / "index.json")
        unfinished = archive.with_suffix(".unfinished")
        write_tar(layout, unfinished)
        unfinished.rename(archive)
        manifest = json.loads(_blob(layout, written).read_bytes())
        return Written(archive, written, sum(layer["size"] for layer in manifest["layers"]))


def _configure(image: Image, layout: Path) -> None:
    pairs = [("env", f"{name}={value}") for name, value in image.environment.items()]
    pairs += [("label", f"{name}={value}") for name, value in image.labels.items()]
    pairs += [("entrypoint", word) for word in image.entrypoint]
    settings = [f"--config.{name}={value}" for name, value in [("user", image.user), *pairs]]
    # OCI's labels are annotations of the manifest as well, where registries show them.
    settings += [f"--manifest.annotation={name}={value}" for name, value in image.labels.items()]
    _umoci(
        "config",
        f"--image={layout}:{_TAG}",
        "--no-history",
        f"--created={_rfc3339(image.created)}",
        "--author=",
        "--os=linux",
        f"--architecture={image.architecture}",
        *settings,
    )


def _add_layer(image: Image, layout: Path, layer: Path) -> None:
    _umoci(
        "raw",
        "add-layer",
        f"--image={layout}:{_TAG}",
        f"--history.created={_rfc3339(image.created)}",
        f"--history.created_by={layer.stem}",
        "--history.author=",
        str(layer),
    )


def _name(reference: str, index_file: Path) -> str:
    """Name the image in the index; return the digest of its manifest."""
    index = json.loads(index_file.read_text())
    (manifest,) = index["manifests"]
    manifest["annotations"] = {
        "io.containerd.image.name": reference,  # ctr, docker
        "org.opencontainers.image.ref.name": reference,  # podman, skopeo
    }
    index_file.write_text(json.dumps(index))
    digest: str = manifest["digest"]
    return digest


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _umoci(*arguments: str) -> None:
    try:
        answer = subprocess.run(["umoci", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ArchiveError("umoci is not installed; run tools/setup-system images") from None
    if answer.returncode:
        raise ArchiveError(f"umoci {' '.join(arguments)}:\n{answer.stderr.strip()}")
