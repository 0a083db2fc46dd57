"""Addresses of kernel functions, from /proc/kallsyms."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

_KALLSYMS = Path("/proc/kallsyms")


def find_functions(names: Collection[str]) -> dict[str, tuple[int, int]]:
    """(address, size) of each function found.

    A size reaches to the next symbol. Functions are left out that this kernel does not have, and
    all of them where it hides addresses (kernel.kptr_restrict=2).
    """
    wanted = {f" {name}\n" for name in names}
    found: dict[str, tuple[int, int]] = {}
    pending: tuple[str, int] | None = None
    with _KALLSYMS.open() as symbols:
        for line in symbols:
            if pending is not None:
                name, address = pending
                following = int(line.split(maxsplit=1)[0], 16)
                if following != address:
                    found[name] = (address, following - address)
                    pending = None
            if line[line.find(" ", 17) :] in wanted:
                address = int(line[:16], 16)
                pending = (line.split()[2], address) if address else None
    return found
