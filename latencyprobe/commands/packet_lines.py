"""A traced packet as a line: with aligned columns for people, as JSON for programs.

The fields of the JSON are API, like those of `report`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo

import click

from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.packets import Endpoint, TracedPacket, parts_of_packet
from latencyprobe.domain.serialisation import document_of, written
from latencyprobe.printable import printable

_ARROWS = {"rx.total": "<-", "tx.total": "->"}
_UNKNOWN = "-"
_COMMAND_WIDTH = 15  # TASK_COMM_LEN - 1
_ENDPOINT_WIDTH = len("198.51.100.100:65535")
_DURATION_WIDTH = len("9.99ms")


class PacketTable:
    """Lines with aligned columns, which grow with the length of the addresses.

    `zone`: time zone of the times; by default that of the machine.
    """

    def __init__(self, *, colour: bool, zone: tzinfo | None = None) -> None:
        self._colour = colour
        self._zone = zone
        self._widths = [_ENDPOINT_WIDTH, _ENDPOINT_WIDTH]

    def header(self) -> str:
        """Return the header line."""
        local, remote = self._endpoints("LOCAL", "REMOTE")
        columns = self._columns("TIME", "PID", "COMMAND", "CPU", "PROTO", local, "  ", remote)
        return self._style(f"{columns}  STAGES", dim=True)

    def line(self, packet: TracedPacket) -> str:
        """Return the line of one packet."""
        user = packet.user
        local, remote = self._endpoints(_text(packet.local), _text(packet.remote))
        columns = self._columns(
            self._time(packet.ended_unix_ns),
            str(user.pid) if user else _UNKNOWN,
            printable(user.command) if user else _UNKNOWN,
            str(packet.cpu),
            packet.protocol or _UNKNOWN,
            local,
            _ARROWS[packet.total],
            remote,
        )
        return f"{columns}  {self._total(packet)}  {'  '.join(self._parts(packet))}"

    def _columns(self, *fields: str) -> str:
        time, pid, command, cpu, protocol, local, arrow, remote = fields
        return (
            f"{time:<15}  {pid:>7}  {command:<{_COMMAND_WIDTH}}  {cpu:>3}  {protocol:<5}  "
            f"{local} {arrow} {remote}"
        )

    def _endpoints(self, *texts: str) -> list[str]:
        pairs = list(zip(self._widths, texts, strict=True))
        self._widths = [max(width, len(text)) for width, text in pairs]
        return [f"{text:<{width}}" for width, text in zip(self._widths, texts, strict=True)]

    def _time(self, unix_ns: int) -> str:
        seconds, ns = divmod(unix_ns, 10**9)
        moment = datetime.fromtimestamp(seconds, UTC).astimezone(self._zone)
        return f"{moment:%H:%M:%S}.{ns // 1000:06}"

    def _total(self, packet: TracedPacket) -> str:
        duration = format_ns(packet.stages_ns[packet.total])
        return self._style(f"{packet.total} {duration:>{_DURATION_WIDTH}}", bold=True)

    def _parts(self, packet: TracedPacket) -> Iterator[str]:
        """Yield its parts in order, the longest in red; "-" is a stage that it did not pass."""
        names = [stage.name for stage in parts_of_packet(packet.total)]
        longest = max(names, key=lambda name: packet.stages_ns.get(name, -1))
        for name in names:
            known = name in packet.stages_ns
            duration = format_ns(packet.stages_ns[name]) if known else _UNKNOWN
            text = f"{name.partition('.')[2]} {duration:>{_DURATION_WIDTH}}"
            yield self._style(text, fg="red") if name == longest else text

    def _style(self, text: str, *, fg: str | None = None, **options: bool) -> str:
        return click.style(text, fg=fg, **options) if self._colour else text


_NULL_IF_UNKNOWN = written(null_if_none=True)


@dataclass(frozen=True, slots=True)
class PacketDocument:
    """One packet for programs. Unknown fields, and stages that it did not pass, are null.

    Large, because each field is one of the API's.
    """

    time_unix_ns: int
    time: str
    pid: int | None = field(metadata=_NULL_IF_UNKNOWN)
    thread_id: int | None = field(metadata=_NULL_IF_UNKNOWN)
    command: str | None = field(metadata=written(null_if_none=True, exact=True))
    cpu: int
    protocol: str
    local_address: str | None = field(metadata=_NULL_IF_UNKNOWN)
    local_port: int | None = field(metadata=_NULL_IF_UNKNOWN)
    remote_address: str | None = field(metadata=_NULL_IF_UNKNOWN)
    remote_port: int | None = field(metadata=_NULL_IF_UNKNOWN)
    total: str
    total_ns: int
    stages_ns: Mapping[str, int | None]


def json_line(packet: TracedPacket) -> str:
    """Return one packet as a document in one line; all but ASCII is escaped."""
    user, local, remote = packet.user, packet.local, packet.remote
    document = PacketDocument(
        time_unix_ns=packet.ended_unix_ns,
        time=_timestamp(packet.ended_unix_ns),
        pid=user.pid if user else None,
        thread_id=user.thread_id if user else None,
        command=user.command if user else None,
        cpu=packet.cpu,
        protocol=packet.protocol,
        local_address=str(local.address) if local else None,
        local_port=local.port if local else None,
        remote_address=str(remote.address) if remote else None,
        remote_port=remote.port if remote else None,
        total=packet.total,
        total_ns=packet.stages_ns[packet.total],
        stages_ns={
            stage.name: packet.stages_ns.get(stage.name) for stage in parts_of_packet(packet.total)
        },
    )
    return json.dumps(document_of(document))


def _timestamp(unix_ns: int) -> str:
    """Format a time after RFC 3339, to the nanosecond."""
    seconds, ns = divmod(unix_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09}Z"


def _text(endpoint: Endpoint | None) -> str:
    return str(endpoint) if endpoint else _UNKNOWN
