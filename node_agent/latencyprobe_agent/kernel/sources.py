"""The place of the C sources."""

from __future__ import annotations

from pathlib import Path


def source_folder() -> Path:
    """Return the folder of the C files: in the installed package, or `bpf/` of a checkout."""
    installed = Path(__file__).parents[1] / "bpf"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "bpf"
