"""The page of metrics, in the format that the client prefers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from latencyprobe.exposition.families import BegunCounters, StageHistograms
from latencyprobe.exposition.protobuf import CONTENT_TYPE, encode
from latencyprobe.process.http_server import Page, Response

_PROTOBUF = "application/vnd.google.protobuf"
_MESSAGE = "io.prometheus.client.MetricFamily"
_TEXTS = frozenset({"application/openmetrics-text", "text/plain"})


def metrics_page(registry: CollectorRegistry) -> Page:
    """Return the page of a registry, in the format that the client prefers."""

    def page(headers: Mapping[str, str]) -> Response:
        accepted = preferred(headers.get("accept", ""))
        if accepted.startswith(_PROTOBUF):
            return Response(encode(registry.collect()), content_type=CONTENT_TYPE)
        encoder, content_type = choose_encoder(accepted)
        return Response(encoder(ClassicView(registry)), content_type=content_type)

    return page


class ClassicView(Collector):
    """A registry with classic buckets in place of native ones, and without times of begin."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        for family in self._registry.collect():
            if isinstance(family, StageHistograms | BegunCounters):
                yield family.classic()
            else:
                yield family


def preferred(accept: str) -> str:
    """Return the media range of an Accept header that we serve best; empty for the plain text.

    The first one of those with the largest weight (RFC 9110, section 12.5.1).
    """
    best, most = "", 0.0
    for each in accept.split(","):
        kind, *parameters = (part.strip() for part in each.split(";"))
        values = dict(part.split("=", 1) for part in parameters if "=" in part)
        weight = _weight(values.get("q", "1"))
        if weight > most and _is_served(kind, values):
            best, most = each.strip(), weight
    return best


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def _is_served(kind: str, parameters: Mapping[str, str]) -> bool:
    if kind == _PROTOBUF:
        return (parameters.get("proto"), parameters.get("encoding")) == (_MESSAGE, "delimited")
    return kind in _TEXTS
