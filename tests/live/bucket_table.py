"""The table of a histogram's buckets, as the agent reports them and as Prometheus has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from latencyprobe.domain.histogram import bounds_of


def bucket_table(
    title: str, reported: Mapping[int, int], found: Mapping[int, int]
) -> Iterator[str]:
    """The counts of both, a line for each bucket. Keys are positions."""
    yield f"{title}: bucket up to (us), in the report, in Prometheus"
    for position in sorted(reported.keys() | found.keys()):
        upper_us = bounds_of(position)[1] / 1000
        yield f"{upper_us:>16.2f} {reported.get(position, 0):>8} {found.get(position, 0):>8}"
