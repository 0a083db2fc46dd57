"""The contents of each image, with reasons.

The packages of Debian are listed one by one, without their dependencies. The processes never call a
shell, a package manager or their libraries. tests/images checks that no library is missing.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

SUITE = "bookworm"  # the Debian of python3-bpfcc that the live tests run with
PYTHON = "3.11"  # its Python
SITE_PACKAGES = Path("usr/local/lib", f"python{PYTHON}", "dist-packages")

# Debian's name of an architecture (and OCI's): the machine's, as in `uname -m` and wheels' tags.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

# Package: its users.
_PYTHON_PACKAGES = {
    "libc6": "all of them",
    "libgcc-s1": "gRPC and libstdc++",
    "gcc-12-base": "holds the copyright of both",
    "libstdc++6": "gRPC's extension module, LLVM",
    "zlib1g": "python3.11",
    "libexpat1": "python3.11",
    "libssl3": "Python's ssl and hashlib",
    "libbz2-1.0": "Python's bz2, which zipfile and shutil import",
    "liblzma5": "Python's lzma, for the same; libxml2",
    "libffi8": "Python's ctypes; LLVM",
    "python3.11-minimal": "the interpreter",
    "libpython3.11-minimal": "the part of the standard library that it cannot do without",
    "libpython3.11-stdlib": "asyncio and all the rest",
    "python3-minimal": "the name python3",
    "base-files": "os-release, by which scanners know the distribution",
}
_BCC_PACKAGES = {
    "python3-bpfcc": "imported by the compiler process",
    "libbpfcc": "bcc itself",
    "libclang-cpp14": "libbpfcc: compiles C",
    "libllvm14": "libbpfcc: makes BPF code of it",
    "libbpf1": "libbpfcc; the agent's maps and BTF",
    "libelf1": "libbpfcc, libbpf",
    "libz3-4": "LLVM",
    "libedit2": "LLVM",
    "libtinfo6": "LLVM, libedit",
    "libbsd0": "libedit",
    "libmd0": "libbsd",
    "libxml2": "LLVM",
    "libicu72": "libxml2",
}

# Patterns below the root: the reason for leaving it out of the packages above.
_UNUSED_OF_DEBIAN = {
    "usr/share/man": "documentation",
    "usr/share/locale": "translations",
    "usr/share/lintian": "notes of Debian's own checks",
    "usr/share/python3": "compiles modules when packages are installed",
    "usr/share/debhelper": "builds packages",
    "usr/share/base-files": "copied by an installation",
    "usr/bin/py3*": "for the installation of packages",
    "usr/lib/*/gconv": "iconv's character sets; Python has its own",
    "usr/lib/python3.11/idlelib": "an editor",
    "usr/lib/python3.11/lib2to3": "rewrites Python 2",
    "usr/lib/python3.11/pydoc_data": "documentation",
    "usr/lib/python3.11/turtle.py": "draws",
    "usr/lib/python3.11/test": "tests",
    "usr/lib/python3.11/**/test": "tests",
    "usr/lib/python3.11/**/tests": "tests",
    "usr/lib/python3.11/lib-dynload/*test*": "tests",
    "usr/lib/python3.11/lib-dynload/xx*": "examples",
    "usr/lib/python3.11/lib-dynload/_curses*": "needs libncursesw",
    "usr/lib/python3.11/lib-dynload/readline*": "needs libreadline",
    "usr/lib/python3.11/lib-dynload/_dbm*": "needs libdb",
    "usr/lib/python3.11/lib-dynload/_sqlite3*": "needs libsqlite3",
    "usr/lib/python3.11/lib-dynload/_crypt*": "needs libcrypt",
    "usr/lib/python3.11/lib-dynload/_uuid*": "needs libuuid; the module uuid does without",
    "usr/lib/python3.11/lib-dynload/nis*": "needs libnsl",
    "usr/lib/python3.11/lib-dynload/ossaudiodev*": "sound",
    "etc/dpkg": "for the installation of packages",
    "etc/update-motd.d": "greeting at a login",
    "etc/issue*": "greeting at a login",
    "etc/debian_version": "os-release says more",
    "etc/host.conf": "glibc's default",
    "etc/default": "for services",
    "etc/profile.d": "for shells",
    "etc/skel": "people's",
    "usr/share/binfmts": "for kernels that start .pyc files",
    "usr/share/dict": "dictionaries",
    "usr/share/gcc": "prints in gdb",
    "usr/share/gdb": "prints in gdb",
    "usr/share/info": "documentation",
    "usr/share/misc": "an empty folder",
    "usr/lib/binfmt.d": "for kernels that start .pyc files",
    "boot": "a machine's",
    "home": "people's",
    "media": "people's",
    "mnt": "people's",
    "opt": "other software's",
    "srv": "a machine's",
    "root": "people's",
    "var/[!l]*": "a machine's",
    "var/lo*": "a machine's",
    "var/lib/[!d]*": "a machine's",
    "usr/games": "people's",
    "usr/include": "no C is compiled against the system's",
    "usr/src": "no C is compiled against the system's",
    "usr/local/*": "made again by the layers above",
}

_UNUSED_OF_PYTHON = {
    "bin": "commands of the dependencies",
    "**/__pycache__": "differs from build to build",
    "*.dist-info/RECORD": "names the interpreter of pip, and lists files that are removed here",
    "**/*.pyi": "types for checkers",
    "**/*.pyx": "sources of extension modules",
    "**/*.pxd": "sources of extension modules",
}


@dataclass(frozen=True, slots=True)
class Component:
    """An image. `folder` holds its Containerfile and its requirements.lock.

    `debian_packages`: packages and their users. The other two map patterns of omitted files to the
    reason: files of the dependencies, and of the project's own wheel.
    """

    name: str
    folder: Path
    debian_packages: Mapping[str, str]
    unused_dependencies: Mapping[str, str]
    unused_modules: Mapping[str, str]

    @property
    def containerfile(self) -> Path:
        """The Containerfile."""
        return self.folder / "Containerfile"

    @property
    def requirements(self) -> Path:
        """The lock of its Python packages."""
        return self.folder / "requirements.lock"

    @property
    def unused_of_debian(self) -> Mapping[str, str]:
        """The omitted files of Debian's packages: pattern to reason."""
        return _UNUSED_OF_DEBIAN


OPERATOR = Component(
    name="operator",
    folder=ROOT / "operator",
    debian_packages=_PYTHON_PACKAGES,
    unused_dependencies={
        **_UNUSED_OF_PYTHON,
        # 55 MB of generated calls; we make ours through ApiClient, kopf makes its own.
        "kubernetes/client/api/*_api.py": "no typed API is called",
        "kubernetes/aio/client/api/*_api.py": "no typed API is called",
        # kopf needs the models of the other client only.
        "kubernetes/aio/client/models/[!_]*.py": "we hand out the API's JSON",
    },
    unused_modules={"latencyprobe_agent": "the agent's"},
)
AGENT = Component(
    name="agent",
    folder=ROOT / "node_agent",
    debian_packages={**_PYTHON_PACKAGES, **_BCC_PACKAGES},
    unused_dependencies=_UNUSED_OF_PYTHON,
    unused_modules={"latencyprobe_operator": "the operator's"},
)
COMPONENTS = {component.name: component for component in (OPERATOR, AGENT)}


def own_architecture() -> str:
    """Return Debian's name of this machine's architecture; without images for it, its own."""
    machine = platform.machine()
    return next((name for name, kernel in ARCHITECTURES.items() if kernel == machine), machine)
