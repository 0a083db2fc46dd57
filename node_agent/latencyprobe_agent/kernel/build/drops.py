"""The kernel's drop reasons, with their names in its BTF or its headers.

The reasons are an enum that grows with each kernel, and their numbers change: `enum
skb_drop_reason`, include/net/dropreason-core.h, 5.17+. So the numbers are the running kernel's, and
programs that compare a reason get its number as a macro (`DROP_SOCKET_RCVBUFF`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from latencyprobe_agent.kernel.abi import NR_DROP_REASONS
from latencyprobe_agent.kernel.btf import KernelTypes

_ENUM = "skb_drop_reason"
# Where it is defined: since 6.4, since 6.0, since 5.17.
_HEADERS = ("net/dropreason-core.h", "net/dropreason.h", "linux/skbuff.h")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINITION = re.compile(rf"enum {_ENUM} \{{(.*?)\}}", re.DOTALL)
_ENUMERATOR = re.compile(r"(\w+)(?:\s*=\s*(.+))?", re.DOTALL)
_PREFIXES = ("SKB_DROP_REASON_", "SKB_")
# The reasons that programs know by name; bpf/modules/drops.bpf.c.
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


def drop_reasons(types: KernelTypes | None, includes: Iterable[Path] = ()) -> list[str]:
    """Return the reasons' names, each at its number; none if the kernel has no reasons.

    `includes`: the include folders of the kernel's headers, for kernels without BTF.
    """
    values = types.enumerators(_ENUM) if types is not None else _enumerators_in(includes)
    numbered = {number: name for name, number in values.items() if 0 <= number < NR_DROP_REASONS}
    return [_short(numbered.get(number, "")) for number in range(1 + max(numbered, default=-1))]


def drop_macros(reasons: list[str]) -> Mapping[str, str]:
    """Return macros for the reasons that programs know; a missing reason matches no packet.

    Return no macros if the kernel has no reasons, or if their numbers are unknown.
    """
    if not reasons:
        return {}
    numbers = {name: number for number, name in enumerate(reasons)}
    known = {f"DROP_{name}": f"{numbers.get(name, _NO_SUCH_REASON)}U" for name in _KNOWN}
    return {"HAVE_kfree_skb_reason": "1", **known}


def _enumerators_in(includes: Iterable[Path]) -> dict[str, int]:
    """Parse the enum as C does: an explicit number, or else one more than the last."""
    for path in (folder / header for header in _HEADERS for folder in includes):
        if not path.is_file():
            continue
        if found := _DEFINITION.search(_COMMENT.sub("", path.read_text(errors="replace"))):
            return _numbered(found[1])
    return {}


def _numbered(body: str) -> dict[str, int]:
    numbers: dict[str, int] = {}
    number = 0
    for entry in filter(None, (part.strip() for part in body.split(","))):
        enumerator = _ENUMERATOR.fullmatch(entry)
        if enumerator is None:
            break
        name, value = enumerator.groups()
        if value is not None:
            if not value.isdecimal():  # those of subsystems follow
                break
            number = int(value)
        numbers[name] = number
        number += 1
    return numbers


def _short(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
