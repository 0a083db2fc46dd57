"""The page of metrics, in the format that the client prefers.

An agent takes some 0.1 s of its only event loop to write a page of 1 MB, and clients decide how
often. So a page is written at most once a second and format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from latencyprobe.exposition.families import BegunCounters, StageHistograms
from latencyprobe.exposition.protobuf import CONTENT_TYPE, encode
from latencyprobe.process.http_server import Page, Response

_PROTOBUF = "application/vnd.google.protobuf"
_MESSAGE = "io.prometheus.client.MetricFamily"
_OPENMETRICS = "application/openmetrics-text"
_TEXT = "text/plain"
# One version of each text: a client that could choose it would have a page of its own.
_ENCODERS = {kind: choose_encoder(kind) for kind in (_OPENMETRICS, _TEXT)}
KEPT_S = 1.0


def metrics_page(
    registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic
) -> Page:
    """Return the page of a registry, in the format that the client prefers.

    What was written is served again until it is KEPT_S old. `clock`: a monotonic one.
    """
    kept: dict[str, tuple[float, Response]] = {}

    def page(headers: Mapping[str, str]) -> Response:
        kind = _kind_of(preferred(headers.get("accept", "")))
        now = clock()
        for each, (end, _) in list(kept.items()):
            if now >= end:
                del kept[each]
        if kind not in kept:
            response = _written(registry, kind)
            kept[kind] = clock() + KEPT_S, response
        return kept[kind][1]

    return page


def _kind_of(media_range: str) -> str:
    return media_range.partition(";")[0].strip() or _TEXT


def _written(registry: CollectorRegistry, kind: str) -> Response:
    if kind == _PROTOBUF:
        return Response(encode(registry.collect()), content_type=CONTENT_TYPE)
    encoder, content_type = _ENCODERS[kind]
    return Response(encoder(ClassicView(registry)), content_type=content_type)


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
    if kind == _OPENMETRICS:
        return not parameters.get("version", "1").startswith("0")
    return kind == _TEXT
