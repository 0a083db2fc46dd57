"""What the running kernel was configured with, so that a refusal can be explained by it."""

from __future__ import annotations

import gzip
import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc/config.gz")


class KernelConfig:
    """The options that are set. `options` is None where this node doesn't tell."""

    def __init__(self, options: frozenset[str] | None) -> None:
        self._options = options

    @classmethod
    def of_running_kernel(cls) -> KernelConfig:
        """From /proc/config.gz, or where distributions put it beside the kernel."""
        release = platform.release()
        for path in (
            _PROC,
            Path(f"/boot/config-{release}"),
            Path(f"/lib/modules/{release}/config"),
        ):
            with suppress(OSError, EOFError, UnicodeDecodeError):
                return cls(_set_options(_lines(path)))
        return cls(None)

    def lacks(self, option: str) -> bool:
        """Whether the option is known not to be set."""
        return self._options is not None and option not in self._options


def _lines(path: Path) -> Iterable[str]:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()


def _set_options(lines: Iterable[str]) -> frozenset[str]:
    return frozenset(line.partition("=")[0] for line in lines if line.startswith("CONFIG_"))
