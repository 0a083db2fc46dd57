"""The node's CPU pressure: the part of the time in which some task waited for a CPU.

Pressure stall information, Documentation/accounting/psi.rst (4.20+): the mean over ten seconds.
"""

from __future__ import annotations

from pathlib import Path

_NAME = "avg10="


def cpu_pressure_percent(proc_root: Path = Path("/proc")) -> float:
    """Return the pressure; 0 on a kernel that does not report it."""
    try:
        text = (proc_root / "pressure/cpu").read_text()
    except OSError:  # also EOPNOTSUPP: it is switched off (psi=0)
        return 0.0
    return parse_pressure(text)


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
