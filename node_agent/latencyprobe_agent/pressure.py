"""The node's CPU pressure: the part of the time in which some task waited for a CPU.

Pressure stall information, Documentation/accounting/psi.rst (4.20+): the mean over ten seconds.
"""

from __future__ import annotations

from pathlib import Path

from latencyprobe.process.os_errors import is_transient

_NAME = "avg10="


class CpuPressure:
    """The node's CPU pressure, with that of the last reading that worked."""

    def __init__(self, proc_root: Path = Path("/proc")) -> None:
        self._path = proc_root / "pressure/cpu"
        self._last_percent = 0.0

    def percent(self) -> float:
        """Return the pressure; 0 on a kernel that does not report it."""
        try:
            self._last_percent = parse_pressure(self._path.read_text())
        except OSError as error:
            if not is_transient(error):  # also EOPNOTSUPP: it is switched off (psi=0)
                return 0.0
        return self._last_percent


def no_pressure() -> float:
    """Return the pressure of a node without any."""
    return 0.0


def parse_pressure(text: str) -> float:
    """Return the pressure from the content of the file; 0 if it is not there."""
    for line in text.splitlines():
        kind, *fields = line.split()
        if kind == "some":
            for each in fields:
                if each.startswith(_NAME):
                    return float(each.removeprefix(_NAME))
    return 0.0
