"""Dropped packets: the kernel's numbers and names, from its BTF to a report's counters."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.report import report_on
from latencyprobe.domain.stages import Module, counter_module, drop_counter
from latencyprobe.protocol.measurements import (
    CorruptMessageError,
    measurement_from_proto,
    measurement_to_proto,
)
from latencyprobe_agent.kernel.abi import NR_DROP_REASONS
from latencyprobe_agent.kernel.btf import KernelTypes
from latencyprobe_agent.kernel.build.drops import drop_macros, drop_reasons
from latencyprobe_agent.kernel.runtime.statistics import SLOT_BYTES, SamplingRatios, decode_slot


class Enumerated(KernelTypes):
    """Types of a kernel with just these enumerators."""

    def __init__(self, **values: int) -> None:
        self._values = values

    def enumerators(self, enum: str) -> dict[str, int]:
        return self._values if enum == "skb_drop_reason" else {}


def test_reasons_are_named_as_the_kernel_does_at_their_numbers() -> None:
    reasons = drop_reasons(
        Enumerated(
            SKB_NOT_DROPPED_YET=0,
            SKB_DROP_REASON_NOT_SPECIFIED=1,
            SKB_DROP_REASON_TCP_CSUM=3,
            SKB_DROP_REASON_SUBSYS_MASK=-65536,
        )
    )
    assert reasons == ["NOT_DROPPED_YET", "NOT_SPECIFIED", "", "TCP_CSUM"]
    macros = drop_macros(reasons)
    assert macros["DROP_NOT_SPECIFIED"] == "1U"
    assert macros["DROP_QUEUE_PURGE"] == f"{0xFFFFFFFF}U"  # of a kernel that has no such reason


# As in Linux 6.8, shortened.
HEADER = """
#define DEFINE_DROP_REASON(FN, FNe) \\
    FN(NOT_SPECIFIED) \\
    FNe(MAX)

/**
 * enum skb_drop_reason - the reasons of skb drops
 */
enum skb_drop_reason {
    /**
     * @SKB_NOT_DROPPED_YET: skb is not dropped yet (used for no-drop case)
     */
    SKB_NOT_DROPPED_YET = 0,
    /** @SKB_CONSUMED: packet has been consumed, {braces}, commas */
    SKB_CONSUMED,
    /* deprecated: SKB_DROP_REASON_OLD, */
    SKB_DROP_REASON_NOT_SPECIFIED, // and so on
    SKB_DROP_REASON_QUEUE_PURGE = 7,
    SKB_DROP_REASON_TCP_CSUM,
    /** @SKB_DROP_REASON_MAX: the maximum of core drop reasons */
    SKB_DROP_REASON_MAX,
    SKB_DROP_REASON_SUBSYS_MASK = 0xffff0000,
};
"""


@pytest.mark.parametrize("header", ["net/dropreason-core.h", "net/dropreason.h", "linux/skbuff.h"])
def test_without_btf_the_kernels_headers_have_the_reasons(tmp_path: Path, header: str) -> None:
    build, source = tmp_path / "build", tmp_path / "source"  # as Debian splits them
    build.mkdir()
    (source / header).parent.mkdir(parents=True)
    (source / header).write_text(HEADER)
    reasons = drop_reasons(None, (build, source))
    assert reasons[:3] == ["NOT_DROPPED_YET", "CONSUMED", "NOT_SPECIFIED"]
    assert reasons[3:] == [*[""] * 4, "QUEUE_PURGE", "TCP_CSUM", "MAX"]


def test_headers_of_a_kernel_without_reasons_have_no_reasons(tmp_path: Path) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "skbuff.h").write_text("struct sk_buff;\n")
    assert drop_reasons(None, (tmp_path,)) == []


def test_programs_that_need_reasons_are_compiled_only_where_their_numbers_are_known() -> None:
    assert drop_macros([]) == {}
    assert drop_macros(["NOT_DROPPED_YET"])["HAVE_kfree_skb_reason"] == "1"


@pytest.mark.parametrize("types", [None, Enumerated()])
def test_a_kernel_without_reasons_has_no_names_for_them(types: KernelTypes | None) -> None:
    assert drop_reasons(types) == []


def test_drops_are_counted_by_name_and_those_without_one_together() -> None:
    content = bytearray(SLOT_BYTES)
    for number, count in ((2, 5), (3, 1), (NR_DROP_REASONS - 1, 4)):
        offset = SLOT_BYTES - 4 * (NR_DROP_REASONS - number)
        struct.pack_into("=I", content, offset, count)
    measurement = decode_slot(bytes(content), SamplingRatios(), ["", "", "TCP_CSUM"])
    assert measurement.counters == {"drops.TCP_CSUM": 5, "drops.OTHER": 5}


def test_drops_belong_to_module_tcp() -> None:
    assert counter_module(drop_counter("NETFILTER_DROP")) is Module.TCP
    assert counter_module("retransmits") is Module.TCP
    assert counter_module("headOfLineSegments") is Module.RX
    assert counter_module("drops.") is None
    assert counter_module("inventions") is None


def test_drops_come_through_the_protocol_and_into_the_report() -> None:
    measured = Measurement({}, {"drops.TCP_CSUM": 2, "drops.QDISC_DROP": 0, "rtos": 1})
    arrived = measurement_from_proto(*measurement_to_proto(measured))
    assert arrived == measured
    counters = report_on(arrived, [Module.TCP]).counters
    assert list(counters.items())[-1] == ("drops.TCP_CSUM", 2)
    assert "drops.QDISC_DROP" not in counters
    assert counters["rtos"] == 1
    assert "drops.TCP_CSUM" not in report_on(arrived, [Module.RX]).counters


def test_a_name_that_no_kernel_gives_is_refused() -> None:
    with pytest.raises(
        CorruptMessageError, match="counters: a name has 106 characters, not 1 to 64"
    ):
        measurement_from_proto([], {"drops." + "X" * 100: 1})
