"""Runs what is in an image as a container runtime does: with runc, its root file system read-only.

No cluster is needed for that; pods of the images are the business of the tests with one.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OCI_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Mount:
    """A folder of this machine, seen in the container."""

    source: Path
    destination: str
    writable: bool = False

    def as_oci(self) -> Mapping[str, object]:
        options = ["rbind", "rw" if self.writable else "ro"]
        folders = {"source": str(self.source), "destination": self.destination}
        return {"type": "bind", "options": options, **folders}


@dataclass(frozen=True)
class Privileges:
    """What a container may beyond a process that may nothing."""

    capabilities: Sequence[str] = ()
    mounts: Sequence[Mount] = field(default=())
    sees_all_processes: bool = False


class UnpackedImage:
    """An OCI archive, unpacked for runc into an empty folder."""

    def __init__(self, archive: Path, folder: Path, runc: str) -> None:
        self._layout, self.bundle, self._runc = folder / "layout", folder / "bundle", runc
        self._state = folder / "runc"
        self._layout.mkdir()
        extract = ["tar", "--extract", f"--file={archive}", f"--directory={self._layout}"]
        subprocess.run(extract, check=True)
        index = json.loads((self._layout / "index.json").read_text())
        (self.descriptor,) = index["manifests"]
        self.reference: str = self.descriptor["annotations"][OCI_NAME]
        image = f"--image={self._layout}:{self.reference}"
        subprocess.run(["umoci", "unpack", image, str(self.bundle)], check=True)
        self._made = (self.bundle / "config.json").read_text()

    @property
    def root(self) -> Path:
        return self.bundle / "rootfs"

    @property
    def manifest(self) -> Any:
        return self._blob(self.descriptor["digest"])

    @property
    def configuration(self) -> Any:
        """What the image's author says of it."""
        return self._blob(self.manifest["config"]["digest"])

    def run(
        self, *arguments: str, entrypoint: Sequence[str] = (), privileges: Privileges = Privileges()
    ) -> subprocess.CompletedProcess[str]:
        """Runs it to its end, with these arguments behind its entry point, or another one."""
        with self._container([*entrypoint, *arguments], bool(entrypoint), privileges) as command:
            return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    @contextmanager
    def running(
        self, *arguments: str, privileges: Privileges, log: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Its process in the background; runc hands it the signals that it gets itself."""
        with (
            self._container(arguments, False, privileges) as command,
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def _container(
        self, arguments: Sequence[str], replace: bool, privileges: Privileges
    ) -> Iterator[Sequence[str]]:
        """The command that runs a container. Nothing of that is left afterwards."""
        config = json.loads(self._made)
        config["process"]["args"] = [*([] if replace else config["process"]["args"]), *arguments]
        _restrict(config, privileges)
        (self.bundle / "config.json").write_text(json.dumps(config))
        name = f"latencyprobe-{self.bundle.parent.name}"
        runc = [self._runc, "--root", str(self._state)]
        try:
            yield [*runc, "run", "--bundle", str(self.bundle), name]
        finally:
            subprocess.run([*runc, "delete", "--force", name], check=False, capture_output=True)

    def _blob(self, digest: str) -> Any:
        return json.loads((self._layout / "blobs" / digest.replace(":", "/")).read_text())


def _restrict(config: dict[str, Any], privileges: Privileges) -> None:
    """As the chart does: nothing may be written but /tmp, and nothing done but what is allowed."""
    config["root"]["readonly"] = True
    process = config["process"]
    process["terminal"] = False
    sets = ("bounding", "effective", "permitted") if privileges.capabilities else ()
    process["capabilities"] = {name: list(privileges.capabilities) for name in sets}
    config["mounts"] = [
        *(mount for mount in config["mounts"] if mount["destination"] != "/sys/fs/cgroup"),
        {"type": "tmpfs", "source": "tmpfs", "destination": "/tmp", "options": ["mode=1777"]},
        *(mount.as_oci() for mount in privileges.mounts),
    ]
    if privileges.sees_all_processes:
        namespaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [one for one in namespaces if one["type"] != "pid"]
