"""Which slot measures what: from the desired state and the facts to the engine's assignment.

A slot measures one (target, filter). Probes that want the same share it, so N probes on a pod cost
one measurement. All of this is pure: no kernel, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from latencyprobe.stages import Module
from latencyprobe_agent.desired import Desired, Selector
from latencyprobe_agent.slots import MAX_SLOTS, SlotSpec, SocketFilter
from latencyprobe_agent.targets.facts import Facts, TargetState

_MATCHABLE = frozenset({TargetState.ATTACHED})
_WORTH_LOADING_FOR = frozenset({TargetState.ATTACHED, TargetState.PENDING})


@dataclass(frozen=True, slots=True)
class SlotKey:
    """What a slot measures."""

    selector: Selector
    socket_filter: SocketFilter


@dataclass(frozen=True, slots=True)
class TargetKey:
    """One target of one probe, as the client calls them."""

    probe_id: str
    target_id: str


def wanted_slots(desired: Desired, facts: Mapping[Selector, Facts]) -> tuple[SlotKey, ...]:
    """What can be measured now, each once, in the client's order."""
    return tuple(
        dict.fromkeys(
            SlotKey(target.selector, probe.socket_filter)
            for probe in desired.probes
            for target in probe.targets
            if facts[target.selector].state in _MATCHABLE
        )
    )


def wanted_modules(desired: Desired, facts: Mapping[Selector, Facts]) -> frozenset[Module]:
    """The modules of the probes that have a target, or may soon have one."""
    return frozenset(
        module
        for probe in desired.probes
        if any(facts[target.selector].state in _WORTH_LOADING_FOR for target in probe.targets)
        for module in probe.modules
    )


def owners(desired: Desired, numbers: Mapping[SlotKey, int]) -> Mapping[int, tuple[TargetKey, ...]]:
    """Whose figures a slot's are."""
    result: dict[int, tuple[TargetKey, ...]] = {}
    for probe in desired.probes:
        for target in probe.targets:
            number = numbers.get(SlotKey(target.selector, probe.socket_filter))
            if number is not None:
                result[number] = (*result.get(number, ()), TargetKey(probe.id, target.id))
    return result


def assignment(
    numbers: Mapping[SlotKey, int], facts: Mapping[Selector, Facts]
) -> Mapping[int, SlotSpec]:
    """What the engine is told."""
    return {number: spec_of(key, facts[key.selector]) for key, number in numbers.items()}


def spec_of(key: SlotKey, facts: Facts) -> SlotSpec:
    """By what the kernel tells the sockets of one slot."""
    return SlotSpec(
        cgroup_ids=facts.cgroup_ids,
        tgids=facts.tgids,
        netns_wide=facts.netns_wide,
        netns=facts.netns,
        socket_filter=key.socket_filter,
    )


class SlotTable:
    """Which numbers are in use, which are being emptied, which are free.

    A number stays with what it measures. One that was released is *draining* until the engine has
    been read without it, and is then the last to be used again, so that packets that were on their
    way when it was released have long gone.
    """

    def __init__(self, size: int = MAX_SLOTS) -> None:
        self._size = size
        self._numbers: dict[SlotKey, int] = {}
        self._draining: set[int] = set()
        self._free = deque(range(size))

    @property
    def numbers(self) -> Mapping[SlotKey, int]:
        """The slots in use."""
        return dict(self._numbers)

    @property
    def draining(self) -> frozenset[int]:
        """The slots that were released and not yet read."""
        return frozenset(self._draining)

    def release_all_but(self, wanted: Iterable[SlotKey]) -> frozenset[int]:
        """Give up what is not wanted any more; the numbers given up."""
        kept = set(wanted)
        released = {n for key, n in self._numbers.items() if key not in kept}
        self._numbers = {key: n for key, n in self._numbers.items() if key in kept}
        self._draining |= released
        return frozenset(released)

    def drained(self) -> None:
        """The engine was read: what was released may be used again."""
        self._free.extend(sorted(self._draining))
        self._draining.clear()

    def allot(self, wanted: Sequence[SlotKey]) -> frozenset[SlotKey]:
        """Give a number to what has none, in order; what there was no number for."""
        refused = set()
        for key in wanted:
            if key in self._numbers:
                continue
            if self._free:
                self._numbers[key] = self._free.popleft()
            else:
                refused.add(key)
        return frozenset(refused)

    def refusal(self) -> str:
        """What to tell whoever got no number."""
        return (
            f"this node already measures {self._size} targets, the most that it can: "
            "narrow a probe's selector, or give probes the same filter so that they share"
        )
