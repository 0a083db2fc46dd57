"""The programs a cluster is made of: found on this machine, or else built or unpacked.

Kubernetes is compiled from the Go module that k8s-binaries/go.mod pins. etcd, containerd, runc and
the CNI plugins are Debian's. Their packages are unpacked into the cache and not installed: nothing
of the machine changes, and no service of theirs is ever started.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cache import cache_directory
from tools.go_programs import GoModule, MissingProgramsError, one_at_a_time
from tools.progress import Say

KUBERNETES_MODULE = GoModule(
    name="kubernetes",
    directory=Path(__file__).parent / "k8s-binaries",
    path="k8s.io/kubernetes",
    package_prefix="k8s.io/kubernetes/cmd/",
)
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")

DEBIAN_PACKAGES = {  # program: package
    "etcd": "etcd-server",
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "bridge": "containernetworking-plugins",
    "host-local": "containernetworking-plugins",
    "loopback": "containernetworking-plugins",
}
CNI_PLUGINS = ("bridge", "host-local", "loopback")
CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))

TOOLS = {  # program: package, of what is used as it is
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "gcc": "gcc",
}


@dataclass(frozen=True)
class Programs:
    """Paths of the programs, by name, and the directory of the CNI plugins."""

    paths: dict[str, Path]
    cni_directory: Path

    def __getitem__(self, name: str) -> str:
        return str(self.paths[name])

    @property
    def search_path(self) -> str:
        """The folders for PATH: containerd finds its shim there, and the shim runc."""
        own = dict.fromkeys(str(path.parent) for path in self.paths.values())
        return ":".join([*own, "/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])


def kubernetes_version() -> str:
    """Return the pinned version, as in v1.36.3."""
    return KUBERNETES_MODULE.version


def obtain(say: Say) -> Programs:
    """Return all programs. The first time this compiles Kubernetes, which takes minutes."""
    _require_tools()
    with one_at_a_time():
        kubernetes = _obtain_kubernetes(say)
        debian, cni_directory = _obtain_debian(say)
    return Programs({**kubernetes, **debian}, cni_directory)


def _require_tools() -> None:
    missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if missing:
        raise MissingProgramsError(f"install {', '.join(sorted(missing))} first")


# --- Kubernetes ---


def _has_pinned_minor(program: Path) -> bool:
    asks = ["version", "--client"] if program.name == "kubectl" else ["--version"]
    try:
        answer = subprocess.run(
            [program, *asks], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    minor = kubernetes_version().rpartition(".")[0]
    return re.search(rf"{re.escape(minor)}\.\d+$", answer.stdout, re.MULTILINE) is not None


def _find_kubernetes_program(name: str) -> Path | None:
    if (cached := KUBERNETES_MODULE.cache / name).exists():
        return cached
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    candidates = [Path(assets) / name] if assets else []
    if on_path := shutil.which(name):
        candidates.append(Path(on_path))
    return next((path for path in candidates if path.exists() and _has_pinned_minor(path)), None)


def _find_kubernetes() -> dict[str, Path | None]:
    return {name: _find_kubernetes_program(name) for name in KUBERNETES}


def _obtain_kubernetes(say: Say) -> dict[str, Path]:
    found = _find_kubernetes()
    if missing := [name for name, path in found.items() if path is None]:
        _build_kubernetes(missing, say)
    return {name: path or KUBERNETES_MODULE.cache / name for name, path in found.items()}


def _link_flags() -> str:
    """Return the flags of Kubernetes' own build: without them every component is a v0.0.0."""
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    settings = [f"-X k8s.io/component-base/version.{key}={value}" for key, value in values.items()]
    return " ".join(settings)


def _build_kubernetes(names: Sequence[str], say: Say) -> None:
    say(f"Building {', '.join(names)} {kubernetes_version()}: about five minutes on two cores,")
    say(f"once. The result is kept in {KUBERNETES_MODULE.cache}.")
    KUBERNETES_MODULE.build(names, _link_flags(), say)


# --- Debian's packages ---


def _unpacked() -> Path:
    return cache_directory() / "debian"


def _find_cni_directory() -> Path | None:
    candidates = (_unpacked() / "usr/lib/cni", *CNI_DIRECTORIES)
    return next((d for d in candidates if all((d / p).exists() for p in CNI_PLUGINS)), None)


def _find_debian_program(name: str) -> Path | None:
    directories = [_unpacked() / "usr/bin", _unpacked() / "usr/sbin"]
    for directory in directories:
        if (directory / name).exists():
            return directory / name
    installed_path = shutil.which(name)
    return Path(installed_path) if installed_path else None


def _find_debian() -> dict[str, Path | None]:
    names = [name for name in DEBIAN_PACKAGES if name not in CNI_PLUGINS]
    return {name: _find_debian_program(name) for name in names}


def _obtain_debian(say: Say) -> tuple[dict[str, Path], Path]:
    missing = {DEBIAN_PACKAGES[name] for name, path in _find_debian().items() if path is None}
    if _find_cni_directory() is None:
        missing.add(DEBIAN_PACKAGES[CNI_PLUGINS[0]])
    if missing:
        _unpack(sorted(missing), say)
    found = {name: path for name, path in _find_debian().items() if path}
    cni_directory = _find_cni_directory()
    if len(found) + len(CNI_PLUGINS) < len(DEBIAN_PACKAGES) or cni_directory is None:
        raise MissingProgramsError(f"{', '.join(sorted(missing))}: a program is not in its package")
    _require_runnable(found["runc"])
    return found, cni_directory


def _unpack(packages: Sequence[str], say: Say) -> None:
    say(f"Unpacking Debian's {', '.join(packages)} into {_unpacked()} (they are not installed).")
    if not shutil.which("apt-get"):
        raise MissingProgramsError(f"install {', '.join(packages)}: there is no apt-get here")
    with tempfile.TemporaryDirectory(dir=cache_directory()) as downloads:
        download = ["apt-get", "download", "--quiet", *packages]
        answer = _run(download, Path(downloads))
        if answer.returncode:  # perhaps the package lists are stale, or were never fetched
            _run(["apt-get", "update", "--quiet"], Path(downloads))
            answer = _run(download, Path(downloads))
        if answer.returncode:
            raise MissingProgramsError(
                f"cannot download {', '.join(packages)}; install them by hand.\n{answer.stderr}"
            )
        for package in sorted(Path(downloads).glob("*.deb")):
            subprocess.run(["dpkg", "--extract", package, _unpacked()], check=True)


def _run(command: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def _require_runnable(runc: Path) -> None:
    """Check that runc runs: it alone of them links more than libc, libseccomp2."""
    answer = subprocess.run([runc, "--version"], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise MissingProgramsError(
            f"{runc} does not run; is libseccomp2 installed?\n{answer.stderr}"
        )
