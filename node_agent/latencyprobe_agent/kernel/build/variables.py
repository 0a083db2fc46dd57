"""Variables of each CPU in the running kernel that programs read.

They are in one area for each CPU, at the places that BTF has. A program finds the area by the run
queue of its CPU: bpf/include/common.h.
"""

from __future__ import annotations

from collections.abc import Mapping

from latencyprobe_agent.kernel.btf import KernelTypes, PerCpuVariable

ANCHOR = "runqueues"
# The number of the CPU, by which a program checks that it has found the area: 6.2 to 6.14 second.
_CPU_NUMBERS = ("cpu_number", "pcpu_hot.cpu_number")
# A field of struct task_struct with CONFIG_PREEMPT_RT, which counts softirqs by task, not by CPU.
_COUNT_BY_TASK = "softirq_disable_cnt"


def find_variable(name: str, types: KernelTypes) -> PerCpuVariable:
    """Return a variable that programs can find; raise LookupError with the reason."""
    variable = types.per_cpu_variable(name)
    if variable is None:
        raise LookupError("this kernel has no such variable")
    if types.per_cpu_variable(ANCHOR) is None or _cpu_number(types) is None:
        raise LookupError("BTF does not have the variables of each CPU")
    if not types.has_field("cfs_rq", "rq"):
        raise LookupError("cannot find the run queue: CONFIG_FAIR_GROUP_SCHED is not set")
    if types.has_field("task_struct", _COUNT_BY_TASK):
        raise LookupError("CONFIG_PREEMPT_RT counts softirqs by task")
    return variable


def fault_of(name: str, types: KernelTypes) -> str | None:
    """Return the reason why programs cannot find a variable; None if they can."""
    try:
        find_variable(name, types)
    except LookupError as error:
        return str(error)
    return None


def macros(variables: Mapping[str, PerCpuVariable], types: KernelTypes | None) -> dict[str, str]:
    """Return what programs need to read them: the distances from the run queue, and the types."""
    anchor = types.per_cpu_variable(ANCHOR) if types is not None else None
    cpu_number = _cpu_number(types) if types is not None else None
    if anchor is None or cpu_number is None:
        return {}
    found: dict[str, str] = {}
    for name, variable in {**variables, "cpu_number": cpu_number}.items():
        found[f"{name.upper()}_DISTANCE"] = f"({variable.place - anchor.place}LL)"
        found[f"{name.upper()}_TYPE"] = f"u{8 * variable.size}"
    return found


def _cpu_number(types: KernelTypes) -> PerCpuVariable | None:
    found = (types.per_cpu_variable(name) for name in _CPU_NUMBERS)
    return next((each for each in found if each is not None), None)
