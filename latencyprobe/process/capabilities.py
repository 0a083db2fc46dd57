"""The capabilities that measuring needs, and those that this process lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Bits of include/uapi/linux/capability.h.
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_PERFMON = 38
CAP_BPF = 39

# The use of each, for the error message. CAP_SYS_ADMIN includes the BPF ones on any kernel.
NEEDED: dict[int, tuple[str, str]] = {
    CAP_BPF: ("CAP_BPF", "loads the eBPF programs"),
    CAP_PERFMON: ("CAP_PERFMON", "attaches them to the kernel's tracepoints"),
    CAP_SYS_PTRACE: ("CAP_SYS_PTRACE", "reads the namespaces of other users' processes"),
}


class MissingCapabilityError(RuntimeError):
    """A process that lacks capabilities for measuring. `missing` names them."""

    def __init__(self, missing: Sequence[int]) -> None:
        self.missing = tuple(NEEDED[bit][0] for bit in missing)
        reasons = "".join(f"\n  {NEEDED[bit][0]} {NEEDED[bit][1]}" for bit in missing)
        super().__init__(
            f"measuring needs root or these capabilities, which this process lacks:{reasons}\n"
            "Run it with sudo; in a pod, add them to securityContext.capabilities"
        )


def missing_capabilities(effective: int) -> tuple[int, ...]:
    """Return the needed capabilities that this set (a bit mask) lacks."""
    held = {bit for bit in NEEDED if effective >> bit & 1}
    if effective >> CAP_SYS_ADMIN & 1:
        held |= {CAP_BPF, CAP_PERFMON}
    return tuple(bit for bit in NEEDED if bit not in held)


def effective_capabilities() -> int:
    """Return this process's effective set: CapEff in proc_pid_status(5)."""
    # Bytes: a process's name is no text, and may have any end of a line other than this one.
    for line in Path("/proc/self/status").read_bytes().split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"CapEff":
            return int(value, 16)
    return 0


def require_capabilities() -> None:
    """Raise MissingCapabilityError if this process lacks a capability for measuring."""
    if missing := missing_capabilities(effective_capabilities()):
        raise MissingCapabilityError(missing)
