"""The ends of certificates as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from latencyprobe.process.certificates import earliest_end


class CertificateEnds(Collector):
    """The ends of the certificates in some files, each with a name.

    The files are read for each scrape: another program renews them.
    """

    def __init__(self, metric: str, files: Mapping[str, Path]) -> None:
        self._metric = metric
        self._files = dict(files)

    def collect(self) -> Iterator[Metric]:
        """Yield the family. A file without a certificate has no sample."""
        family = GaugeMetricFamily(
            self._metric,
            "End of the certificate in a file; of several, of the one that ends first.",
            labels=["certificate"],
        )
        for name, path in self._files.items():
            if (end := earliest_end(path)) is not None:
                family.add_metric([name], end)
        yield family
