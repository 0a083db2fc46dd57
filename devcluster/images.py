"""The tests' own container images: one static program each, as an OCI archive."""

import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tools.images.archive import Image, write_archive, write_tar
from tools.images.components import own_architecture

SOURCES = Path(__file__).parent / "workload"

# The tag is not `latest`, or the kubelet would always want to pull them.
PAUSE_IMAGE = "latencyprobe.test/pause:1"
WORKLOAD_IMAGE = "latencyprobe.test/workload:1"


def compile_static(source: Path, program: Path) -> None:
    """Compile a C file into a program that needs no other file."""
    subprocess.run(
        ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-s", "-o", program, source], check=True
    )


def build_image(reference: str, source: Path, scratch: Path) -> bytes:
    """Return the archive of an image that holds the program of the C file `source` and runs it."""
    root = scratch / "root"
    root.mkdir(parents=True)
    compile_static(source, root / source.stem)
    return pack_image(reference, root, source.stem)


def pack_image(reference: str, root: Path, program: str, *, user: str = "0:0") -> bytes:
    """Return the archive of an image that holds the files in `root` and runs one of them."""
    with tempfile.TemporaryDirectory() as scratch:
        layer = Path(scratch, "files.tar")
        write_tar(root, layer)
        image = Image(
            reference=reference,
            architecture=own_architecture(),
            created=datetime.fromtimestamp(0, UTC),
            layers=[layer],
            entrypoint=[f"/{program}"],
            user=user,
        )
        return write_archive(image, Path(scratch, "image.tar")).path.read_bytes()


def build_test_images() -> list[bytes]:
    """Return the archives of PAUSE_IMAGE and WORKLOAD_IMAGE."""
    archives = []
    with tempfile.TemporaryDirectory() as directory:
        for reference, name in ((PAUSE_IMAGE, "pause"), (WORKLOAD_IMAGE, "workload")):
            archive = build_image(reference, SOURCES / f"{name}.c", Path(directory, name))
            archives.append(archive)
    return archives
