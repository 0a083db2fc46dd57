"""The layers of an image, each a folder with the layout of a root file system.

The order is Debian's packages, the locked Python packages, the project. The most stable one comes
first, so that a new version of ours is a small download. Making them runs nothing of the image, so
any machine can make them for any architecture.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools import debian
from tools.images.components import ARCHITECTURES, PYTHON, SITE_PACKAGES, SUITE, Component
from tools.images.errors import ImageError

# In the order in which they lie upon each other.
LAYERS = ("debian", "dependencies", "project")
# Of all files: a file's time must not depend on the time of the build.
MODIFIED = 0
# glibc of SUITE is 2.36; wheels say which they need at least (PEP 600), from manylinux2014 on.
_GLIBC_VERSIONS = range(17, 37)

# base-passwd makes these with scripts. Most images without a shell run as 65532.
ACCOUNTS = """\
root:x:0:0:root:/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
latencyprobe:x:65532:65532:latencyprobe:/nonexistent:/usr/sbin/nologin
"""
GROUPS = """\
root:x:0:
nogroup:x:65534:
latencyprobe:x:65532:
"""
# Debian's are links from /bin to usr/bin and so on; its packages of bookworm have files in both.
_MERGED = ("bin", "sbin", "lib", "lib64")

_COMMAND = """\
#!/usr/bin/python3
from latencyprobe.commands.cli import main

main(prog_name="latencyprobe")
"""


class LayerError(ImageError):
    """A layer whose files could not be made."""


def lay(name: str, component: Component, architecture: str, wheel: Path, root: Path) -> None:
    """Fill the empty folder `root` with the layer. Raises DebianError or LayerError."""
    if name == "debian":
        lay_debian(component, architecture, root)
    elif name == "dependencies":
        lay_dependencies(component, architecture, root)
    elif name == "project":
        lay_project(component, wheel, root)
    else:
        raise LayerError(f"unknown layer {name!r}; choose one of {', '.join(LAYERS)}")
    settle(root)


def lay_debian(component: Component, architecture: str, root: Path) -> None:
    """Fill Debian's layer, with the effects of the packages' scripts. Raises DebianError."""
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    with tempfile.TemporaryDirectory() as scratch:
        apt = debian.Apt(Path(scratch), debian.release_with_updates(SUITE), architecture)
        apt.update()
        for package in apt.download(component.debian_packages):
            _unpack(package, root)
    _keep_only_copyrights(root / "usr/share/doc")
    _remove(root, component.unused_of_debian)
    (root / "etc/passwd").write_text(ACCOUNTS)
    (root / "etc/group").write_text(GROUPS)


def lay_dependencies(component: Component, architecture: str, root: Path) -> None:
    """Install the packages of the component's lock, with their hashes. Raises LayerError."""
    requirements = ["--require-hashes", "--requirement", str(component.requirements)]
    _pip_install(requirements, architecture, root / SITE_PACKAGES)
    _remove(root / SITE_PACKAGES, component.unused_dependencies)


def lay_project(component: Component, wheel: Path, root: Path) -> None:
    """Install the project's wheel and its command. Raises LayerError."""
    name = wheel.name.split("-")[0]
    # By its name: of a file pip would note the path.
    requirements = ["--no-index", "--find-links", str(wheel.parent), name]
    _pip_install(requirements, "amd64", root / SITE_PACKAGES)  # it has no compiled code
    _remove(root / SITE_PACKAGES, {*component.unused_dependencies, *component.unused_modules})
    command = root / "usr/local/bin/latencyprobe"
    command.parent.mkdir(parents=True)
    command.write_text(_COMMAND)
    command.chmod(0o755)


def settle(root: Path) -> None:
    """Set times and permissions, which depend on the time and user of the build."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in [*files, *folders]:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.utime(path, (MODIFIED, MODIFIED), follow_symlinks=False)
    root.chmod(0o755)
    os.utime(root, (MODIFIED, MODIFIED))


def _unpack(package: Path, root: Path) -> None:
    """Unpack its files, and its description for scanners of images without dpkg."""
    # Not `dpkg-deb --extract`: it replaces the links that merge /lib and /usr/lib by folders.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as files:
        extract = ["tar", "--extract", "--keep-directory-symlink", f"--directory={root}"]
        subprocess.run(extract, stdin=files.stdout, check=True)
    if files.returncode:
        raise LayerError(f"cannot unpack {package.name}: dpkg-deb exited with {files.returncode}")
    fields = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, check=True)
    description = root / "var/lib/dpkg/status.d" / package.name.split("_")[0]
    description.parent.mkdir(parents=True, exist_ok=True)
    description.write_bytes(fields.stdout)


def _keep_only_copyrights(documentation: Path) -> None:
    for folder in documentation.iterdir():
        if folder.is_symlink():
            continue
        for path in folder.iterdir():
            if path.name != "copyright":
                _delete(path)


def _remove(root: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # or inside a folder that was deleted before it


def _pip_install(requirements: Sequence[str], architecture: str, folder: Path) -> None:
    machine = ARCHITECTURES[architecture]
    command = [sys.executable, "-I", "-m", "pip", "install", "--quiet", "--target", str(folder)]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", "--root-user-action=ignore"]
    command += ["--implementation=cp", f"--python-version={PYTHON}"]
    command += [f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
    command += [f"--platform=manylinux_2_{minor}_{machine}" for minor in _GLIBC_VERSIONS]
    command += [f"--platform=manylinux2014_{machine}"]
    answer = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise LayerError(f"pip install {' '.join(requirements)}:\n{answer.stderr.strip()}")
