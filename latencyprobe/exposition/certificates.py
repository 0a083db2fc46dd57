"""The begins and ends of certificates as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from latencyprobe.process.certificates import first_to_end


class CertificateTimes(Collector):
    """The begins and ends of the certificates in some files, each with a name.

    `prefix`: that of the metrics' names. The files are read for each scrape: another program renews
    them.
    """

    def __init__(self, prefix: str, files: Mapping[str, Path]) -> None:
        self._prefix = prefix
        self._files = dict(files)

    def collect(self) -> Iterator[Metric]:
        """Yield the families. A file without a certificate has no sample."""
        ends = GaugeMetricFamily(
            f"{self._prefix}_certificate_end_timestamp_seconds",
            "End of the certificate in a file; of several, of the one that ends first.",
            labels=["certificate"],
        )
        begins = GaugeMetricFamily(
            f"{self._prefix}_certificate_begin_timestamp_seconds",
            "Begin of the validity of the same certificate.",
            labels=["certificate"],
        )
        for name, path in self._files.items():
            if (validity := first_to_end(path)) is not None:
                ends.add_metric([name], validity.end)
                begins.add_metric([name], validity.begin)
        yield from (ends, begins)
