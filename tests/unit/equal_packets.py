"""Measurements of equal packets, by the times of their stages."""

from __future__ import annotations

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement

MS = 1_000_000
US = 1_000


def measured(
    packets: int = 100, *, counters: dict[str, int] | None = None, **stages_ns: int
) -> Measurement:
    """A measurement of so many equal packets; `rx_socket=5` is 5 ns of rx.socket each.

    Totals are added up from their parts.
    """
    parts = {name.replace("_", ".", 1): ns for name, ns in stages_ns.items()}
    for module in ("rx", "tx"):
        of_module = [ns for name, ns in parts.items() if name.startswith(module + ".")]
        if of_module:
            parts[f"{module}.total"] = sum(of_module)
    return Measurement(
        {name: StageMeasurement(Histogram.of([ns] * packets)) for name, ns in parts.items()},
        counters or {},
    )
