"""The memory of the compiler process: how much it may take, and whether it ended for lack of it.

A kernel that kills for memory may kill the agent with its compiler. The kubelet asks for that by
`memory.oom.group` (1.28+, cgroup v2). So the compiler gets a bound below the limit of our cgroup,
and fails by itself.
"""

from __future__ import annotations

from latencyprobe.printable import printable
from latencyprobe.process.memory_cgroup import MemoryCgroup, MemoryLimit
from latencyprobe_agent.kernel.contract import EngineError

_MEBIBYTE = 1 << 20
# An agent with a few probes, and the compiler process beside it.
_ENOUGH_MIB = 320
# What compiling takes beside the data of its processes, up to 30 MiB: page tables, maps, relocated
# pages of LLVM. And what the agent may take more in the meantime.
_RESERVE_BYTES = 48 * _MEBIBYTE
# One module takes 56 MiB of data, all of them 83. Far below that, Python itself fails in parts, and
# reports a library or the kernel's types as missing.
_LEAST_BYTES = 40 * _MEBIBYTE
# A failed allocation, as C++, LLVM without exceptions, Python, the C library and its loader report.
_REPORTS = (
    "bad_alloc",
    "LLVM ERROR: out of memory",
    "MemoryError",
    "annot allocate memory",
    "failed to map segment",
    "cannot map zero-fill pages",
)


class CompilerMemory:
    """The memory of one compiler process, which is about to start."""

    def __init__(self) -> None:
        self._cgroup = MemoryCgroup.of_this_process()
        self._kills_before = self._kills()
        self._room = self._cgroup.room() if self._cgroup is not None else None

    @property
    def bound_bytes(self) -> int | None:
        """The data that the process, with its child, may have; None without a limit.

        Raises EngineError if that is too little for any compilation.
        """
        if self._room is None:
            return None
        bound = max(0, self._room.free_bytes - _RESERVE_BYTES)
        if bound < _LEAST_BYTES:
            raise EngineError(self._exceeded("takes", bound, self._room.limit))
        return bound

    def check(self, report: str) -> None:
        """Raise EngineError if a process that failed with this report had too little memory."""
        bound = self.bound_bytes
        if self._room is None or bound is None:
            return
        if any(words in report for words in _REPORTS):
            raise EngineError(self._exceeded("took", bound, self._room.limit))

    def _exceeded(self, verb: str, bound: int, limit: MemoryLimit) -> str:
        return (
            f"compiling {verb} more memory than the {bound / _MEBIBYTE:.0f} MiB that are left for "
            f"it, {_with_advice(limit)}"
        )

    def killed_message(self) -> str:
        """Return the message for a process that the kernel, or a person, has killed."""
        kills, before = self._kills(), self._kills_before
        counted = kills is not None and before is not None and kills > before
        cause = "out of memory" if counted else "probably out of memory"
        message = f"the compiler process was killed (SIGKILL): {cause}"
        limit = self._cgroup.limit() if self._cgroup is not None else None
        if limit is None:
            return f"{message}, without a limit of its cgroup: free memory on this machine"
        return f"{message}, {_with_advice(limit)}"

    def _kills(self) -> int | None:
        return self._cgroup.oom_kills() if self._cgroup is not None else None


def _with_advice(limit: MemoryLimit) -> str:
    advice = "raise it"
    if limit.limit_bytes < _ENOUGH_MIB * _MEBIBYTE:
        advice += f" to at least {_ENOUGH_MIB} MiB"
    return (
        f"the limit of cgroup {printable(limit.group)} is {limit.limit_bytes / _MEBIBYTE:.0f} MiB: "
        f"{advice}"
    )
