"""`latencyprobe demo`: a client and a server in two network namespaces, measured for real.

The namespaces have no names: only the two processes hold them. The processes die with this one, so
nothing is left behind, however the demo ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence

import click

from latencyprobe.commands.demo_traffic import (
    BLOCKING_EVERY_S,
    BLOCKING_S,
    SERVER_IPV4,
    SERVER_IPV6,
    Sent,
)
from latencyprobe.commands.parameters import DURATION
from latencyprobe.commands.run import (
    RunPresentation,
    exit_status_of,
    interval_option,
    output_option,
    report_outcome,
    verbose_option,
)
from latencyprobe.commands.terminal import OutputFormat, TerminalObserver, can_show_live, say
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.local.measuring import RunOutcome, measure
from latencyprobe.local.session import MeasurementRequest, PidTarget
from latencyprobe.process import interpreter

CLIENT_IPV4 = "192.0.2.1"
CLIENT_IPV6 = "2001:db8::1"
TIME_TO_START_S = 30.0
# The server acknowledges at once, by its routes. Otherwise an ACK waits for the answer to ride on,
# and tcp.rtt at the client shows the server's slowness (tcp_in_quickack_mode(),
# net/ipv4/tcp_input.c).
SERVER_NETWORK = f"""\
link set lo up
address add {SERVER_IPV4}/30 dev eth0 noprefixroute
address add {SERVER_IPV6}/64 dev eth0 nodad noprefixroute
link set eth0 up
route add 192.0.2.0/30 dev eth0 quickack 1
route add 2001:db8::/64 dev eth0 quickack 1
"""
CLIENT_NETWORK = f"""\
link set lo up
address add {CLIENT_IPV4}/30 dev eth0
address add {CLIENT_IPV6}/64 dev eth0 nodad
link set eth0 up
"""
EXAMPLES = """\
\b
Examples:
  latencyprobe demo
  latencyprobe demo --duration 3s -o json
"""


class DemoError(RuntimeError):
    """A step of setting up client and server that failed. The message has its output."""


@click.command("demo", epilog=EXAMPLES)
@click.option(
    "--duration",
    type=DURATION,
    default="10s",
    show_default=True,
    help="Duration of the measurement.",
)
@interval_option
@output_option
@verbose_option
def demo_command(*, duration: int, interval: int, output: str, verbose: bool) -> None:
    """Measure a client and a server in two network namespaces, as a demonstration.

    The server has a fault, and the report should find it. The demo needs root. It changes nothing
    outside its two network namespaces, and removes them at the end.
    """
    presentation = RunPresentation(
        output=OutputFormat(output),
        output_file=None,
        quiet=False,
        verbose=verbose,
        live=output == OutputFormat.TABLE and not verbose and can_show_live(),
    )
    sys.exit(exit_status_of(lambda: _demo(duration, interval, presentation)))


def _demo(duration_ns: int, interval_ns: int, presentation: RunPresentation) -> int:
    try:
        outcome, sent = asyncio.run(_measure(duration_ns, interval_ns, presentation))
    except DemoError as error:
        say(f"error: {error}")
        return 1
    status = report_outcome(outcome, presentation, with_command=False)
    say(
        f"the client sent: {sent.connections} connections, {sent.requests} requests, "
        f"{sent.datagrams} datagrams"
    )
    say(
        f"the fault: every {BLOCKING_EVERY_S * 1e3:.0f} ms the server's event loop is "
        f"blocked for {BLOCKING_S * 1e3:.0f} ms"
    )
    return status


async def _measure(
    duration_ns: int, interval_ns: int, presentation: RunPresentation
) -> tuple[RunOutcome, Sent]:
    async with _workload(duration_ns / 1e9) as workload:
        request = MeasurementRequest(
            targets=workload.targets, modules=DEFAULT_MODULES, interval_ns=interval_ns
        )
        observer = _DemoObserver(workload, presentation, interval_ns / 1e9)
        with observer.watching():
            # It ends because its targets do, so that the report covers all that the client sent.
            outcome = await measure(request, observer, show_log=presentation.verbose)
        return outcome, await workload.end()


class _DemoObserver(TerminalObserver):
    """An observer that starts the client once it is measured."""

    def __init__(
        self, workload: _Workload, presentation: RunPresentation, interval_s: float
    ) -> None:
        super().__init__(quiet=False, live=presentation.live, interval_s=interval_s)
        self._workload = workload

    def attached(self, problems: Sequence[str]) -> None:
        """Start the client: packets are measured from now on."""
        super().attached(problems)
        self._workload.begin()


class _Peer:
    """One of the two processes, in a network namespace of its own."""

    def __init__(self, role: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.role = role
        self.pid = process.pid
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    def start(self) -> None:
        """Allow it to use the network."""
        self._stdin.write(b"go\n")

    async def says(self, word: str) -> None:
        """Wait until it reports this state; raise DemoError after another one, or a timeout."""
        try:
            async with asyncio.timeout(TIME_TO_START_S):
                line = await self._stdout.readline()
        except TimeoutError:
            raise DemoError(
                f"the demo's {self.role} did not report {word!r} within {TIME_TO_START_S:g} s"
            ) from None
        if line.decode().strip() != word:
            raise DemoError(f"the demo's {self.role} exited before it reported {word!r}")

    async def finish(self) -> list[bytes]:
        """End it; return the lines that it wrote since `says`."""
        self._stdin.close()
        lines = (await self._stdout.read()).splitlines()
        await self._process.wait()
        return lines

    async def kill(self) -> None:
        """Kill it at once; nothing is lost by that."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


@contextlib.asynccontextmanager
async def _peer(role: str) -> AsyncIterator[_Peer]:
    process = await asyncio.create_subprocess_exec(
        # Both exec, so that the process id stays; it dies with us, and its netns with it.
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--"),
        *interpreter.python_module("latencyprobe.commands.demo_traffic", role),
        env=interpreter.environment(),
        cwd=interpreter.DIRECTORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    peer = _Peer(role, process)
    try:
        await peer.says("up")
        yield peer
    finally:
        await peer.kill()


class _Workload:
    """A server that is ready, and a client that sends for some seconds from `begin` on."""

    def __init__(self, server: _Peer, client: _Peer, duration_s: float) -> None:
        self._server, self._client = server, client
        self._duration_s = duration_s
        self._over = asyncio.Event()
        self._playing: asyncio.Task[Sent] | None = None

    @property
    def targets(self) -> tuple[PidTarget, ...]:
        return tuple(PidTarget(peer.role, peer.pid) for peer in (self._server, self._client))

    def begin(self) -> None:
        """Start the client."""
        self._playing = asyncio.create_task(self._play())

    async def end(self) -> Sent:
        """End it, if it is still running; return the counts of the client."""
        self._over.set()
        return await self._playing if self._playing else Sent()

    async def _play(self) -> Sent:
        self._client.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._duration_s):
                await self._over.wait()
        _ready, sent = await self._client.finish()
        await self._server.finish()
        return Sent(**json.loads(sent))


@contextlib.asynccontextmanager
async def _workload(duration_s: float) -> AsyncIterator[_Workload]:
    """Run the two processes, with a link between them."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(_peer("server"))
        client = await stack.enter_async_context(_peer("client"))
        await _connect(server, client)
        server.start()
        await server.says("ready")
        yield _Workload(server, client, duration_s)


async def _connect(server: _Peer, client: _Peer) -> None:
    """Make a veth pair between the two namespaces, with addresses at both ends."""
    await _run(
        *("ip", "link", "add", "eth0", "netns", str(server.pid)),
        *("type", "veth", "peer", "name", "eth0", "netns", str(client.pid)),
    )
    for peer, network in ((server, SERVER_NETWORK), (client, CLIENT_NETWORK)):
        await _run("nsenter", "--target", str(peer.pid), "--net", "ip", "-batch", "-", text=network)


async def _run(*argv: str, text: str = "") -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise DemoError(
            f"cannot run {argv[0]}: it is not installed; install iproute2 and util-linux"
        ) from None
    _, answer = await process.communicate(text.encode())
    if process.returncode:
        raise DemoError(
            f"cannot set up the demo: {' '.join(argv)}: {answer.decode(errors='replace').strip()}"
        )
