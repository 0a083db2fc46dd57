"""Hostile agents of an operator, in a process of their own.

Each answers as an agent until `HostileAgents.attack`. From then on it sends reports that an
operator must refuse, as fast as they are taken, and again on each new stream. A line on the
standard input begins or ends that; each is answered with a line.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench.outcome import CannotMeasureError
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.stages import drop_counter
from latencyprobe.protocol.measurements import MAX_OPEN_COUNTERS, measurement_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tools.fakes.agent import Context, FakeAgent

HUGE, BOMB, BAD = "huge", "bomb", "bad"
HUGE_BYTES = 16 << 20
# gRPC adds a little to each message: this is below the operator's limit of 4 MiB.
BAD_BYTES = (4 << 20) - (64 << 10)
_VARIANTS = 4
_TOO_LARGE = 2**53
_INVENTED = 100
# Field 5 of Report, a stage's coverage: a message of 6 bytes, whose field 1 is a text of 4.
_COVERAGE = b"\x2a\x06\x0a\x04abcd"


def huge_report() -> pb.Report:
    """Return a report of 16 MiB that covers two million stages."""
    return pb.Report.FromString(_COVERAGE * (HUGE_BYTES // len(_COVERAGE)))


def bad_report(probe_id: str, targets: Sequence[str], number: int) -> pb.Report:
    """Return a report of a legal size in which all is wrong.

    It has stages that do not exist, pods of other nodes, and shares that are not numbers. It has
    counters from 2^53 on, and as many counters as a target may have. Another `number` has other
    names.
    """
    report = pb.Report(overhead=pb.Overhead(cpu_percent=math.nan, measured=True))
    probe = report.probes.add(id=probe_id)
    size = 0
    for target in _bad_targets(targets, number):
        size += target.ByteSize() + 8  # its tag, its length
        if size > BAD_BYTES:
            return report
        probe.targets.append(target)
    return report


def _bad_targets(targets: Sequence[str], number: int) -> Iterator[pb.TargetReport]:
    legal, _ = measurement_to_proto(
        Measurement({"rx.total": StageMeasurement(Histogram.of(range(1000, 200_000, 500)))})
    )
    for count, target_id in enumerate(itertools.cycle(targets)):
        name = f"{number}.{count}"
        status = pb.TargetStatus(id=target_id, state=pb.TargetStatus.ATTACHED)
        yield pb.TargetReport(
            status=status,
            stages=[pb.StageDelta(name=f"invented.{name}.{each}") for each in range(_INVENTED)],
        )
        foreign = pb.TargetStatus(id=f"uid-of-{name}/containerd://{name}")
        yield pb.TargetReport(status=foreign, stages=legal)
        broken = pb.StageDelta(name="rx.total", sampling_ratio=math.nan)
        yield pb.TargetReport(status=status, stages=[broken, *legal])
        names = [drop_counter(f"{name}.{each}") for each in range(MAX_OPEN_COUNTERS)]
        yield pb.TargetReport(status=status, counters=dict.fromkeys(names, _TOO_LARGE))
        yield pb.TargetReport(status=status, stages=legal, counters=dict.fromkeys(names, 1))


class HostileAgent(FakeAgent):
    """An agent that can be ordered to send bad reports."""

    def __init__(
        self, tls: ClientTlsFiles, reports: Callable[[HostileAgent], Sequence[pb.Report]]
    ) -> None:
        super().__init__(tls)
        self.attacks = asyncio.Event()
        self.sent = 0
        self._reports = reports
        self._made: Sequence[pb.Report] = ()

    def begin(self) -> None:
        """Attack from now on. The reports are made first: that takes a while."""
        self._made = self._reports(self)
        self.sent = 0
        self.attacks.set()

    async def WatchReports(  # noqa: N802 - the protocol's name
        self, requests: AsyncIterator[pb.WatchReportsRequest], context: Context
    ) -> AsyncIterator[pb.Report]:
        """Yield bad reports while ordered to."""
        context.set_compression(self.compression)
        listening = asyncio.create_task(_forget(requests))
        try:
            for number in itertools.count():
                await self.attacks.wait()
                report = self._made[number % len(self._made)]
                report.instance_id = self.instance_id
                report.generation = self.applied[-1].generation
                self.sent += 1
                yield report
        finally:
            listening.cancel()


async def _forget(requests: AsyncIterator[pb.WatchReportsRequest]) -> None:
    async for _ in requests:
        pass


def _huge(_: HostileAgent) -> Sequence[pb.Report]:
    return [huge_report()]


def _bad(agent: HostileAgent) -> Sequence[pb.Report]:
    (probe,) = agent.applied[-1].probes
    targets = [target.id for target in probe.targets]
    return [bad_report(probe.id, targets, number) for number in range(_VARIANTS)]


# ------------------------------------------------------------------------------- process


@dataclass(frozen=True, slots=True)
class HostileAgents:
    """The process of the agents. `ports`: by the name of their reports, HUGE, BOMB and BAD."""

    ports: dict[str, int]
    _process: asyncio.subprocess.Process

    async def attack(self, name: str, seconds: float) -> int:
        """Have one agent send its reports for some time; return how many it has sent."""
        await self._order(f"begin {name}")
        await asyncio.sleep(seconds)
        return int(await self._order(f"end {name}"))

    async def _order(self, line: str) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        if not (answer := await self._process.stdout.readline()):
            raise CannotMeasureError("the process of the hostile agents has ended")
        return answer


@asynccontextmanager
async def hostile_agents(tls: ClientTlsFiles) -> AsyncIterator[HostileAgents]:
    """Run hostile agents with this certificate, for the time of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.hostile_agents", tls.ca, tls.certificate, tls.key),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if not (line := await process.stdout.readline()):
            raise CannotMeasureError("the process of the hostile agents has ended")
        yield HostileAgents(json.loads(line), process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serve(tls: ClientTlsFiles) -> None:
    agents = {
        HUGE: HostileAgent(tls, _huge),
        BOMB: HostileAgent(tls, _huge),
        BAD: HostileAgent(tls, _bad),
    }
    agents[HUGE].compression = grpc.Compression.NoCompression
    for agent in agents.values():
        await agent.start()
    print(json.dumps({name: agent.port for name, agent in agents.items()}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order, name = line.split()
        if order == "begin":
            agents[name].begin()
        else:
            agents[name].attacks.clear()
        print(agents[name].sent, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(ClientTlsFiles(*map(Path, sys.argv[1:]))))
