"""Our programs that run for the traffic of strangers: counts by the kernel, never times.

The target is an idle pod, so no driver gets a packet of it. The kernel counts the runs for the
traffic of the whole machine. So each slice with traffic follows one without, whose runs are
subtracted.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.network import MESSAGE_BYTES, Traffic
from bench.outcome import Outcome
from bench.paths import BRIDGE, NIC, STRANGERS, scene
from bench.probing import engine_with_cache, let_drivers_rest, measuring
from bench.programs import counting_runs, runs
from bench.ratio import MEDIAN, Spread, verdict

DEFAULT_ROUNDS = 7
SECONDS = 0.3
UNIX = "message of a UNIX socket"
MOST: Mapping[str, int] = {BRIDGE: 3, NIC: 4, UNIX: 0}
PROBES: Mapping[str, bool] = {"TCP alone": False, "TCP and UDP": True}
"""The protocols that probes ask for; True with datagrams, which have programs of their own."""
_UNIX_MESSAGES = 20_000
# Connections begin and end too, some for each slice.
_SELDOM = 0.02
_TOLERANCE = 0.1

Counts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Slice:
    """The runs of each program during some time, and the number of packets or messages in it."""

    runs: Mapping[str, int]
    seconds: float
    sent: int


def per_packet(idle: Slice, busy: Slice) -> Counts:
    """Return the runs a packet of each program, without those that others cause."""
    share = busy.seconds / idle.seconds
    return {
        name: max(0.0, count - share * idle.runs.get(name, 0)) / busy.sent
        for name, count in busy.runs.items()
    }


async def run(rounds: int, progress: Progress) -> Outcome:
    """Count on each path in turns, with the programs for datagrams and without."""
    found: dict[tuple[str, str], list[Counts]] = {}
    with scene() as made, tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as objects:
        senders: dict[str, Callable[[], int]] = {
            path: partial(_packets, made.sources[path]) for path in (BRIDGE, NIC)
        }
        senders[UNIX] = _unix_messages
        bar = progress.add_task("runs", total=rounds * len(PROBES) * len(senders))
        async with engine_with_cache(made.pods.host.inode, Path(objects)) as engine:
            for probe, udp in PROBES.items():
                async with measuring(engine, made.slots[STRANGERS], udp=udp):
                    let_drivers_rest(engine)
                    with counting_runs():
                        for _ in range(rounds):
                            for what, send in senders.items():
                                counts = per_packet(_slice(_wait), _slice(send))
                                found.setdefault((what, probe), []).append(counts)
                                progress.advance(bar)
    return _outcome(found)


def _slice(send: Callable[[], int]) -> Slice:
    before, began = runs(), time.monotonic()
    sent = send()
    seconds, after = time.monotonic() - began, runs()
    return Slice(
        {name: count - before.get(name, 0) for name, count in after.items()}, seconds, sent
    )


def _wait() -> int:
    time.sleep(SECONDS)
    return 0


def _packets(source: Traffic) -> int:
    return source.exchange(SECONDS).packets


def _unix_messages() -> int:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        for _ in range(_UNIX_MESSAGES):
            sender.sendall(b"m" * MESSAGE_BYTES)
            receiver.recv(MESSAGE_BYTES, socket.MSG_WAITALL)
    return _UNIX_MESSAGES


def _outcome(found: Mapping[tuple[str, str], Sequence[Counts]]) -> Outcome:
    sums = Table(title=f"Runs of our programs for one packet or message of a stranger: {MEDIAN}")
    for heading in ("what", "probes ask for", "runs", "target", ""):
        sums.add_column(heading, justify="right" if heading == "runs" else "left")
    rows = []
    for (what, probe), slices in found.items():
        spread, most = Spread.of(sum(counts.values()) for counts in slices), MOST[what]
        is_met = spread.median <= most + _TOLERANCE
        sums.add_row(what, probe, str(spread), f"<= {most}", verdict(met=is_met))
        by_program = {name: median for name, median in _medians(slices).items() if median > 0}
        rows.append(
            {
                "what": what,
                "probes_ask_for": probe,
                **spread.document(),
                "target": most,
                "met": is_met,
                "programs": {name: round(median, 4) for name, median in by_program.items()},
            }
        )
    return Outcome((sums, _programs_table(found)), {"runs": rows})


def _programs_table(found: Mapping[tuple[str, str], Sequence[Counts]]) -> Table:
    table = Table(title="The same by program, medians; those that run seldom are left out")
    table.add_column("program on", no_wrap=True)
    medians = {case: _medians(slices) for case, slices in found.items()}
    for what, probe in medians:
        table.add_column(f"{what}; {probe}", justify="right")
    names = dict.fromkeys(name for each in medians.values() for name in each)
    for name in names:
        values = [each.get(name, 0.0) for each in medians.values()]
        if max(values) > _SELDOM:
            table.add_row(name, *(f"{value:.2f}" for value in values))
    return table


def _medians(slices: Sequence[Counts]) -> Counts:
    names = dict.fromkeys(name for counts in slices for name in counts)
    return {name: Spread.of(counts.get(name, 0.0) for counts in slices).median for name in names}
