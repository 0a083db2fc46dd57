"""The plan of slots: from the desired state and the facts to the engine's assignment.

A slot measures one (target, filter). Probes with the same target and filter share it, so N probes
on a pod cost one measurement. All functions are pure: no kernel, no clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from latencyprobe.domain.fairness import Claim, Shortage, refused_claims, share_text
from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import (
    CgroupSelector,
    Desired,
    DesiredTarget,
    NetnsSelector,
    Selector,
    pod_uid,
)
from latencyprobe_agent.evidence.namespaces import Namespace
from latencyprobe_agent.kernel.contract import (
    MAX_ALIKE_NAMESPACES,
    MAX_CGROUPS,
    MAX_FILTER_PORTS,
    MAX_NAMESPACES,
    MAX_PROCESSES,
    MAX_SHARING,
    MAX_SLOTS,
    NAMESPACE_REMAINDERS,
    UDP,
    SlotSpec,
    SocketFilter,
)
from latencyprobe_agent.targets.facts import TargetFacts

_TABLE_SIZES: Mapping[str, tuple[int, str]] = {
    "cgroups": (MAX_CGROUPS, "cgroups"),
    "processes": (MAX_PROCESSES, "processes"),
    "namespaces": (MAX_NAMESPACES, "network namespaces"),
    "filter_ports": (MAX_FILTER_PORTS, "ports in filters"),
}
# Each is read with every reading of its target.
MOST_HOMES = 8
# A place that has counters: a network namespace, by its inode number, or the cgroups of a target.
Home = int | Selector
_SLOTS = "slots"
_ALIKE = "alike"

_WORTH_LOADING_FOR = frozenset({TargetState.ATTACHED, TargetState.PENDING})


@dataclass(frozen=True, slots=True)
class SlotKey:
    """The target and the filter of a slot."""

    selector: Selector
    socket_filter: SocketFilter


@dataclass(frozen=True, slots=True)
class TargetKey:
    """One target of one probe, by the client's ids."""

    probe_id: str
    target_id: str


def wanted_slots(desired: Desired, facts: Mapping[Selector, TargetFacts]) -> tuple[SlotKey, ...]:
    """Return the slots that can be measured now, each once, in the client's order."""
    return tuple(
        dict.fromkeys(
            SlotKey(target.selector, probe.socket_filter)
            for probe in desired.probes
            for target in probe.targets
            if is_matchable(facts[target.selector])
        )
    )


def is_matchable(facts: TargetFacts) -> bool:
    """Return True if the kernel can identify sockets of the target, now or from its start on."""
    if facts.state is TargetState.PENDING:
        return bool(facts.cgroup_ids)
    return facts.state is TargetState.ATTACHED


def wanted_modules(desired: Desired, facts: Mapping[Selector, TargetFacts]) -> frozenset[Module]:
    """Return the modules of the probes that have a target, or may soon have one."""
    return frozenset(
        module
        for probe in desired.probes
        if any(facts[target.selector].state in _WORTH_LOADING_FOR for target in probe.targets)
        for module in probe.measured_modules
    )


def is_udp_wanted(desired: Desired, facts: Mapping[Selector, TargetFacts]) -> bool:
    """Return True if one of these probes measures the datagrams that its targets receive."""
    return any(
        Module.RX in probe.measured_modules and probe.socket_filter.admits(UDP)
        for probe in desired.probes
        if any(facts[target.selector].state in _WORTH_LOADING_FOR for target in probe.targets)
    )


def overcommitted(
    desired: Desired,
    facts: Mapping[Selector, TargetFacts],
    held: Container[SlotKey] = (),
    slots: int = MAX_SLOTS,
) -> dict[SlotKey, str]:
    """Return the slots that do not fit into the kernel's tables, each with a message.

    One target too many must fail alone, not the whole node, and namespaces share fairly. Held slots
    come first within the share of their namespace.
    """
    specs = {key: spec_of(key, facts[key.selector]) for key in wanted_slots(desired, facts)}
    needs = _needs(specs)
    claims = (
        Claim(key, probe.namespace, probe.id, target.id, needs[key], key in held)
        for probe in desired.probes
        for target in probe.targets
        if (key := SlotKey(target.selector, probe.socket_filter)) in specs
    )
    sizes: dict[Hashable, int] = {_SLOTS: slots}
    sizes.update({table: size for table, (size, _) in _TABLE_SIZES.items()})
    for table in {table for need in needs.values() for table in need.keys() - sizes}:
        sizes[table] = MAX_ALIKE_NAMESPACES if _is_of_alike(table) else MAX_SHARING
    refused = refused_claims(claims, sizes)
    return {key: _refusal(shortage, slots) for key, shortage in refused.items()}


def _needs(
    specs: Mapping[SlotKey, SlotSpec],
) -> Mapping[SlotKey, Mapping[Hashable, frozenset[Hashable]]]:
    """Return the entries that each slot takes, by table.

    Each cgroup, process or namespace is a table too: it has room for MAX_SHARING slots. So is each
    remainder of namespaces' numbers: a pod that makes namespaces can choose alike ones.
    """
    sharing = Counter(identity for spec in specs.values() for identity in _identities(spec))
    alike = Counter(
        inode % NAMESPACE_REMAINDERS
        for inode in frozenset().union(*(spec.netns for spec in specs.values()))
    )
    needs: dict[SlotKey, Mapping[Hashable, frozenset[Hashable]]] = {}
    for number, (key, spec) in enumerate(specs.items()):
        own: frozenset[Hashable] = frozenset({number})
        crowded = (each for each in _identities(spec) if sharing[each] > MAX_SHARING)
        tables: dict[Hashable, frozenset[Hashable]] = {
            **dict.fromkeys(crowded, own),
            **{
                (_ALIKE, remainder): inodes
                for remainder, inodes in _by_remainder(spec.netns).items()
                if alike[remainder] > MAX_ALIKE_NAMESPACES
            },
            _SLOTS: own,
            "cgroups": frozenset(spec.cgroup_ids),
            "processes": frozenset(spec.tgids),
            "namespaces": frozenset(spec.netns),
            "filter_ports": frozenset((number, port) for port in spec.socket_filter.ports),
        }
        needs[key] = {table: entries for table, entries in tables.items() if entries}
    return needs


def _by_remainder(inodes: frozenset[int]) -> Mapping[int, frozenset[Hashable]]:
    """Return these namespaces by the remainders of their numbers."""
    found: defaultdict[int, set[Hashable]] = defaultdict(set)
    for inode in inodes:
        found[inode % NAMESPACE_REMAINDERS].add(inode)
    return {remainder: frozenset(alike) for remainder, alike in found.items()}


def _is_of_alike(table: Hashable) -> bool:
    return isinstance(table, tuple) and table[0] == _ALIKE


def _refusal(shortage: Shortage, slots: int) -> str:
    if shortage.table == _SLOTS:
        return (
            f"this node already measures {slots} targets, which is the maximum; "
            f"{share_text(shortage)}. Narrow a probe's selector, or give probes the same filter "
            "so that they share"
        )
    if shortage.table in _TABLE_SIZES:
        size, things = _TABLE_SIZES[str(shortage.table)]
        return (
            f"together with the other targets it has more than {size} {things}; "
            f"{share_text(shortage)}. Narrow a probe's selector"
        )
    if _is_of_alike(shortage.table):
        return (
            f"together with the other targets it has more than {MAX_ALIKE_NAMESPACES} network "
            f"namespaces whose numbers are alike; {share_text(shortage)}. Restart the pod: it then "
            "has a namespace with another number"
        )
    return (
        f"{MAX_SHARING} probes with different filters already measure it or a part of it, which "
        "is the maximum. Give them the same filter, so that they share"
    )


def owners(desired: Desired, numbers: Mapping[SlotKey, int]) -> Mapping[int, tuple[TargetKey, ...]]:
    """Return the targets of each slot."""
    result: dict[int, tuple[TargetKey, ...]] = {}
    for probe in desired.probes:
        for target in probe.targets:
            number = numbers.get(SlotKey(target.selector, probe.socket_filter))
            if number is not None:
                result[number] = (*result.get(number, ()), TargetKey(probe.id, target.id))
    return result


@dataclass(frozen=True, slots=True)
class PodTargets:
    """The targets of one probe that are one pod, or containers of it.

    `is_measured`: at least one is attached, and has a slot. `has_ended`: none can be measured any
    more.
    """

    uid: str
    name: str = ""
    containers: tuple[str, ...] = ()
    is_measured: bool = False
    has_ended: bool = True


def _container_names(target: DesiredTarget) -> Iterator[str]:
    if target.container_name:
        yield target.container_name
    yield from target.containers


def pods(
    desired: Desired, facts: Mapping[Selector, TargetFacts], numbers: Mapping[SlotKey, int]
) -> Mapping[str, tuple[PodTargets, ...]]:
    """Return the pods of the probes that have a window, by the ids of the probes."""
    found: dict[str, tuple[PodTargets, ...]] = {}
    for probe in desired.probes:
        if probe.window is None:
            continue
        together: dict[str, list[DesiredTarget]] = {}
        for target in probe.targets:
            together.setdefault(pod_uid(target), []).append(target)
        found[probe.id] = tuple(
            PodTargets(
                uid,
                targets[0].pod_name,
                tuple(dict.fromkeys(name for each in targets for name in _container_names(each))),
                any(
                    SlotKey(each.selector, probe.socket_filter) in numbers
                    and facts[each.selector].state is TargetState.ATTACHED
                    for each in targets
                ),
                all(facts[each.selector].state is TargetState.GONE for each in targets),
            )
            for uid, targets in together.items()
        )
    return found


def homes(
    desired: Desired,
    facts: Mapping[Selector, TargetFacts],
    numbers: Mapping[SlotKey, int],
    host_netns: int,
) -> Mapping[TargetKey, frozenset[Home]]:
    """Return the network namespaces and the cgroups whose counters the measured targets report.

    The node's own is omitted for probes without node figures: all host processes share it. Of a
    target with many namespaces, which it has made itself, MOST_HOMES are reported.
    """
    hidden = frozenset({host_netns})
    return {
        TargetKey(probe.id, target.id): _homes(
            facts[target.selector].netns - (frozenset() if probe.node_figures else hidden)
        )
        | _own_home(target.selector, facts[target.selector])
        for probe in desired.probes
        for target in probe.targets
        if SlotKey(target.selector, probe.socket_filter) in numbers
    }


def _homes(inodes: frozenset[int]) -> frozenset[Home]:
    return frozenset(inodes if len(inodes) <= MOST_HOMES else sorted(inodes)[:MOST_HOMES])


def _own_home(selector: Selector, facts: TargetFacts) -> frozenset[Home]:
    """Return the target itself if it has cgroups: those of which it consists, or its processes'."""
    has_cgroups = bool(facts.cgroup_directories or facts.tgids)
    return frozenset({selector} if has_cgroups else ())


def namespaces(facts: Mapping[Selector, TargetFacts]) -> Mapping[int, Namespace]:
    """Return each network namespace, with the processes and the path that lead to it."""
    found: dict[int, Namespace] = {}
    for selector, known in facts.items():
        path = selector.path if isinstance(selector, NetnsSelector) else None
        for inode in known.netns:
            before = found.get(inode, Namespace(inode))
            found[inode] = Namespace(inode, before.pids + known.pids, before.path or path)
    return found


def tenants_of(desired: Desired) -> Mapping[SlotKey, str]:
    """Return the namespace of each slot; of several, the first by name."""
    tenants: dict[SlotKey, str] = {}
    for probe, target in desired.targets:
        key = SlotKey(target.selector, probe.socket_filter)
        tenants[key] = min(tenants.get(key, probe.namespace), probe.namespace)
    return tenants


def assignment(
    numbers: Mapping[SlotKey, int],
    facts: Mapping[Selector, TargetFacts],
    tenants: Mapping[SlotKey, str] = MappingProxyType({}),
) -> Mapping[int, SlotSpec]:
    """Return the spec of each slot, for the engine."""
    return {
        number: spec_of(key, facts[key.selector], tenants.get(key, ""))
        for key, number in numbers.items()
    }


def spec_of(key: SlotKey, facts: TargetFacts, tenant: str = "") -> SlotSpec:
    """Return the spec by which the kernel identifies the sockets of one slot."""
    return SlotSpec(
        cgroup_ids=facts.cgroup_ids,
        cgroup_directories=facts.cgroup_directories,
        tgids=facts.tgids,
        netns_wide=facts.netns_wide,
        netns=facts.netns,
        any_netns=_may_begin_anywhere(key.selector, facts),
        socket_filter=key.socket_filter,
        tenant=tenant,
    )


def _may_begin_anywhere(selector: Selector, facts: TargetFacts) -> bool:
    """Return True for a cgroup of a person that has no process yet.

    A pod's sandbox holds its namespace before the first container; such a pod may wait for hours.
    """
    return isinstance(selector, CgroupSelector) and facts.state is TargetState.PENDING


def _identities(spec: SlotSpec) -> Iterator[tuple[str, int]]:
    yield from (("cgroup", cgroup_id) for cgroup_id in spec.cgroup_ids)
    yield from (("process", tgid) for tgid in spec.tgids)
    yield from (("netns", inode) for inode in spec.netns_wide)


class SlotTable:
    """The numbers of slots: in use, draining or free.

    A number stays with its target. A released number is *draining* until the engine has been read
    without it. It is then the last to be used again, after the last packets of its former target.
    """

    def __init__(self, size: int = MAX_SLOTS) -> None:
        self._size = size
        self._numbers: dict[SlotKey, int] = {}
        self._draining: set[int] = set()
        self._free = deque(range(size))

    @property
    def size(self) -> int:
        """The number of slots, in use or not."""
        return self._size

    @property
    def numbers(self) -> Mapping[SlotKey, int]:
        """The slots in use."""
        return dict(self._numbers)

    @property
    def draining(self) -> frozenset[int]:
        """The slots that were released and not yet read."""
        return frozenset(self._draining)

    def release_all_but(self, wanted: Iterable[SlotKey]) -> frozenset[int]:
        """Release the slots that are not wanted any more; return their numbers."""
        kept = set(wanted)
        released = {n for key, n in self._numbers.items() if key not in kept}
        self._numbers = {key: n for key, n in self._numbers.items() if key in kept}
        self._draining |= released
        return frozenset(released)

    def drained(self) -> None:
        """Free the draining slots, since the engine was read."""
        self._free.extend(sorted(self._draining))
        self._draining.clear()

    def allot(self, wanted: Sequence[SlotKey]) -> frozenset[SlotKey]:
        """Give a number to each slot without one, in order; return those that got no number."""
        refused = set()
        for key in wanted:
            if key in self._numbers:
                continue
            if self._free:
                self._numbers[key] = self._free.popleft()
            else:
                refused.add(key)
        return frozenset(refused)
