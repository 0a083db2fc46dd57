"""A running agent or operator: its cost, and the times of its answers to legitimate clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from bench.outcome import CannotMeasureError

LOOPBACK = "127.0.0.1"
_TICKS = os.sysconf("SC_CLK_TCK")
_ENDS_S = 20.0
_ANSWER_S = 30.0
# proc_pid_clear_refs(5): VmHWM begins again at the present size.
_RESET_PEAK = "5"
FAILURES = (OSError, EOFError, TimeoutError, grpc.aio.AioRpcError)

Ask = Callable[[], Awaitable[None]]
"""One request of a legitimate client, until its answer. Raises one of FAILURES."""


class NotServedError(RuntimeError):
    """A process that has ended, or that serves no legitimate client after a flood."""


class WatchedProgram:
    """A running `latencyprobe`. Made by `running`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    def check_runs(self) -> None:
        """Raise NotServedError if it has ended."""
        if (status := self._process.poll()) is not None:
            raise NotServedError(f"the process ended with status {status}:\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of its log."""
        return self._log.read_text(errors="replace")[-2000:]


@contextmanager
def running(*arguments: object, log: Path) -> Iterator[WatchedProgram]:
    """Run `latencyprobe` with these arguments, for the time of the `with` block."""
    command = [sys.executable, "-P", "-m", "latencyprobe.commands.cli", *map(str, arguments)]
    # A proxy of this machine leads to none of ours.
    environment = {k: value for k, value in os.environ.items() if "proxy" not in k.lower()}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )
    try:
        yield WatchedProgram(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDS_S)
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port that no socket has at this moment."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


async def until_served(program: WatchedProgram, ask: Ask, what: str, within_s: float) -> None:
    """Ask until there is an answer; raise NotServedError without any."""
    deadline = time.monotonic() + within_s
    while True:
        program.check_runs()
        try:
            async with asyncio.timeout(_ANSWER_S):
                await ask()
        except FAILURES as error:
            if time.monotonic() > deadline:
                raise NotServedError(
                    f"{what} has no answer after {within_s:g} s: {error!r}\n{program.tail()}"
                ) from None
            await asyncio.sleep(0.1)
        else:
            return


# ---------------------------------------------------------------------------------- HTTP


async def get(port: int, path: str) -> bytes:
    """Return the body of a page; raise one of FAILURES if there is none."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\n\r\n".encode())
        answer = await reader.read(-1)
    finally:
        writer.close()
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator or b" 200 " not in head.partition(b"\r\n")[0]:
        raise EOFError(f"no page: {head[:80]!r}")
    return body


def counters(page: str, *names: str) -> dict[str, int]:
    """Return these counters of a page of metrics, by the value of their label or their name."""
    return {
        " ".join(sample.labels.values()) or family.name: int(sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name in names
    }


def more(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Return the counters that have grown, and by how much."""
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in grown.items() if count}


# --------------------------------------------------------------------------------- costs


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a flood for a process. `rss_after_mib`: some seconds after it."""

    seconds: float
    cpu_s: float
    rss_before_mib: float
    rss_peak_mib: float
    rss_after_mib: float


class Meter:
    """A meter of one process. It begins with the present figures."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)
        self._before_mib = memory_mib(pid, "VmRSS")
        self._began, self._cpu_s = time.monotonic(), cpu_s(pid)

    async def cost(self, settle_s: float) -> Cost:
        """Return the cost until now, and the memory that is left after some seconds."""
        seconds = time.monotonic() - self._began
        spent = cpu_s(self._pid) - self._cpu_s
        await asyncio.sleep(settle_s)
        peak = memory_mib(self._pid, "VmHWM")
        return Cost(seconds, spent, self._before_mib, peak, memory_mib(self._pid, "VmRSS"))


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, with that of threads that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, kernel = fields[11:13]
    return (int(user) + int(kernel)) / _TICKS


def memory_mib(pid: int, field: str) -> float:
    """Return a field of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise CannotMeasureError(f"/proc/{pid}/status shows no {field}")


# ------------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to a legitimate client: their number, their times, and requests without one.

    `reasons`: those of such requests, each once.
    """

    answered: int
    failed: int
    median_ms: float
    worst_ms: float
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, seconds: Sequence[float], failures: Sequence[str] = ()) -> Answers:
        """Return these answers and failures together."""
        failed, reasons = len(failures), tuple(sorted(set(failures)))
        if not seconds:
            return cls(0, failed, 0.0, 0.0, reasons)
        median_ms, worst_ms = 1000 * statistics.median(seconds), 1000 * max(seconds)
        return cls(len(seconds), failed, median_ms, worst_ms, reasons)

    def __str__(self) -> str:
        asked = self.answered + self.failed
        if not self.answered:
            return f"none of {asked}" if asked else ""
        times = f"{self.median_ms:.0f} / {self.worst_ms:.0f}"
        return f"{times}, {self.answered} of {asked}" if self.failed else times


class Requests:
    """Requests of a legitimate client, one after the other, begun every so often."""

    def __init__(self, ask: Ask, every_s: float) -> None:
        self._ask = ask
        self._every_s = every_s
        self._times_s: list[float] = []
        self._failures: list[str] = []
        self._is_over = False

    def answers(self) -> Answers:
        """Return the answers until now."""
        return Answers.of(self._times_s, self._failures)

    def end(self) -> None:
        """Count no more failures: the request that is cancelled now is none."""
        self._is_over = True

    async def run(self) -> None:
        """Ask until cancelled."""
        while not self._is_over:
            began = time.monotonic()
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await self._ask()
            except FAILURES as error:
                if not self._is_over:
                    self._failures.append(_reason(error))
            else:
                self._times_s.append(time.monotonic() - began)
            await asyncio.sleep(max(self._every_s - (time.monotonic() - began), 0))


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return repr(error)


@asynccontextmanager
async def asking(asked: Mapping[str, Requests]) -> AsyncIterator[None]:
    """Ask all of these, for the time of the block."""
    tasks = [asyncio.create_task(requests.run()) for requests in asked.values()]
    try:
        yield
    finally:
        for requests in asked.values():
            requests.end()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
