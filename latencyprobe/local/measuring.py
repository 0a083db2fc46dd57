"""A run on this machine: an agent of our own, a session with it, and the reasons to end it.

`latencyprobe run` and `latencyprobe demo` share it. It ends after its duration, with the command
that it started or with its last target, or on the first SIGINT or SIGTERM. After a second signal it
does not wait for the last figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import grpc

from latencyprobe.domain.document import LatencyReport
from latencyprobe.local.agent_process import AgentError, AgentProcess, private_agent
from latencyprobe.local.command_process import StoppedCommand
from latencyprobe.local.session import LONGEST_INTERVAL_NS, MeasurementRequest, Session
from latencyprobe.process.tasks import first_to_end
from latencyprobe.protocol.measurements import CorruptMessageError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# An agent that is this late with a report will not send it.
LATENESS_S = 2.0
# A command that got the terminal's Ctrl-C as we did may need a moment for its own clean-up.
TIME_FOR_THE_COMMAND_S = 1.0


MakeSession = Callable[[grpc.aio.Channel, MeasurementRequest], Session]


class Observer(Protocol):
    """An observer of a run, such as the terminal."""

    def attaching(self) -> None:
        """Notice that the agent starts and attaches."""

    def attached(self, problems: Sequence[str]) -> None:
        """Notice that packets are measured from now on, except those of `problems`."""

    def updated(self, report: LatencyReport) -> None:
        """Notice a new report."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The outcome of a run. `failure`: the reason for an early end; the report is then partial.

    `command_status`: exit status of the command, if it ended by itself.
    """

    report: LatencyReport
    command_status: int | None = None
    failure: AgentError | None = None


class InterruptedBeforeError(RuntimeError):
    """A signal that arrived before anything was measured. `signal_number` is its number."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__("interrupted before anything was measured")


async def measure(
    request: MeasurementRequest,
    observer: Observer,
    *,
    duration_s: float | None = None,
    command: StoppedCommand | None = None,
    show_log: bool = False,
    make_session: MakeSession = Session,
    is_enough: asyncio.Event | None = None,
) -> RunOutcome:
    """Measure until there is a reason to end, and report. Setting `is_enough` is such a reason.

    Raises AgentError, ProtocolVersionError, NoTargetError or InterruptedBeforeError if nothing
    could be measured, and CommandError if the command cannot be executed. The command never runs
    unmeasured.
    """
    async with (
        _signals(command) as signals,
        private_agent(show_log=show_log) as agent,
    ):
        observer.attaching()
        async with agent.channel() as channel:
            session = make_session(channel, request)
            await _attach(agent, session, signals)
            run = _Run(
                agent, session, observer, signals, command, is_enough=is_enough or asyncio.Event()
            )
            return await run.until_its_end(duration_s)


async def _attach(agent: AgentProcess, session: Session, signals: _Signals) -> None:
    await first_to_end(agent.while_alive(session.attach), signals.interrupted())


class _Run:
    """One run, from attaching to its report."""

    def __init__(
        self,
        agent: AgentProcess,
        session: Session,
        observer: Observer,
        signals: _Signals,
        command: StoppedCommand | None,
        *,
        is_enough: asyncio.Event,
    ) -> None:
        self._agent = agent
        self._session = session
        self._observer = observer
        self._signals = signals
        self._command = command
        self._is_enough = is_enough

    async def until_its_end(self, duration_s: float | None) -> RunOutcome:
        watching = asyncio.create_task(self._agent.while_alive(self._watch))
        try:
            self._observer.attached(self._session.problems)
            if self._command:
                self._command.release()
            await self._reason_to_end(duration_s, watching)
            await self._last_figures(watching)
        finally:
            failure = await _failure_of(watching)
            command_status = await self._end_command(failure)
        return RunOutcome(self._session.report(), command_status, failure)

    async def _watch(self) -> None:
        await self._session.watch(lambda: self._observer.updated(self._session.report()))

    async def _reason_to_end(self, duration_s: float | None, watching: asyncio.Task[None]) -> None:
        reasons: list[Awaitable[object]] = [
            asyncio.wait({watching}),
            self._signals.first.wait(),
            self._is_enough.wait(),
        ]
        if duration_s is not None:
            reasons.append(asyncio.sleep(duration_s))
        if self._command:
            reasons.append(self._command.wait())
        else:
            reasons.append(self._session.every_target_gone())
        await first_to_end(*reasons)

    async def _last_figures(self, watching: asyncio.Task[None]) -> None:
        """Wait for the report on everything until now, a deadline or the second signal."""
        await first_to_end(
            asyncio.wait({watching}),
            self._all_seen(watching),
            asyncio.sleep(LONGEST_INTERVAL_NS / 1e9 + LATENESS_S),
            self._signals.second.wait(),
        )

    async def _all_seen(self, watching: asyncio.Task[None]) -> None:
        try:
            await self._session.seen_until_now()
        except grpc.aio.AioRpcError:
            # The stream that `watching` reads breaks too, and its failure is the one to report.
            await asyncio.wait({watching})

    async def _end_command(self, failure: AgentError | None) -> int | None:
        """Return the command's status if it ended by itself; end it otherwise.

        If the measurement failed, wait for the command instead: the failure is not its fault.
        """
        if not self._command or not self._command.released:
            return None
        if failure and not self._signals.first.is_set():
            return await self._command.wait()
        if self._signals.first.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIME_FOR_THE_COMMAND_S):
                    await self._command.wait()
        status = self._command.poll()
        if status is None:
            await self._command.end()
        return status


async def _failure_of(watching: asyncio.Task[None]) -> AgentError | None:
    """End the stream; return the reason for its early end, if any."""
    watching.cancel()
    await asyncio.wait({watching})
    if watching.cancelled():
        return None
    match watching.exception():
        case AgentError() as error:
            return error
        case CorruptMessageError() as error:
            return AgentError(f"the agent sent an invalid report: {error}")
        case None:
            return AgentError("the agent closed the stream of reports")
        case error:
            raise error


class _Signals:
    """The signals of a run: the first requests its end, the second skips the last figures."""

    def __init__(self, command: StoppedCommand | None) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self._number = 0
        self._command = command

    async def interrupted(self) -> NoReturn:
        await self.first.wait()
        raise InterruptedBeforeError(self._number)

    def came(self, number: int) -> None:
        self._number = self._number or number
        (self.second if self.first.is_set() else self.first).set()
        # The terminal sends SIGINT to the command as well; SIGTERM reaches only this process.
        if number == signal.SIGTERM and self._command and self._command.released:
            self._command.send(number)


@contextlib.asynccontextmanager
async def _signals(command: StoppedCommand | None) -> AsyncIterator[_Signals]:
    loop = asyncio.get_running_loop()
    signals = _Signals(command)
    for number in SIGNALS:
        loop.add_signal_handler(number, signals.came, number)
    try:
        yield signals
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
