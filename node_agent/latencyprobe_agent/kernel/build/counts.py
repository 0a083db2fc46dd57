"""Counts of a network namespace that programs read, such as TcpExtListenOverflows.

Each CPU has its own part of them, in an area whose place a map of each CPU shows: see
bpf/modules/listeners.bpf.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latencyprobe_agent.kernel.btf import KernelTypes

# The helper that finds the element of another CPU: kernel commit 07343110b293.
_HELPER = ("bpf_func_id", "BPF_FUNC_map_lookup_percpu_elem")


@dataclass(frozen=True, slots=True)
class NamespaceCount:
    """A count: its number, and the offset of a map's addresses for each CPU in the map."""

    number: int
    addresses_offset: int


def find_count(name: str, types: KernelTypes) -> NamespaceCount:
    """Return a count that programs can find; raise LookupError with the reason.

    `name`: the kernel's, of an enumerator in include/uapi/linux/snmp.h.
    """
    enum, helper = _HELPER
    if helper not in types.enumerators(enum):
        raise LookupError("requires bpf_map_lookup_percpu_elem(), added in Linux 5.19")
    offset = types.field_offset("bpf_array", "pptrs")
    number = types.unnamed_enumerator(name)
    if offset is None or number is None:
        raise LookupError("BTF does not have its number")
    return NamespaceCount(number, offset)


def fault_of(name: str, types: KernelTypes) -> str | None:
    """Return the reason why programs cannot find a count; None if they can."""
    try:
        find_count(name, types)
    except LookupError as error:
        return str(error)
    return None


def macros(counts: Mapping[str, NamespaceCount]) -> dict[str, str]:
    """Return what programs need to read these counts."""
    found: dict[str, str] = {}
    for name, count in counts.items():
        found[f"{name.upper()}_NUMBER"] = f"{count.number}ULL"
        found["PERCPU_ADDRESSES"] = f"{count.addresses_offset}ULL"
    return found
