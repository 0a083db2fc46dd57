"""The tables by which programs find the slots of a socket, and their entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from latencyprobe_agent.kernel.abi import (
    CGROUPS,
    FILTER_PORTS,
    FILTERS,
    MAX_OWNERS,
    NETNS_HOST,
    NETNS_PROCESSES,
    NETNS_WATCHED,
    OWNER_BITS,
    PROCESSES,
    PROTOCOLS,
    Map,
)
from latencyprobe_agent.kernel.contract import EngineError, SlotSpec
from latencyprobe_agent.kernel.runtime.configuration import NamespaceConfiguration
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps
from latencyprobe_agent.kernel.runtime.slot_scopes import begins_anywhere

# `filters` is an array: its elements are only ever overwritten.
_HASHES = (FILTER_PORTS.name, CGROUPS.name, PROCESSES.name)
_UNCERTAIN = b""  # no entry has this value


class TargetTables:
    """The tables of one object, whose maps are new."""

    def __init__(self, maps: NamedMaps) -> None:
        self._maps = maps
        self._written: dict[str, dict[bytes, bytes]] = {}

    def write(self, wanted: dict[str, dict[bytes, bytes]]) -> None:
        """Make the kernel's tables equal to these: write new entries, then erase old ones.

        Raises EngineError for a full map.
        """
        for name, entries in wanted.items():
            before = self._written.setdefault(name, {})
            changed = {key: value for key, value in entries.items() if before.get(key) != value}
            # Should the kernel refuse one, the others are to be written again, or erased.
            before.update(dict.fromkeys(changed, _UNCERTAIN))
            self._maps.write(name, changed)
        for name in _HASHES:
            self._maps.erase(name, set(self._written.get(name, {})) - set(wanted[name]))
        self._written = wanted

    def forget_children(self) -> None:
        """Erase processes that the kernel followed by itself.

        The agent adds those of other targets again when it next polls the processes.
        """
        followed = self._maps.keys(PROCESSES.name, PROCESSES.key.size)
        self._maps.erase(PROCESSES.name, followed - self._written[PROCESSES.name].keys())


def entries_of(slots: Mapping[int, SlotSpec]) -> dict[str, dict[bytes, bytes]]:
    """Return the entries of the kernel's hashes and arrays for these slots, by map."""
    return {
        FILTERS.name: {FILTERS.key.pack(slot): _filter(spec) for slot, spec in slots.items()},
        FILTER_PORTS.name: {
            FILTER_PORTS.key.pack(slot << 16 | port): FILTER_PORTS.value.pack(1)
            for slot, spec in slots.items()
            for port in spec.socket_filter.ports
        },
        CGROUPS.name: _packed(CGROUPS, _owners(slots, lambda spec: spec.cgroup_ids)),
        PROCESSES.name: _packed(PROCESSES, _owners(slots, lambda spec: spec.tgids)),
    }


def namespaces_of(
    slots: Mapping[int, SlotSpec], host_netns: int
) -> dict[int, NamespaceConfiguration]:
    """Return the configuration of these slots' network namespaces, by inode number."""
    owners = _owners(slots, lambda spec: spec.netns_wide)
    watched = {inum for spec in slots.values() for inum in spec.netns | spec.netns_wide}
    if begins_anywhere(slots):
        watched.add(host_netns)
    with_processes = {inum for spec in slots.values() if spec.tgids for inum in spec.netns}
    namespaces = {}
    for inum in watched | ({host_netns} if slots else set()):
        flags = NETNS_HOST if inum == host_netns else 0
        flags |= NETNS_WATCHED if inum in watched else 0
        flags |= NETNS_PROCESSES if inum in with_processes else 0
        namespaces[inum] = NamespaceConfiguration(flags, owners.get(inum, 0))
    return namespaces


def _owners(
    slots: Mapping[int, SlotSpec], identities: Callable[[SlotSpec], Iterable[int]]
) -> dict[int, int]:
    """Map each identity to its owners_t (bpf/include/histogram.h)."""
    owners: dict[int, int] = {}
    for slot, spec in slots.items():
        for identity in identities(spec):
            packed = owners.get(identity, 0)
            if packed >> (OWNER_BITS * (MAX_OWNERS - 1)):
                raise EngineError(
                    f"cannot measure a target for more than {MAX_OWNERS} probes with different "
                    "filters"
                )
            owners[identity] = packed << OWNER_BITS | (slot + 1)
    return owners


def _packed(table: Map, owners: Mapping[int, int]) -> dict[bytes, bytes]:
    return {table.key.pack(identity): table.value.pack(value) for identity, value in owners.items()}


def _filter(spec: SlotSpec) -> bytes:
    bits = sum(PROTOCOLS[protocol] for protocol in spec.socket_filter.protocols)
    return FILTERS.value.pack(bits, int(bool(spec.socket_filter.ports)))
