"""The bounds from which waiting is worth a person's attention, defined once.

That is 1 ms on average, or 5 ms once in a hundred times. Waiting that has not ended is worth it
after a second. Less is the noise of a healthy machine. On an idle one, a wake-up of 20 us holds
most of a packet's time.
"""

from __future__ import annotations

from latencyprobe.domain.histogram import Histogram

MIN_SAMPLES = 100
ATTENTION_MEAN_NS = 1_000_000
# Waits to be sent are counted by their causes from here on.
LONG_WAIT_NS = ATTENTION_MEAN_NS
ATTENTION_P99_NS = 5_000_000
# An interval of waiting that no percentile can outvote: of so few packets that have no percentiles.
LONG_IN_ALL_NS = 1_000_000_000
OPEN_TOO_LONG_NS = 1_000_000_000
_ONCE_IN = 100


def deserves_attention(histogram: Histogram) -> bool:
    """Return True for waits that people notice. Few of them have to be long in all."""
    if histogram.count < MIN_SAMPLES and histogram.sum_ns < LONG_IN_ALL_NS:
        return False
    if histogram.mean_ns >= ATTENTION_MEAN_NS:
        return True
    return histogram.max_ns >= ATTENTION_P99_NS and histogram.percentile(99) >= ATTENTION_P99_NS


def adds_up(waiting_ns: int, count: int, among: int) -> bool:
    """Return True for waiting by `count` of `among` requests that people notice.

    It has no histogram: it takes 1 ms on average of all, or 5 ms of at least one in a hundred.
    """
    if waiting_ns >= ATTENTION_MEAN_NS * max(among, MIN_SAMPLES):
        return True
    return count * _ONCE_IN >= max(among, MIN_SAMPLES) and waiting_ns >= ATTENTION_P99_NS * count
