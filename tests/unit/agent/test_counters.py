"""The kernel's counters, from files as several kernels write them, and by how much they grew."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latencyprobe.domain.measurement import COUNTERS_OMITTED, joint_counters, largest_counters
from latencyprobe.domain.stages import CGROUP_COUNTERS
from latencyprobe_agent.evidence.counters import (
    PROTOCOL_COUNTERS,
    conntrack_entries,
    growth,
    of_devices,
    parse_conntrack,
    parse_devices,
    parse_list,
    parse_softnet,
    parse_tables,
    softnet_growth,
)

# Of Linux 5.10, with the columns between them left out.
NETSTAT_5_10 = """\
TcpExt: SyncookiesSent PruneCalled ListenOverflows ListenDrops TCPTimeouts TCPRcvQDrop
TcpExt: 0 1 4 5 12 0
IpExt: InNoRoutes InOctets OutOctets
IpExt: 2 40500600700 3040506
MPTcpExt: MPCapableSYNRX MPFallbackTokenInit
MPTcpExt: 0 0
"""
# Of Linux 6.18: another order, more columns, a value beyond 32 bits.
NETSTAT_6_18 = """\
TcpExt: ListenDrops ListenOverflows TCPZeroWindowDrop TSEcrRejected TCPRcvQDrop PruneCalled
TcpExt: 18446744073709551615 4 1 7 3 0
IpExt: InNoRoutes
IpExt: 0
"""
SNMP = """\
Ip: Forwarding DefaultTTL InReceives InHdrErrors InDiscards OutDiscards OutNoRoutes OutTransmits
Ip: 2 64 84783 1 2 3 4 61488
IcmpMsg: InType3
IcmpMsg: 1
Tcp: RtoAlgorithm MaxConn RetransSegs InErrs
Tcp: 1 -1 16 0
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
Udp: 114 1 2 115 3 4
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
UdpLite: 9 9 9 9 9 9
"""
SNMP6 = """\
Ip6InReceives                   \t120
Ip6InDiscards                   \t7
Udp6RcvbufErrors                \t8
UdpLite6RcvbufErrors            \t9
"""
DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo \
colls carrier compressed
    lo: 13777126    9114    0    0    0     0          0         0 13777126    9114    0    0    0 \
    0       0          0
  eth0:2182235030   55863    1    2    3     4          5         6  3115401   29025    7    8 \
   9   10      11         12
"""


def test_counters_are_found_by_name_wherever_a_kernel_puts_them() -> None:
    assert parse_tables(NETSTAT_5_10) == {
        "TcpExtSyncookiesSent": 0,
        "TcpExtPruneCalled": 1,
        "TcpExtListenOverflows": 4,
        "TcpExtListenDrops": 5,
        "TcpExtTCPTimeouts": 12,
        "TcpExtTCPRcvQDrop": 0,
    }
    assert parse_tables(NETSTAT_6_18) == {
        "TcpExtListenDrops": 2**64 - 1,
        "TcpExtListenOverflows": 4,
        "TcpExtTCPZeroWindowDrop": 1,
        "TcpExtTCPRcvQDrop": 3,
        "TcpExtPruneCalled": 0,
    }


def test_counters_of_other_protocols_do_not_pass_for_ours() -> None:
    assert parse_tables(SNMP) == {
        "IpInHdrErrors": 1,
        "IpInDiscards": 2,
        "IpOutDiscards": 3,
        "IpOutNoRoutes": 4,
        "TcpRetransSegs": 16,
        "TcpInErrs": 0,
        "UdpNoPorts": 1,
        "UdpInErrors": 2,
        "UdpRcvbufErrors": 3,
        "UdpSndbufErrors": 4,
    }
    assert parse_list(SNMP6) == {"Ip6InDiscards": 7, "Udp6RcvbufErrors": 8}


def test_every_counter_is_explained_to_people() -> None:
    docs = Path(__file__).parents[3] / "docs/stages.md"
    explained = set(re.findall(r"`(\w+)`", docs.read_text()))
    softnet = {"softnetDropped", "softnetTimeSqueezed", "softnetFlowLimited"}
    devices = {name for counters in parse_devices(DEV).values() for name in counters}
    cpus = {*CGROUP_COUNTERS, "cpuStealNs"}
    known = PROTOCOL_COUNTERS | softnet | devices | cpus | {COUNTERS_OMITTED}
    assert known - explained == set()


def test_a_table_that_does_not_fit_its_names_costs_only_itself() -> None:
    broken = "TcpExt: ListenDrops PruneCalled\nTcpExt: 1\n" + SNMP
    assert parse_tables(broken) == parse_tables(SNMP)
    cut = "Udp: RcvbufErrors\nTcp: RetransSegs\nTcp: 5\n"
    assert parse_tables(cut) == {"TcpRetransSegs": 5}
    assert parse_tables("TcpExt: ListenDrops PruneCalled\nTcpExt: -1 7\n") == {
        "TcpExtPruneCalled": 7
    }


def test_a_devices_columns_have_the_names_of_its_statistics() -> None:
    assert parse_devices(DEV)["eth0"] == {
        "rx_errors": 1,
        "rx_dropped": 2,
        "rx_fifo_errors": 3,
        "rx_frame_errors": 4,
        "tx_errors": 7,
        "tx_dropped": 8,
        "tx_fifo_errors": 9,
        "tx_carrier_errors": 11,
    }
    assert parse_devices(DEV).keys() == {"lo", "eth0"}
    odd = "eth\x1c\x1d\x1e0"
    assert parse_devices(DEV.replace("eth0", odd)) == {
        name.replace("eth0", odd): counters for name, counters in parse_devices(DEV).items()
    }
    assert of_devices({"a": {"x": 1}, "b": {"x": 2}}) == {"a:x": 1, "b:x": 2}


def test_softnet_is_read_by_cpu_with_and_without_the_cpus_number() -> None:
    old = "0019d96e 0000000a 00000002 00000000 00000000 00000000 00000000 00000000 00000000\n"
    assert parse_softnet(old + old) == {
        0: {"softnetDropped": 10, "softnetTimeSqueezed": 2},
        1: {"softnetDropped": 10, "softnetTimeSqueezed": 2},
    }
    zeroes = "00000000 " * 6
    # CPU 1 is switched off.
    new = "".join(
        f"001f0803 00000001 00000002 00000000 {zeroes}000000ff 00000000 {cpu:08x} 0 0\n"
        for cpu in (0, 2)
    )
    one = {"softnetDropped": 1, "softnetTimeSqueezed": 2, "softnetFlowLimited": 0}
    assert parse_softnet(new).keys() == {0, 2}
    assert parse_softnet(new)[2] == one | {"softnetFlowLimited": 255}


def test_softnet_counters_wrap_at_32_bits_on_each_cpu() -> None:
    before = {0: {"softnetDropped": 2**32 - 1}, 1: {"softnetDropped": 5}, 2: {"softnetDropped": 1}}
    now = {0: {"softnetDropped": 3}, 1: {"softnetDropped": 7}, 3: {"softnetDropped": 1000}}
    assert softnet_growth(before, now) == {"softnetDropped": 4 + 2}


def test_a_counter_that_fell_or_is_new_says_nothing() -> None:
    before = {"fell": 10, "same": 1, "grew": 1}
    assert growth(before, {"fell": 3, "same": 1, "grew": 5, "new": 7}) == {"grew": 4}


def test_of_too_many_counters_the_largest_are_kept_and_the_rest_is_counted() -> None:
    many = {f"c{n}": n for n in range(10)}
    assert largest_counters(many, 10) == many
    assert largest_counters(many, 3) == {"c9": 9, "c8": 8, COUNTERS_OMITTED: 8}
    assert largest_counters({**many, COUNTERS_OMITTED: 5}, 3) == {
        "c9": 9,
        "c8": 8,
        COUNTERS_OMITTED: 13,
    }


garbage = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="TcpExt: Udp RcvbufErrors 0123456789abcdefx\n\t-", max_size=300),
)


@given(garbage)
@example("0\t-1")
def test_no_text_is_an_error(text: str) -> None:
    tables = parse_tables(text) | parse_list(text)
    assert tables.keys() <= PROTOCOL_COUNTERS
    devices = of_devices(parse_devices(text))
    softnet = {n: c for each in parse_softnet(text).values() for n, c in each.items()}
    assert all(count >= 0 for count in (tables | devices | softnet).values())


readings = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2**64 - 1)), min_size=1, max_size=10
)


@given(readings)
def test_growth_is_never_negative_and_adds_up_to_at_most_the_last_value(
    values: list[dict[str, int]],
) -> None:
    total: dict[str, int] = {}
    for before, now in pairwise(values):
        grown = growth(before, now)
        assert all(delta > 0 for delta in grown.values())
        total = joint_counters(total, grown)
    if all(a.get(name, 0) >= count for b, a in pairwise(values) for name, count in b.items()):
        assert all(delta <= values[-1][name] for name, delta in total.items())


counter_sets = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2**40))


@given(counter_sets, counter_sets, counter_sets)
def test_counters_add_up_the_same_in_any_order(
    a: dict[str, int], b: dict[str, int], c: dict[str, int]
) -> None:
    assert joint_counters(a, b) == joint_counters(b, a)
    assert joint_counters(joint_counters(a, b), c) == joint_counters(a, joint_counters(b, c))


# Of Linux 6.18, and of 5.10, whose columns differ; some are left out.
CONNTRACK = """\
entries  clashres found new invalid delete insert_failed drop early_drop icmp_error
000000c8  00000001 00000000 00000000 00000000 00000000 00000003 0000000a 00000001 00000000
000000c8  00000000 00000000 00000000 00000000 00000000 00000001 00000010 00000000 00000000
"""
CONNTRACK_BEFORE = """\
entries  searched found new insert insert_failed drop early_drop icmp_error  expect_new
000000c8  00000001 00000000 00000000 00000000 00000004 0000001a 00000001 00000000  00000000
"""


@pytest.mark.parametrize("text", [CONNTRACK, CONNTRACK_BEFORE])
def test_connection_tracking_is_read_by_the_names_of_its_columns(text: str) -> None:
    assert parse_conntrack(text) == {
        "conntrackDrops": 0x1A,
        "conntrackInsertFailed": 4,
        "conntrackEarlyDrops": 1,
    }
    assert conntrack_entries(text) == 200


@pytest.mark.parametrize("text", ["", "\n", "entries\n", "entries drop\nxx yy\n", "\0"])
def test_without_connection_tracking_there_are_no_counters(text: str) -> None:
    assert parse_conntrack(text) == {}
    assert conntrack_entries(text) == 0
