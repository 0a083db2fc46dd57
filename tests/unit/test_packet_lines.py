"""A packet as a line, for people and for programs."""

from __future__ import annotations

import json
from datetime import UTC
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.commands.packet_lines import PacketTable, json_line
from latencyprobe.domain.packets import Endpoint, TracedPacket, User, parts_of_packet
from latencyprobe.domain.stages import PACKET_STAGES
from tests.unit.traced_packets import RECEIVED, SENT, SERVER


def table(*, colour: bool = False) -> PacketTable:
    return PacketTable(colour=colour, zone=UTC)


def parts(line: str) -> list[str]:
    return line.split("  ")


def test_a_line_says_when_who_where_and_how_long() -> None:
    line = table().line(RECEIVED)
    assert line.startswith("22:13:20.123456     4242  server             1  TCP    198.51")
    assert "198.51.100.2:7000    <- 198.51.100.1:40752" in line
    for text in ("rx.total    5ms", "softirq  500ns", "stack  1.5us", "socket    5ms"):
        assert text in line


def test_an_unknown_field_is_a_dash() -> None:
    line = table().line(SENT)
    assert "      -  -                 12  UDP    -                    -> -" in line
    assert "stack      -" in line
    assert "qdisc   16ms" in line


def test_columns_are_aligned_with_their_header_and_with_each_other() -> None:
    one = table()
    lines = [one.header(), one.line(RECEIVED), one.line(SENT)]
    for heading, received, sent in (
        ("PROTO", "TCP", "UDP"),
        ("LOCAL", "198.51.100.2:7000", "-  "),
        ("STAGES", "rx.total", "tx.total"),
    ):
        column = lines[0].index(heading)
        assert lines[1][column:].startswith(received)
        assert lines[2][column:].startswith(sent)


def test_columns_grow_with_long_addresses_and_stay_so() -> None:
    one = table()
    far = Endpoint(ip_address("2001:db8:1111:2222:3333:4444:5555:6666"), 40752)
    long = TracedPacket(0, None, 0, "TCP", SERVER, far, RECEIVED.stages_ns)
    grown = one.line(long).index("rx.total")
    assert grown > table().line(RECEIVED).index("rx.total")
    assert one.line(RECEIVED).index("rx.total") == grown


def test_colours_come_only_if_asked_for_and_mark_the_longest_part() -> None:
    assert "\x1b" not in table().header() + table().line(RECEIVED)
    coloured = table(colour=True).line(RECEIVED)
    assert "\x1b[31msocket    5ms\x1b[0m" in coloured
    assert coloured.count("\x1b[31m") == 1


def test_a_process_can_not_write_to_the_terminal_by_its_name() -> None:
    named = TracedPacket(0, User(1, 1, "a\x1b[2Jb\n"), 0, "TCP", None, None, RECEIVED.stages_ns)
    assert r"a\x1b[2Jb\n" in table().line(named)
    assert json.loads(json_line(named))["command"] == "a\x1b[2Jb\n"
    assert "\n" not in json_line(named)


def test_json_has_integers_with_units_and_nulls_for_absent_values() -> None:
    document = json.loads(json_line(RECEIVED))
    assert document == {
        "timeUnixNs": 1_700_000_000_123_456_789,
        "time": "2023-11-14T22:13:20.123456789Z",
        "pid": 4242,
        "threadId": 4243,
        "command": "server",
        "cpu": 1,
        "protocol": "TCP",
        "localAddress": "198.51.100.2",
        "localPort": 7000,
        "remoteAddress": "198.51.100.1",
        "remotePort": 40752,
        "total": "rx.total",
        "totalNs": 5_002_000,
        "stagesNs": {
            stage.name: RECEIVED.stages_ns.get(stage.name) for stage in parts_of_packet("rx.total")
        },
    }
    unknown = json.loads(json_line(SENT))
    for field in ("pid", "threadId", "command", "localAddress", "remotePort"):
        assert unknown[field] is None


@given(
    st.sampled_from(["rx.total", "tx.total"]),
    st.dictionaries(st.sampled_from([s.name for s in PACKET_STAGES]), st.integers(0, 60 * 10**9)),
)
def test_every_stage_that_a_packet_had_is_in_both_lines(
    total: str, durations: dict[str, int]
) -> None:
    names = [stage.name for stage in parts_of_packet(total)]
    stages_ns = {name: durations[name] for name in names if name in durations}
    packet = TracedPacket(0, None, 0, "TCP", None, None, {**stages_ns, total: 1})
    document = json.loads(json_line(packet))
    assert {name: ns for name, ns in document["stagesNs"].items() if ns is not None} == stages_ns
    line = table().line(packet)
    for name in names:
        assert f"{name.partition('.')[2]} " in line


@pytest.mark.parametrize(
    ("packed", "shown"),
    [
        (ip_address("198.51.100.2").packed, "198.51.100.2:80"),
        (ip_address("2001:db8::2").packed, "[2001:db8::2]:80"),
        (ip_address("::ffff:198.51.100.2").packed, "198.51.100.2:80"),
        (ip_address("::").packed, "[::]:80"),
    ],
)
def test_an_ipv4_address_is_shown_as_one_with_each_kind_of_socket(
    packed: bytes, shown: str
) -> None:
    assert str(Endpoint.of(packed, 80)) == shown
