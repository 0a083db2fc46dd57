"""Container images without a registry: one static program each, as an OCI archive.

An archive is a tar file in the OCI image layout. `ctr images import` reads it.
"""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "workload"

# The tag is not `latest`, or the kubelet would always want to pull them.
PAUSE_IMAGE = "latencyprobe.test/pause:1"
WORKLOAD_IMAGE = "latencyprobe.test/workload:1"

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

OCI = "application/vnd.oci.image"


def compile_static(source: Path, program: Path) -> None:
    """Compiles a C file into a program that needs no other file."""
    subprocess.run(
        ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-s", "-o", program, source], check=True
    )


def build_image(reference: str, program: Path, *, arguments: Sequence[str] = ()) -> bytes:
    """The archive of an image that holds `program` as /NAME and runs it."""
    layer = _tar({program.name: program.read_bytes()}, mode=0o755)
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}", *arguments]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    config_blob = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": _descriptor(f"{OCI}.config.v1+json", config_blob),
        "layers": [_descriptor(f"{OCI}.layer.v1.tar", layer)],
    }
    manifest_blob = json.dumps(manifest).encode()
    name = {"annotations": {"io.containerd.image.name": reference}}
    manifests = [{**_descriptor(f"{OCI}.manifest.v1+json", manifest_blob), **name}]
    blobs = (layer, config_blob, manifest_blob)
    return _tar(
        {
            "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode(),
            "index.json": json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(),
            **{f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}": blob for blob in blobs},
        },
        mode=0o644,
    )


def build_test_images() -> list[bytes]:
    """The archives of PAUSE_IMAGE and WORKLOAD_IMAGE."""
    archives = []
    with tempfile.TemporaryDirectory() as directory:
        for reference, name in ((PAUSE_IMAGE, "pause"), (WORKLOAD_IMAGE, "workload")):
            program = Path(directory) / name
            compile_static(SOURCES / f"{name}.c", program)
            archives.append(build_image(reference, program))
    return archives


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
