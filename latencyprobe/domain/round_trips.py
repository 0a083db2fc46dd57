"""Round trips: the distance, which is the path's own minimum, and the growth above it.

A peer may delay its ACK, and such a round trip says nothing about the path. So the growth is that
of round trips with certain ACKs, or the growth of the one-way time by the peer's time-stamps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from latencyprobe.domain.attention import MIN_SAMPLES, Bounds
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import of_time
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.wait import Wait

# The wire is to blame when the round trip is this many times what both stacks spend on a packet.
NETWORK_FACTOR = 5
# Zones of a region are nearer to each other.
DISTANCE_NS = 5_000_000
# Samples whose ACK cannot be delayed stand for all if they are this part of them.
_REPRESENTATIVE = 0.1
# Uploads have few answers, and so few round trips.
_FEWEST = 20
# The path out has grown as the path in has, with some noise.
_BOTH_DIRECTIONS = 2.2
# Less growth than this part of the least round trip is jitter.
_JITTER = 0.25


@dataclass
class RoundTrips:
    """The round trips of a target.

    `stacks_ns`: the time of a packet in its node's stack, both directions together; 0 if one of
    them is not known. `queued_ns`: the time that a packet waits on this node after TCP sent it.
    `bounds`: from which they are worth attention.
    """

    measurement: Measurement
    stacks_ns: int
    queued_ns: int
    bounds: Bounds

    @cached_property
    def least_ns(self) -> int:
        """The mean of the connections' least round trips; 0 if it is not known."""
        trips = self.measurement.stage("tcp.rtt").histogram
        if not trips.count:
            return 0
        of_all_ns = self.measurement.counters.get("rttLeastNs", 0)
        return round(of_all_ns / trips.count) if of_all_ns else trips.min_ns

    @cached_property
    def growth_ns(self) -> int:
        """The mean round trip less the least; 0 if that is not known."""
        trips = self.measurement.stage("tcp.rtt").histogram
        counters = self.measurement.counters
        certain = counters.get("rttGrowthSamples", 0)
        grown_ns = 0
        if certain and certain >= _REPRESENTATIVE * trips.count:
            grown_ns = round(counters.get("rttGrowthNs", 0) / certain)
        return max(grown_ns - self.queued_ns, self._both_directions_ns, 0)

    @property
    def _both_directions_ns(self) -> int:
        """The growth by the one-way times. Twice that if all growth together is no more.

        Then the queue is in both directions, rather than a peer that delays ACKs by as much.
        """
        inwards_ns = self.measurement.stage("tcp.queueing").histogram.mean_ns
        grown_ns = self.measurement.stage("tcp.rtt").histogram.mean_ns - self.least_ns
        return grown_ns if inwards_ns < grown_ns <= _BOTH_DIRECTIONS * inwards_ns else inwards_ns

    @property
    def mean_ns(self) -> int:
        """The network's part of an exchange."""
        return self.least_ns + self.growth_ns

    @property
    def is_grown(self) -> bool:
        """True if packets wait in a queue of the path."""
        return self.growth_ns >= _JITTER * self.least_ns and self.bounds.is_long(self.growth_ns, 1)

    def waits(self) -> Iterator[Wait]:
        """Yield the distance, and the waiting in queues of the path."""
        trips = self.measurement.stage("tcp.rtt").histogram
        exchanges = self.measurement.stage("peer.response")
        if exchanges.histogram.count < MIN_SAMPLES:
            exchanges = self.measurement.stage("tcp.rtt")
        number = round(exchanges.histogram.count / exchanges.sampling_ratio)
        is_known = trips.count >= _FEWEST and self.stacks_ns > 0
        is_far = is_known and self.least_ns > NETWORK_FACTOR * self.stacks_ns
        is_far &= self.bounds.is_long(self.least_ns, 1, DISTANCE_NS)
        is_grown = is_known and self.is_grown
        figures = self._figures() if is_far or is_grown else ()
        yield Wait(Bottleneck.NETWORK, number * self.least_ns, is_far, "tcp.rtt", figures[:1], True)
        yield Wait(Bottleneck.NETWORK, number * self.growth_ns, is_grown, "tcp.rtt", figures)

    def _figures(self) -> tuple[str, str]:
        least, grown, stacks = map(format_ns, (self.least_ns, self.growth_ns, self.stacks_ns))
        return (
            of_time(
                self.least_ns,
                f"the path's least round trip is {least}; this node's stack takes {stacks}",
            ),
            of_time(self.growth_ns, f"the round trip has grown by {grown} on average: queueing"),
        )
