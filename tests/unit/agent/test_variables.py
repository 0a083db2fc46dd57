"""Variables of each CPU: where BTF has them, and what a program must know to find them."""

from __future__ import annotations

import pytest

from latencyprobe_agent.kernel.btf import KernelTypes, NoBtfError, PerCpuVariable
from latencyprobe_agent.kernel.build.variables import fault_of, find_variable, macros
from tests.unit.agent.fake_kernel import Types

COUNT = "__preempt_count"


def test_programs_know_the_distance_from_the_run_queue_and_the_type() -> None:
    found = {
        "preempt_count": PerCpuVariable(Types.RUN_QUEUE - 8, 4),
        "softirq_pending": PerCpuVariable(Types.RUN_QUEUE + 64, 2),
    }
    assert macros(found, Types(variables=(COUNT,))) == {
        "PREEMPT_COUNT_DISTANCE": "(-8LL)",
        "PREEMPT_COUNT_TYPE": "u32",
        "SOFTIRQ_PENDING_DISTANCE": "(64LL)",
        "SOFTIRQ_PENDING_TYPE": "u16",
        "CPU_NUMBER_DISTANCE": f"({Types.CPU_NUMBER - Types.RUN_QUEUE}LL)",
        "CPU_NUMBER_TYPE": "u32",
    }
    assert macros({}, None) == {}


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        (Types(), "this kernel has no such variable"),
        (Types(variables=(COUNT,), has_run_queues=False), "does not have the variables"),
        (Types(variables=(COUNT,), lacks=("cfs_rq", "rq")), "CONFIG_FAIR_GROUP_SCHED is not set"),
        (Types(variables=(COUNT,), is_realtime=True), "CONFIG_PREEMPT_RT counts softirqs by task"),
    ],
)
def test_a_variable_that_programs_cannot_find_says_why(types: Types, reason: str) -> None:
    with pytest.raises(LookupError, match=reason):
        find_variable(COUNT, types)
    assert reason in str(fault_of(COUNT, types))
    assert fault_of(COUNT, Types(variables=(COUNT,))) is None


def test_the_running_kernels_variables_are_integers_in_one_area() -> None:
    try:
        types = KernelTypes()
    except NoBtfError:
        pytest.skip("needs BTF")
    run_queues = types.per_cpu_variable("runqueues")
    count = types.per_cpu_variable(COUNT) or types.per_cpu_variable("pcpu_hot.preempt_count")
    assert run_queues is not None
    assert count is not None
    assert count.size == 4
    assert abs(count.place - run_queues.place) < 1 << 24
    assert types.per_cpu_variable("runqueues.no_such_member") is None
    assert types.per_cpu_variable("no_such_variable") is None
    cpu = types.per_cpu_variable("runqueues.cpu")
    assert cpu is not None
    assert (cpu.place > run_queues.place, cpu.size) == (True, 4)
