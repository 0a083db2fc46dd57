"""The bytes of maps on more CPUs than there are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.maps import WITH_BTF, WITHOUT_BTF, Sizes, _outcome, bytes_a_cpu
from bench.programs import MapMemory

HASH = MapMemory(
    "cgroups", "hash", flags=0, key_bytes=4, value_bytes=12, max_entries=4096, bytes=500_000
)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("described", "grows"),
    [
        (HASH, 48 + 8 + 16 + 8),
        (replace(HASH, flags=1), 0),
        (replace(HASH, type="lru_hash"), 0),
        (replace(HASH, type="array"), 0),
        (replace(HASH, type="percpu_array", max_entries=3), 3 * 16),
        (replace(HASH, type="percpu_hash", max_entries=3), 3 * 16),
        (replace(HASH, type="sk_storage"), 0),
        (replace(HASH, type="ringbuf"), 0),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_a_map_grows_with_each_cpu_as_the_kernel_counts_it(
    described: MapMemory, grows: int
) -> None:
    assert bytes_a_cpu(described) == grows


@pytest.mark.parametrize(("name", "times"), [("received", 16), ("entered", 16), ("runs", 48)])
def test_arrays_that_the_agent_makes_larger_are_calculated_as_it_makes_them(
    name: str, times: int
) -> None:
    table = replace(HASH, name=name, type="array", bytes=1000)
    assert Sizes(WITH_BTF, (table,)).bytes_on(96, here=2) == times * 1000


def test_the_target_holds_for_many_cpus_too() -> None:
    one = replace(HASH, type="percpu_array", value_bytes=MIB, max_entries=1, bytes=2 * MIB)
    found = {
        WITH_BTF: [Sizes(WITH_BTF, (one, replace(HASH, type="array", bytes=3 * MIB)))],
        WITHOUT_BTF: [Sizes(WITHOUT_BTF, (replace(one, type="array", bytes=24 * MIB),))],
    }
    document = _outcome(found, here=2).document
    assert document[WITH_BTF]["mib"]["median"] == 5
    assert document[WITH_BTF]["mib_on_96_cpus"] == 5 + 94
    assert not document[WITH_BTF]["met"]
    assert document[WITHOUT_BTF]["met"]
    assert [each["name"] for each in document[WITH_BTF]["maps"]] == ["cgroups", "cgroups"]
