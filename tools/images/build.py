"""`make images`: the images of this checkout as OCI archives, without any image registry.

Layers that take long are kept in the cache, under a hash of their inputs. Debian's newest versions
are not part of that hash: delete the folder to fetch them.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cache import cache_directory, one_at_a_time
from tools.images import archive, components, containerfile, layers, sbom, source
from tools.images.components import COMPONENTS, Component
from tools.progress import Say

# Engines and the kubelet expand the chart's `latencyprobe-operator`, a name without a registry, to
# this.
_NO_REGISTRY = "docker.io/library"


@dataclass(frozen=True, slots=True)
class Built:
    """An image that was built. `sbom`: its bill of materials, beside the archive."""

    reference: str
    path: Path
    sbom: Path
    digest: str
    compressed_bytes: int
    uncompressed_bytes: int


def reference(component: Component, version: str) -> str:
    """Return the image's name in an engine that loads the archive."""
    return f"{_NO_REGISTRY}/latencyprobe-{component.name}:{version}"


def archive_name(component: Component, architecture: str) -> str:
    """Return the file name of the archive."""
    return f"latencyprobe-{component.name}-{architecture}.tar"


def sbom_name(component: Component, architecture: str) -> str:
    """Return the file name of the bill of materials beside the archive."""
    return f"latencyprobe-{component.name}-{architecture}{sbom.SUFFIX}"


def build(
    names: Sequence[str],
    architecture: str,
    destination: Path,
    say: Say,
    *,
    cache: Path | None = None,
) -> list[Built]:
    """Build the images of these components, as archives in `destination`."""
    kept = (cache or cache_directory()) / "images"
    destination.mkdir(parents=True, exist_ok=True)
    with (
        one_at_a_time(kept / "lock"),
        tempfile.TemporaryDirectory(dir=kept, prefix="unfinished-") as scratch,
    ):
        builder = _Builder(architecture, kept, Path(scratch), say)
        wheel = source.build_wheel(Path(scratch))
        return [builder.build(COMPONENTS[name], wheel, destination) for name in names]


class _Builder:
    """The shared state of the images of one build."""

    def __init__(self, architecture: str, kept: Path, scratch: Path, say: Say) -> None:
        self._architecture = architecture
        self._kept = kept
        self._scratch = scratch
        self._say = say
        self._source = source.describe()

    def build(self, component: Component, wheel: Path, destination: Path) -> Built:
        """Build one image."""
        created = self._source.created
        config = containerfile.read(
            component.containerfile,
            {
                "VERSION": self._source.version,
                "REVISION": self._source.revision,
                "CREATED": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
        )
        tars = {name: self._layer(name, component, wheel) for name in config.layers}
        path = destination / archive_name(component, self._architecture)
        bill = destination / sbom_name(component, self._architecture)
        bill.write_text(self._bill_of_materials(component, tars, wheel))
        tars["sbom"] = self._layer_of_bill(component, bill)
        image = archive.Image(
            reference=reference(component, self._source.version),
            architecture=self._architecture,
            created=created,
            layers=list(tars.values()),
            entrypoint=config.entrypoint,
            user=config.user,
            environment=config.environment,
            labels=config.labels,
        )
        written = archive.write_archive(image, path)
        uncompressed = sum(tar.stat().st_size for tar in tars.values())
        return Built(image.reference, path, bill, written.digest, written.layer_bytes, uncompressed)

    def _bill_of_materials(
        self, component: Component, tars: Mapping[str, Path], wheel: Path
    ) -> str:
        return sbom.bill_of_materials(
            sbom.Contents(
                name=f"latencyprobe-{component.name}",
                version=self._source.version,
                created=self._source.created,
                layers=tars,
                lock=component.requirements,
                wheel=wheel,
            )
        )

    def _layer_of_bill(self, component: Component, bill: Path) -> Path:
        """Return a layer with this file alone."""
        root = self._scratch / component.name / "sbom"
        (root / sbom.FOLDER).mkdir(parents=True)
        shutil.copyfile(bill, root / sbom.FOLDER / f"latencyprobe-{component.name}{sbom.SUFFIX}")
        layers.settle(root)
        tar = self._scratch / component.name / "sbom.tar"
        archive.write_tar(root, tar)
        return tar

    def _layer(self, name: str, component: Component, wheel: Path) -> Path:
        """Return the layer's tar file from the cache; make it if it is missing."""
        kept = self._kept / self._key(name, component, wheel) / f"{name}.tar"
        if not kept.exists():
            started = time.monotonic()
            root = self._scratch / component.name / name
            root.mkdir(parents=True)
            layers.lay(name, component, self._architecture, wheel, root)
            unfinished = self._scratch / f"{name}.tar"
            archive.write_tar(root, unfinished)
            self._forget(name, component)
            kept.parent.mkdir(parents=True)
            unfinished.rename(kept)
            self._say(f"{component.name}: {name} made in {time.monotonic() - started:.0f} s")
        return kept

    def _key(self, name: str, component: Component, wheel: Path) -> str:
        """Return a hash over all inputs of the layer."""
        inputs = [Path(components.__file__), Path(layers.__file__)]
        if name != "debian":
            inputs.append(wheel if name == "project" else component.requirements)
        contents = hashlib.sha256()
        for path in inputs:
            contents.update(hashlib.sha256(path.read_bytes()).digest())
        return f"{self._stem(name, component)}-{contents.hexdigest()[:16]}"

    def _forget(self, name: str, component: Component) -> None:
        """Delete the layers of older inputs: the cache keeps one of each."""
        for folder in self._kept.glob(f"{self._stem(name, component)}-*"):
            shutil.rmtree(folder)

    def _stem(self, name: str, component: Component) -> str:
        return f"{component.name}-{name}-{self._architecture}"
