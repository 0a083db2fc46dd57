"""The cost of hostile peers for agent and operator: python -m bench.floods [PART]... [--help].

Agent and operator are real processes, over real TLS on loopback. Each flood comes from a process of
its own. During it, legitimate clients send requests: their times show how long the event loop was
blocked. After it, they must be served; otherwise the benchmark fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench import many_sockets
from bench.flooded_agent import FloodedAgent, flooded_agent
from bench.flooded_operator import FloodedOperator, flooded_operator
from bench.hostile_agents import BAD, BOMB, HUGE
from bench.hostile_clients import GETS, GZIP, HANDSHAKES, IDLE, MUTE, PLAIN, Flood, flood
from bench.many_sockets import SocketMemory
from bench.outcome import CannotMeasureError
from bench.watched_process import (
    Answers,
    Cost,
    Meter,
    NotServedError,
    Requests,
    WatchedProgram,
    asking,
    more,
    until_served,
)
from latencyprobe_agent.serving.tls_proxy import HANDSHAKE_S, MAX_CONNECTIONS
from latencyprobe_operator.agents.credentials import ClientTlsFiles

AGENT, OPERATOR, SOCKETS = "agent", "operator", "sockets"
PARTS = (AGENT, OPERATOR, SOCKETS)
MESSAGE_BYTES = 16 << 20
_EVERY_S = 0.05
_CONNECT_EVERY_S = 0.5
_REPORT_EVERY_S = 0.1
_START_S = 60.0
# An excessive stream of reports is opened again after 60 s; nothing else takes as long.
_SERVED_S = 90.0
_SETTLE_S = 2.0
_HANDSHAKES_SETTLE_S = HANDSHAKE_S + 1
_CALLS, _CONNECTIONS, _SCRAPES = "calls", "connections", "scrapes"


@dataclass(frozen=True, slots=True)
class FloodSizes:
    """The sizes of the floods. `seconds`: of hostile reports; twice those of connections."""

    connections: int
    messages: int
    seconds: float
    sockets: int


@dataclass(frozen=True, slots=True)
class Row:
    """One flood: its cost, its fate, and the answers to legitimate clients."""

    name: str
    cost: Cost
    fate: Mapping[str, int]
    refused: Mapping[str, int]
    answers: Mapping[str, Answers]


@dataclass(frozen=True, slots=True)
class Subject:
    """A process, and the legitimate clients that ask it."""

    program: WatchedProgram
    asked: Mapping[str, tuple[Callable[[], Awaitable[None]], float]]
    refusals: Callable[[], Awaitable[Mapping[str, int]]]

    async def row(
        self, name: str, hostile: Callable[[], Awaitable[Mapping[str, int]]], settle_s: float
    ) -> Row:
        """Run a flood to its end; raise NotServedError if a legitimate client is not served."""
        requests = {key: Requests(ask, every_s) for key, (ask, every_s) in self.asked.items()}
        before = await self.refusals()
        meter = Meter(self.program.pid)
        async with asking(requests):
            fate = await hostile()
        cost = await meter.cost(settle_s)
        for key, (ask, _) in self.asked.items():
            await until_served(self.program, ask, f"{key} after {name!r}", _SERVED_S)
        refused = more(await self.refusals(), before)
        answers = {key: each.answers() for key, each in requests.items()}
        if answers[_CALLS].failed:  # they are on a connection that was open before the flood
            reasons = ", ".join(answers[_CALLS].reasons)
            raise NotServedError(f"{name!r} broke an open connection: {reasons}")
        return Row(name, cost, {k: n for k, n in fate.items() if n}, refused, answers)


@click.command()
@click.argument("parts", nargs=-1, metavar="[PART]...", type=click.Choice(PARTS))
@click.option("--connections", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--messages", type=click.IntRange(min=1), default=4, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.5),
    default=10,
    show_default=True,
    help="Time of hostile reports; connections that send nothing stay open for half of it.",
)
@click.option("--sockets", type=click.IntRange(min=8), default=60_000, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a document, not tables.")
def main(
    *,
    parts: tuple[str, ...],
    connections: int,
    messages: int,
    seconds: float,
    sockets: int,
    as_json: bool,
) -> None:
    """Flood the agent and the operator, and measure what it costs them (needs root)."""
    # as an exception, so that our processes are ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sizes = FloodSizes(connections, messages, seconds, sockets)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    documents: dict[str, Any] = {"load": os.getloadavg()[0]}
    for part in dict.fromkeys(parts or PARTS):
        try:
            shown, documents[part] = asyncio.run(_measured(part, sizes))
        except (CannotMeasureError, NotServedError) as error:
            raise click.ClickException(f"{part}: {error}") from None
        if not as_json:
            for table in shown:
                console.print(table)
    if as_json:
        click.echo(json.dumps(documents, indent=2))


async def _measured(
    part: str, sizes: FloodSizes
) -> tuple[Sequence[Table], Sequence[dict[str, Any]]]:
    if part == SOCKETS:
        found = [await many_sockets.measure(sizes.sockets, targets) for targets in (1, 4)]
        return [socket_table(found)], [asdict(each) for each in found]
    rows = [row async for row in (_agent_rows if part == AGENT else _operator_rows)(sizes)]
    return [cost_table(part, rows), answer_table(part, rows)], [asdict(row) for row in rows]


# --------------------------------------------------------------------------------- agent


async def _agent_rows(sizes: FloodSizes) -> AsyncIterator[Row]:
    async with flooded_agent() as agent:
        await until_served(agent.program, agent.connect, "the agent's start", _START_S)
        async with agent.operated():
            await agent.apply()
            await agent.until_idle()
            subject = Subject(
                agent.program,
                {
                    _CALLS: (agent.apply, _EVERY_S),
                    _CONNECTIONS: (agent.connect, _CONNECT_EVERY_S),
                    _SCRAPES: (agent.scrape, _EVERY_S),
                },
                agent.refusals,
            )
            yield await subject.row("none", _rest(sizes), _SETTLE_S)
            for name, what in _agent_floods(agent, sizes).items():
                settle_s = _HANDSHAKES_SETTLE_S if what.port == agent.port else _SETTLE_S
                yield await subject.row(name, _flooding(what), settle_s)


def _agent_floods(agent: FloodedAgent, sizes: FloodSizes) -> dict[str, Flood]:
    port, hold_s = agent.port, sizes.seconds / 2
    many, few = sizes.connections, sizes.messages

    def tls(files: ClientTlsFiles) -> tuple[str, ...]:
        # The authority is that of the agent's own certificate.
        return tuple(map(str, (agent.clients.operator.ca, files.certificate, files.key)))

    operator = tls(agent.clients.operator)
    return {
        "TLS handshakes with another name": Flood(
            kind=HANDSHAKES, port=port, count=many, tls=tls(agent.clients.other)
        ),
        "TLS handshakes of a foreign authority": Flood(
            kind=HANDSHAKES, port=port, count=many, tls=tls(agent.clients.foreign)
        ),
        "connections that send nothing": Flood(kind=MUTE, port=port, count=many, hold_s=hold_s),
        "idle connections of the operator": Flood(
            kind=IDLE, port=port, count=3 * MAX_CONNECTIONS, hold_s=hold_s, tls=operator
        ),
        "messages of 16 MiB of the operator": Flood(
            kind=PLAIN, port=port, count=few, size=MESSAGE_BYTES, tls=operator
        ),
        "the same, compressed": Flood(
            kind=GZIP, port=port, count=few, size=MESSAGE_BYTES, tls=operator
        ),
        "metrics: connections that send nothing": Flood(
            kind=MUTE, port=agent.metrics_port, count=many, hold_s=hold_s
        ),
        "metrics: requests": Flood(kind=GETS, port=agent.metrics_port, count=many),
    }


def _flooding(what: Flood) -> Callable[[], Awaitable[Mapping[str, int]]]:
    async def run() -> Mapping[str, int]:
        return (await flood(what)).counts

    return run


def _rest(sizes: FloodSizes) -> Callable[[], Awaitable[Mapping[str, int]]]:
    async def run() -> Mapping[str, int]:
        await asyncio.sleep(sizes.seconds / 2)
        return {}

    return run


# ------------------------------------------------------------------------------ operator


async def _operator_rows(sizes: FloodSizes) -> AsyncIterator[Row]:
    async with flooded_operator() as operator:
        await until_served(operator.program, operator.report, "the operator's start", _START_S)
        subject = Subject(
            operator.program,
            {
                _CALLS: (operator.report, _REPORT_EVERY_S),
                _CONNECTIONS: (operator.health, _EVERY_S),
                _SCRAPES: (operator.scrape, _EVERY_S),
            },
            operator.refusals,
        )
        many, port, hold_s = sizes.connections, operator.metrics_port, sizes.seconds / 2
        floods = {
            "none": _rest(sizes),
            "reports of 16 MiB": _reporting(operator, HUGE, sizes),
            "the same, compressed": _reporting(operator, BOMB, sizes),
            "bad reports of 4 MiB": _reporting(operator, BAD, sizes),
            "metrics: connections that send nothing": _flooding(
                Flood(kind=MUTE, port=port, count=many, hold_s=hold_s)
            ),
            "metrics: requests": _flooding(Flood(kind=GETS, port=port, count=many)),
        }
        for name, hostile in floods.items():
            row = await subject.row(name, hostile, _SETTLE_S)
            await _still_measures(operator, name)
            yield row


def _reporting(
    operator: FloodedOperator, name: str, sizes: FloodSizes
) -> Callable[[], Awaitable[Mapping[str, int]]]:
    async def run() -> Mapping[str, int]:
        return {"sent": await operator.hostile.attack(name, sizes.seconds)}

    return run


async def _still_measures(operator: FloodedOperator, name: str) -> None:
    """Raise NotServedError unless the operator kept the legitimate agent's connection.

    And unless it writes statuses, in which that agent's node is ready.
    """
    if operator.connections != 1:
        raise NotServedError(f"{name!r} broke the connection to the legitimate agent")
    writes = operator.writes

    async def write_again() -> None:
        await operator.write_again(writes)

    await until_served(operator.program, write_again, f"a status after {name!r}", _SERVED_S)


# --------------------------------------------------------------------------------- tables


def cost_table(part: str, rows: Sequence[Row]) -> Table:
    """Return the costs of the floods of one part."""
    table = Table(title=f"{part}: the cost of floods")
    headings = ("flood", "s", "CPU s", "RSS before", "highest", "after", "its fate", "refused")
    for heading in headings:
        is_text = heading in ("flood", "its fate", "refused")
        table.add_column(heading, justify="left" if is_text else "right")
    for row in rows:
        cost = row.cost
        table.add_row(
            row.name,
            f"{cost.seconds:.1f}",
            f"{cost.cpu_s:.2f}",
            f"{cost.rss_before_mib:.0f}",
            f"{cost.rss_peak_mib:.0f}",
            f"{cost.rss_after_mib:.0f}",
            _listed(row.fate),
            _listed(row.refused),
        )
    table.caption = "RSS in MiB; after: some seconds later. Refused: as the metrics count it"
    return table


_MEANINGS = {
    AGENT: {
        _CALLS: "Apply",
        _CONNECTIONS: "a new connection, and its answer",
        _SCRAPES: "GET /metrics",
    },
    OPERATOR: {
        _CALLS: "an agent's report, acknowledged",
        _CONNECTIONS: "GET /healthz",
        _SCRAPES: "GET /metrics",
    },
}


def answer_table(part: str, rows: Sequence[Row]) -> Table:
    """Return the answers to legitimate clients of one part."""
    table = Table(title=f"{part}: answers to legitimate clients, median / worst in ms")
    table.add_column("during")
    for meaning in _MEANINGS[part].values():
        table.add_column(meaning, justify="right")
    for row in rows:
        table.add_row(row.name, *(str(row.answers[key]) for key in _MEANINGS[part]))
    table.caption = "n of m: so many of the requests were answered"
    return table


def socket_table(found: Sequence[SocketMemory]) -> Table:
    """Return the kernel memory that sockets took of the agent."""
    table = Table(title="agent: kernel memory of its cgroup with many sockets of targets, in MiB")
    for heading in ("sockets", "targets", "before", "with", "after", "KiB a socket", "highest RSS"):
        table.add_column(heading, justify="right")
    for each in found:
        table.add_row(
            f"{each.sockets:,}",
            str(each.targets),
            f"{each.before_mib:.1f}",
            f"{each.with_mib:.1f}",
            f"{each.after_mib:.1f}",
            f"{each.kib_of_a_socket:.2f}",
            f"{each.cost.rss_peak_mib:.0f}",
        )
    return table


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


if __name__ == "__main__":
    main()
