"""Dropped packets: the kernel's numbers and names, from its BTF to a report's counters."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.report import report_on
from latencyprobe.domain.stages import (
    OTHER_PLACES,
    Module,
    counter_module,
    drop_counter,
    drop_place_counter,
)
from latencyprobe.protocol.measurements import (
    CorruptMessageError,
    measurement_from_proto,
    measurement_to_proto,
)
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import DROP_PLACES, MAX_DROP_PLACES, NR_DROP_REASONS, Room
from latencyprobe_agent.kernel.btf import KernelTypes
from latencyprobe_agent.kernel.build.drops import drop_macros, drop_reasons
from latencyprobe_agent.kernel.runtime.drop_places import (
    DropPlaces,
    drop_counters,
    named_by_symbols,
)
from latencyprobe_agent.kernel.runtime.statistics import SLOT_BYTES, SamplingRatios, decode_slot
from tests.unit.agent.slot_rooms import rooms_of


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


KALLSYMS = """\
ffffffff81000000 T _stext
ffffffff81a00000 t nf_hook_slow
ffffffff81a00100 D data
ffffffff81a00200 T ip_forward.isra.0
ffffffffc0000000 t tun_net_xmit\t[tun]
"""


def test_functions_are_found_by_the_kernels_symbols(tmp_path: Path) -> None:
    symbols = tmp_path / "kallsyms"
    symbols.write_text(KALLSYMS)
    inside, begin, module = 0xFFFFFFFF81A00104, 0xFFFFFFFF81A00200, 0xFFFFFFFFC0000010
    assert named_by_symbols({inside, begin, module}, symbols) == {
        inside: "nf_hook_slow",
        begin: "ip_forward.isra.0",
        module: "tun_net_xmit",
    }


def test_a_kernel_that_hides_its_addresses_names_no_function(tmp_path: Path) -> None:
    symbols = tmp_path / "kallsyms"
    symbols.write_text("0000000000000000 T _stext\n0000000000000000 t nf_hook_slow\n")
    assert named_by_symbols({0xFFFFFFFF81A00104}, symbols) == {}


def test_functions_have_counters_without_what_the_compiler_appends() -> None:
    assert drop_place_counter("nf_hook_slow.isra.0") == "dropsIn.nf_hook_slow"
    assert counter_module("dropsIn.nf_hook_slow") is Module.TCP


@pytest.mark.parametrize("name", ["", "0xffffffff81000000", "a\x1b[31m", "f" * 57, "é"])
def test_text_that_is_no_functions_name_is_refused(name: str) -> None:
    assert drop_place_counter(name) == OTHER_PLACES
    assert counter_module(f"dropsIn.{name}") is None


def test_the_most_frequent_functions_are_named_and_the_rest_adds_up() -> None:
    functions = {f"dropsIn.f{number}": number for number in range(1, 31)}
    counted = drop_counters({**functions, OTHER_PLACES: 3}, sum(range(1, 31)) + 3)
    assert sum(counted.values()) == sum(range(1, 31)) + 3
    assert counted.keys() == {OTHER_PLACES, *(f"dropsIn.f{number}" for number in range(15, 31))}


def test_drops_whose_places_found_no_room_are_among_the_others() -> None:
    assert drop_counters({"dropsIn.nf_hook_slow": 2}, 5) == {
        "dropsIn.nf_hook_slow": 2,
        OTHER_PLACES: 3,
    }
    assert drop_counters({"dropsIn.nf_hook_slow": 2}, 2) == {"dropsIn.nf_hook_slow": 2}


class PlacesMap:
    """The map `drop_places`; `refusals`: calls that fail once, by name."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.refusals: set[str] = set()

    def drop(self, location: int, slot: int, half: int, count: int) -> None:
        key = DROP_PLACES.key.pack(location, slot, half)
        self.entries[key] = DROP_PLACES.value.pack(count)

    def keys(self, map_fd: int, key_bytes: int) -> list[bytes]:
        self._refuse("keys")
        return list(self.entries)

    def look_up(self, map_fd: int, key: bytes, value_bytes: int) -> bytes | None:
        self._refuse("look_up")
        return self.entries.get(key)

    def delete(self, map_fd: int, key: bytes) -> bool:
        return self.entries.pop(key, None) is not None

    def run_iterator(self, link_fd: int) -> bytes:
        self._refuse("run_iterator")
        return b"ff00 tcp_rcv_established"

    def _refuse(self, call: str) -> None:
        if call in self.refusals:
            self.refusals.discard(call)
            raise libbpf.KernelRefusedError(errno.ENOMEM, call)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> PlacesMap:
    places = PlacesMap()
    for name in ("keys", "look_up", "delete", "run_iterator"):
        monkeypatch.setattr(libbpf, name, getattr(places, name))
    return places


@pytest.mark.parametrize("call", ["keys", "look_up"])
def test_drops_that_cannot_be_read_now_are_counted_later(places: PlacesMap, call: str) -> None:
    taker = DropPlaces(7, lambda: 8, rooms_of(Room.DROP_PLACES))
    places.drop(0xFF00, 3, 0, 5)
    places.refusals.add(call)
    assert taker.take(0) == {}
    assert taker.take(0) == {3: {"dropsIn.tcp_rcv_established": 5}}
    assert taker.take(0) == {}


def test_a_function_whose_name_cannot_be_read_now_has_it_later(places: PlacesMap) -> None:
    taker = DropPlaces(7, lambda: 8, rooms_of(Room.DROP_PLACES))
    places.drop(0xFF00, 3, 0, 5)
    places.refusals.add("run_iterator")
    assert taker.take(0) == {3: {OTHER_PLACES: 5}}
    places.drop(0xFF00, 3, 0, 2)
    assert taker.take(0) == {3: {"dropsIn.tcp_rcv_established": 2}}


def test_the_places_of_the_other_half_take_their_room(places: PlacesMap) -> None:
    rooms = rooms_of(Room.DROP_PLACES)
    taker = DropPlaces(7, lambda: 8, rooms)
    taker.admit((3, 4), (3, 4))
    for location in range(MAX_DROP_PLACES // 4):
        places.drop(location, 3, 1, 1)
    taker.take(0)
    assert rooms.parts == {3: MAX_DROP_PLACES // 2, 4: MAX_DROP_PLACES // 2}
    free = rooms._table.get(rooms._first + 3, "allowed")
    assert free == MAX_DROP_PLACES // 4
