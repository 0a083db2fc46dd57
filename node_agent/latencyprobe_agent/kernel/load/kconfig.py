"""The configuration of the running kernel, which explains some refusals."""

from __future__ import annotations

import gzip
import platform
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc/config.gz")


class KernelConfig:
    """The options that are set. `options` is None if this node does not have the list."""

    def __init__(self, options: frozenset[str] | None) -> None:
        self._options = options

    @classmethod
    def of_running_kernel(cls) -> KernelConfig:
        """Read it from /proc/config.gz, or from the places where distributions put it."""
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
        """Return True if the option is known not to be set."""
        return self._options is not None and option not in self._options


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines one by one: the agent keeps what memory it has once had."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from (line.decode() for line in file)


def _set_options(lines: Iterable[str]) -> frozenset[str]:
    return frozenset(line.partition("=")[0] for line in lines if line.startswith("CONFIG_"))
