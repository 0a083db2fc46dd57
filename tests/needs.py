"""What the tiers need of a machine. A need is a function that says what is missing, if anything."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

Need = Callable[[], str | None]


def root() -> str | None:
    """Root, with which eBPF programs are loaded and namespaces made."""
    return None if os.geteuid() == 0 else "root is needed: run it with sudo"


def bcc() -> str | None:
    """Bcc for this interpreter."""
    if importlib.util.find_spec("bcc"):
        return None
    return f"{sys.executable} cannot import bcc: install python3-bpfcc and make .venv again"


def kernel_types() -> str | None:
    """A description of the kernel's structs."""
    release = platform.release()
    if Path("/sys/kernel/btf/vmlinux").exists() or Path("/lib/modules", release, "build").exists():
        return None
    return f"no /sys/kernel/btf/vmlinux and no headers of the running kernel ({release})"


def programs(*names: str) -> Need:
    """Programs on the PATH."""

    def missing() -> str | None:
        absent = [name for name in names if shutil.which(name) is None]
        return f"not on the PATH: {', '.join(absent)}" if absent else None

    return missing
