"""Why the kernel drops packets: the names that its BTF gives the reasons.

The reasons are an enum that grows with each kernel, and their numbers change: `enum
skb_drop_reason`, include/net/dropreason-core.h, 5.17+. So the numbers are the running kernel's, and
programs that ask for a certain one get its number as a macro (`DROP_SOCKET_RCVBUFF`).
"""

from __future__ import annotations

from collections.abc import Mapping

from latencyprobe_agent.kernel.btf import KernelTypes

# Room in `stats` for the reasons of many kernels to come: 6.18 has 128. The last place is for those
# beyond, and for those of subsystems (mac80211, Open vSwitch), whose numbers begin at 65536.
NR_DROP_REASONS = 192
_ENUM = "skb_drop_reason"
_PREFIXES = ("SKB_DROP_REASON_", "SKB_")
# The reasons that programs know by name; bpf/drops.bpf.c.
_KNOWN = (
    "NOT_SPECIFIED",
    "QUEUE_PURGE",
    "SOCKET_CLOSE",
    "SOCKET_RCVBUFF",
    "SOCKET_BACKLOG",
    "PROTO_MEM",
    "TCP_OFO_QUEUE_PRUNE",
    "TCP_OFO_DROP",
)
_NO_SUCH_REASON = 0xFFFFFFFF


def drop_reasons(types: KernelTypes | None) -> list[str]:
    """The reasons' names, each at its number; none where the kernel or its BTF has none."""
    values = types.enumerators(_ENUM) if types is not None else {}
    numbered = {number: name for name, number in values.items() if 0 <= number < NR_DROP_REASONS}
    return [_short(numbered.get(number, "")) for number in range(1 + max(numbered, default=-1))]


def drop_macros(reasons: list[str]) -> Mapping[str, str]:
    """The macros for the reasons that programs know; one that this kernel lacks matches nothing."""
    numbers = {name: number for number, name in enumerate(reasons)}
    return {f"DROP_{name}": f"{numbers.get(name, _NO_SUCH_REASON)}U" for name in _KNOWN}


def name_of(number: int, reasons: list[str]) -> str:
    """The name of a reason by its place in `stats`."""
    known = reasons[number] if number < len(reasons) else ""
    return known if known and number < NR_DROP_REASONS - 1 else "OTHER"


def _short(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
