"""Where this node has the types of its kernel: in BTF, in installed headers, or nowhere."""

from __future__ import annotations

import platform
from pathlib import Path

from latencyprobe_agent.kernel.btf import VMLINUX


def kernel_types_kind() -> str:
    """What this node can compile against: btf, headers or none."""
    if VMLINUX.is_file():
        return "btf"
    return "headers" if installed_headers() is not None else "none"


def installed_headers(modules: Path = Path("/lib/modules")) -> Path | None:
    """The build tree of the running kernel, if the distribution's headers are there.

    Debian splits it: `build` has what is generated, `source` the rest; bcc knows both.
    """
    kconfigs = (include / "linux" / "kconfig.h" for include in installed_includes(modules))
    found = any(kconfig.is_file() for kconfig in kconfigs)
    return modules / platform.release() / "build" if found else None


def installed_includes(modules: Path = Path("/lib/modules")) -> tuple[Path, ...]:
    """The include folders of the running kernel's headers, as far as they are there."""
    folder = modules / platform.release()
    includes = (folder / part / "include" for part in ("build", "source"))
    return tuple(include for include in includes if include.is_dir())


def missing_types_message() -> str:
    """What is missing and which package brings it."""
    release = platform.release()
    return (
        f"the types of kernel {release} are not to be had: it has no BTF ({VMLINUX}, needs "
        "CONFIG_DEBUG_INFO_BTF=y) and its headers are not installed. Install "
        f"linux-headers-{release} (Debian, Ubuntu) or kernel-devel-{release} (Fedora, RHEL), or "
        "boot a kernel with BTF."
    )
