"""The slow packets of a trace, taken to the sums for metrics: their exemplars.

A traced packet has the slots that it counted in. A slot's number may have had another target when
the packet was measured. So a packet is of the slot's targets only if it ended after they got it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from latencyprobe.domain.packets import TracedPacket
from latencyprobe_agent.desired import EVERY_PROBE
from latencyprobe_agent.plan import TargetKey
from latencyprobe_agent.totals import Totals


class SlowPackets:
    """The targets of the slots, and the time since when they are."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._owners: Mapping[int, Sequence[TargetKey]] = {}
        self._since_unix_ns: Mapping[int, int] = {}

    def own(self, owners: Mapping[int, Sequence[TargetKey]], now_unix_ns: int) -> None:
        """Take packets of the slots for these targets from now on."""
        self._since_unix_ns = {
            slot: self._since_unix_ns[slot] if self._owners.get(slot) == targets else now_unix_ns
            for slot, targets in owners.items()
        }
        self._owners = owners

    def note(
        self,
        probe_id: str,
        limits_ns: Mapping[str, int],
        packets: Iterable[TracedPacket],
        now: float,
    ) -> None:
        """Keep packets of a trace, for the targets of its probe and the stages that were slow.

        `probe_id`: EVERY_PROBE for all.
        """
        for packet in packets:
            stages = [
                name
                for name, limit_ns in limits_ns.items()
                if packet.stages_ns.get(name, -1) >= limit_ns
            ]
            for key in self._targets_of(packet):
                if probe_id in (EVERY_PROBE, key.probe_id):
                    self._totals.note_slow(key, packet, stages, now)

    def _targets_of(self, packet: TracedPacket) -> Iterable[TargetKey]:
        for slot in packet.slots & self._owners.keys():
            if packet.ended_unix_ns >= self._since_unix_ns[slot]:
                yield from self._owners[slot]
