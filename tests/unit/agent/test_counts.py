"""Counts of a network namespace: what a program must know to find them."""

from __future__ import annotations

import pytest

from latencyprobe_agent.kernel.btf import KernelTypes, NoBtfError
from latencyprobe_agent.kernel.build.counts import NamespaceCount, fault_of, find_count, macros
from tests.unit.agent.fake_kernel import Types

COUNT = "LINUX_MIB_LISTENOVERFLOWS"


def test_programs_know_the_number_and_where_a_map_has_its_addresses() -> None:
    found = find_count(COUNT, Types(counts=(COUNT,)))
    assert macros({"overflows": found}) == {
        "OVERFLOWS_NUMBER": "23ULL",
        "PERCPU_ADDRESSES": "312ULL",
    }
    assert macros({}) == {}


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        (Types(), "BTF does not have its number"),
        (Types(counts=(COUNT,), lacks=("bpf_array", "pptrs")), "BTF does not have its number"),
        (Types(counts=(COUNT,), helpers=()), r"requires bpf_map_lookup_percpu_elem\(\)"),
    ],
)
def test_a_count_that_programs_cannot_find_says_why(types: Types, reason: str) -> None:
    with pytest.raises(LookupError, match=reason):
        find_count(COUNT, types)
    assert fault_of(COUNT, types) is not None
    assert fault_of(COUNT, Types(counts=(COUNT,))) is None


def test_the_running_kernels_count_is_the_one_that_proc_has_at_that_place() -> None:
    try:
        types = KernelTypes()
    except NoBtfError:
        pytest.skip("needs BTF")
    if fault_of(COUNT, types) is not None:
        pytest.skip("needs Linux 5.19")
    found = find_count(COUNT, types)
    assert found == NamespaceCount(found.number, types.field_offset("bpf_array", "pptrs") or 0)
    # LINUX_MIB_LISTENDROPS follows it since 2.6: include/uapi/linux/snmp.h
    assert types.unnamed_enumerator("LINUX_MIB_LISTENDROPS") == found.number + 1
    assert types.unnamed_enumerator("LINUX_MIB_NO_SUCH_COUNT") is None
