"""The cost of the eBPF programs, as a run reports it.

What packets pay for a program is its run time and its calls: runs times *dispatch*, the time that a
call takes. The figures are percent of one core.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from latencyprobe.domain.serialisation import written


@dataclass(frozen=True, slots=True)
class HookOverhead:
    """The cost at one hook.

    `permanent`: its programs stay attached when those of packets are attached for a part of the
    time only.
    """

    hook: str
    cpu_percent: float = field(metadata=written(digits=3))
    permanent: bool


@dataclass(frozen=True, slots=True)
class ProgramsOverhead:
    """The cost of all programs of a node.

    `cpu_percent`: the mean of the run; None if the kernel has no statistics. `dispatch_reason`: the
    reason why the dispatch is assumed; empty if it was measured. `hooks`: of the last figure, the
    most expensive first.
    """

    cpu_percent: float | None = field(metadata=written(digits=3))
    dispatch_ns: float = field(metadata=written(digits=0))
    dispatch_reason: str = field(default="", metadata=written(absent_if_empty=True))
    stopped_modules: tuple[str, ...] = ()
    hooks: tuple[HookOverhead, ...] = ()
