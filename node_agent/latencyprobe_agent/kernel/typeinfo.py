"""The source of the kernel's types on this node: BTF, installed headers, or none."""

from __future__ import annotations

import platform
from pathlib import Path

from latencyprobe_agent.kernel.btf import VMLINUX


def kernel_types_kind() -> str:
    """Return the source of the types to compile against: btf, headers or none."""
    if VMLINUX.is_file():
        return "btf"
    return "headers" if installed_headers() is not None else "none"


def installed_headers(modules: Path = Path("/lib/modules")) -> Path | None:
    """Return the build tree of the running kernel, if the distribution's headers are installed.

    Debian splits it: `build` has the generated files, `source` the rest; bcc knows both.
    """
    kconfigs = (include / "linux" / "kconfig.h" for include in installed_includes(modules))
    found = any(kconfig.is_file() for kconfig in kconfigs)
    return modules / platform.release() / "build" if found else None


def installed_includes(modules: Path = Path("/lib/modules")) -> tuple[Path, ...]:
    """Return the include folders of the running kernel's headers that exist."""
    folder = modules / platform.release()
    includes = (folder / part / "include" for part in ("build", "source"))
    return tuple(include for include in includes if include.is_dir())


def missing_types_message() -> str:
    """Return a message with the missing source of types and the package to install."""
    release = platform.release()
    return (
        f"no type information for kernel {release}: it has no BTF ({VMLINUX}, requires "
        "CONFIG_DEBUG_INFO_BTF=y) and its headers are not installed. Install "
        f"linux-headers-{release} (Debian, Ubuntu) or kernel-devel-{release} (Fedora, RHEL), or "
        "boot a kernel with BTF."
    )
