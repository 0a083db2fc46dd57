"""The operator's cost in a large cluster: python -m bench.operator_scale [CLUSTER]... [--help].

The operator's controller runs in this process. A second process simulates the agents and the API
server (`bench.simulated_agents`), over real gRPC with mutual TLS and real HTTP. The whole operator
runs, except kopf, which is imported for its memory. Each agent sends a summary of all stages of
each of its probes each interval, and the pods in full that the operator wants.

A machine may be too small for both processes. With a longer --interval, everything is slower than
real time. CPU is the operator's own time of one interval, as a part of 10 s.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import json
import multiprocessing
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

import click
import kopf  # noqa: F401 - for its memory
from grpc import aio
from kubernetes.aio.client.configuration import Configuration
from rich.console import Console
from rich.table import Table

from bench.outcome import CannotMeasureError
from bench.simulated_cluster import Counts, Scenario, node_name
from latencyprobe.exposition.protobuf import encode
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.calls import AgentCalls
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.link import _CHANNEL_OPTIONS
from latencyprobe_operator.agents.source import AgentSource
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.garbage import GarbageCollector, make_collections_rare
from latencyprobe_operator.kube import heap
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.metrics import OperatorMetrics

USUAL_INTERVAL_S = 10
MAX_PODS = 20
# Until then, the first reports of all agents have arrived, and their choices have gone out.
SETTLE_INTERVALS = 2
_TICK_S = 0.01
_ATTACH_S = 900.0
_CHANNELS_AT_ONCE = 50
# Each of these parts of an interval is counted on its own.
_PARTS_OF_AN_INTERVAL = 10
# tcpi_bytes_received of struct tcp_info, include/uapi/linux/tcp.h, 4.1+
_BYTES_RECEIVED = 128


@dataclass(frozen=True, slots=True)
class Target:
    """The largest figures of the design."""

    cpu_percent: float
    rss_mib: float
    blocked_ms: float = 100.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A cluster, and the most that its operator may cost."""

    scenario: Scenario
    target: Target


SETTINGS: Mapping[str, Setting] = {
    "one-probe": Setting(Scenario(1000, 1, 1000), Target(25, 256)),
    "many-probes": Setting(Scenario(1000, 50, 20), Target(25, 256)),
    "large": Setting(Scenario(5000, 200, 50), Target(100, 512)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attaching:
    """The cost until all agents are ready. Blocked: the event loop's longest turn."""

    seconds: float
    cpu_s: float
    blocked_cpu_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The use of the processor in one interval, and the event loop's longest turns."""

    cpu_ms: float
    cpu_percent: float
    blocked_ms: float
    blocked_cpu_ms: float
    collecting_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of the process, and of one that has as many idle channels."""

    rss_mib: float
    peak_rss_mib: float
    idle_channels_mib: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTraffic:
    """The exchange with the API server and with the agents in one interval."""

    status_writes: float
    status_kib: float
    expected_reports: int
    reports: float
    reports_kib: float
    network_kib: float
    """The bytes that agents sent: compressed, with the headers of HTTP/2 and TLS."""
    pods_in_full: float
    all_bad_pods_in_full: int
    """The most in any interval, when every pod turns bad in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorScrape:
    """One scrape of the operator's metrics, as protobuf."""

    series: int
    kib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The cost of one operator, in the cluster that it was measured in."""

    cluster: str
    nodes: int
    probes: int
    pods: int
    interval_s: float
    load: float
    """The machine's load average: other processes share its CPUs."""
    attaching: Attaching
    processor: Processor
    memory: Memory
    traffic: OperatorTraffic
    scrape: OperatorScrape


@click.command()
@click.argument("clusters", nargs=-1, metavar="[CLUSTER]...", type=click.Choice(list(SETTINGS)))
@click.option("--nodes", type=click.IntRange(min=1), help="A smaller cluster: so many nodes.")
@click.option("--interval", type=click.IntRange(min=1), default=USUAL_INTERVAL_S, show_default=True)
@click.option("--intervals", type=click.IntRange(min=1), default=12, show_default=True)
@click.option(
    "--settle",
    type=click.IntRange(min=1),
    default=SETTLE_INTERVALS,
    show_default=True,
    help="Intervals before the measured ones. From about the 8th on, most statuses have no rows.",
)
@click.option("--idle-channels", is_flag=True, help="Measure as many idle gRPC channels first.")
@click.option("--profile", type=click.Path(path_type=Path), help="Write cProfile's figures here.")
@click.option("--json", "as_json", is_flag=True, help="Print a document, not tables.")
def main(
    *,
    clusters: tuple[str, ...],
    nodes: int | None,
    interval: int,
    intervals: int,
    settle: int,
    idle_channels: bool,
    profile: Path | None,
    as_json: bool,
) -> None:
    """Measure the operator in these clusters; all of them unless some are named."""
    # as an exception, so that the simulation is ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if len(names := clusters or tuple(SETTINGS)) > 1:
        # Each has a process of its own: memory of one would count for the next.
        for name in names:
            others = [each for each in sys.argv[1:] if each not in SETTINGS]
            command = [sys.executable, "-m", "bench.operator_scale", name, *others]
            subprocess.run(command, check=True)
        return
    (name,) = names
    scenario = SETTINGS[name].scenario
    if nodes:
        scenario = scenario.with_nodes(nodes)
    scenario = replace(scenario, interval_s=interval)
    figures = measure(
        name, scenario, intervals, settle=settle, profile=profile, idle_channels=idle_channels
    )
    if as_json:
        click.echo(json.dumps(asdict(figures), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(
            _table(figures, SETTINGS[name].target)
        )


def measure(
    name: str,
    scenario: Scenario,
    intervals: int,
    *,
    settle: int = SETTLE_INTERVALS,
    profile: Path | None = None,
    idle_channels: bool = False,
) -> Figures:
    """Run the simulation beside the operator; return the operator's cost."""
    idle_mib = 0.0
    if idle_channels:
        with _simulation(scenario) as simulated:
            idle_mib = _in_process(simulated.address, simulated.tls, scenario.nodes)
    with _simulation(scenario) as simulated:
        run = _Run(name, scenario, simulated, intervals, settle=settle, profile=profile)
        return asyncio.run(run.figures(simulated.tls, idle_mib))


@dataclass(frozen=True, slots=True)
class _Simulated:
    host: str
    address: str
    tls: ClientTlsFiles
    counts: Counts


@contextmanager
def _simulation(scenario: Scenario) -> Iterator[_Simulated]:
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        yield from _simulated_in(Path(folder), scenario)


def _simulated_in(folder: Path, scenario: Scenario) -> Iterator[_Simulated]:
    context = multiprocessing.get_context("spawn")
    counts = RawValue(Counts)
    ours, theirs = context.Pipe()
    process = context.Process(target=_simulate, args=(theirs, folder, scenario, counts))
    process.start()
    try:
        theirs.close()
        host, address, tls = ours.recv()
        yield _Simulated(host, address, tls, counts)
    except EOFError:
        raise CannotMeasureError("the simulation has ended") from None
    finally:
        process.terminate()
        process.join()


def _simulate(parent: Connection, folder: Path, scenario: Scenario, counts: Counts) -> None:
    # Its imports would count as the operator's memory.
    from bench.simulated_agents import simulate  # noqa: PLC0415

    simulate(parent, folder, scenario, counts)


# ------------------------------------------------------------------------------ operator


class _Run:
    """One operator in one simulated cluster."""

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        simulated: _Simulated,
        intervals: int,
        *,
        settle: int,
        profile: Path | None,
    ) -> None:
        self._name = name
        self._scenario = scenario
        self._simulated = simulated
        self._intervals = intervals
        self._settle = settle
        self._profile = profile
        self._metrics = OperatorMetrics()

    async def figures(self, tls: ClientTlsFiles, idle_mib: float) -> Figures:
        """Run the operator, and return its cost."""
        scenario, counts = self._scenario, self._simulated.counts
        async with self._operator(tls) as controller:
            began, cpu = time.monotonic(), time.process_time()
            with _watched() as attaching:
                await self._attached(controller)
            attached = Attaching(
                seconds=time.monotonic() - began,
                cpu_s=time.process_time() - cpu,
                blocked_cpu_ms=attaching.cpu_ms,
            )
            await asyncio.sleep(self._settle * scenario.interval_s)
            received = received_bytes(self._simulated.address)
            before, cpu = _copy(counts), time.process_time()
            with _watched() as blocked, self._profiled():
                await asyncio.sleep(self._intervals * scenario.interval_s)
            cpu_ms = 1000 * (time.process_time() - cpu) / self._intervals
            after, rss_after_mib = _copy(counts), rss_mib()
            received = received_bytes(self._simulated.address) - received
            families, load = list(self._metrics.registry.collect()), os.getloadavg()[0]
            traffic = OperatorTraffic(
                expected_reports=scenario.probes * scenario.nodes_of_a_probe,
                network_kib=received / self._intervals / 1024,
                all_bad_pods_in_full=await self._turn_bad(),
                **{
                    key: (after[field] - before[field]) / self._intervals / divisor
                    for key, field, divisor in _COUNTED
                },
            )
            return Figures(
                cluster=self._name,
                nodes=scenario.nodes,
                probes=scenario.probes,
                pods=scenario.pods,
                interval_s=scenario.interval_s,
                load=load,
                attaching=attached,
                processor=Processor(
                    cpu_ms=cpu_ms,
                    cpu_percent=cpu_ms / USUAL_INTERVAL_S / 10,
                    blocked_ms=blocked.wall_ms,
                    blocked_cpu_ms=blocked.cpu_ms,
                    collecting_ms=blocked.collecting_ms,
                ),
                memory=Memory(
                    rss_mib=rss_after_mib,
                    peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                    idle_channels_mib=idle_mib,
                ),
                traffic=traffic,
                scrape=OperatorScrape(
                    series=sum(len(family.samples) for family in families),
                    kib=len(encode(families)) / 1024,
                ),
            )

    @asynccontextmanager
    async def _operator(self, tls: ClientTlsFiles) -> AsyncIterator[Controller]:
        _prepare_memory()
        nodes = map(node_name, range(self._scenario.nodes))
        cluster = _client(self._simulated.host)
        controller = Controller(
            cluster,
            credentials=tls.credentials,
            agents=AgentSource("", "", 0, dict.fromkeys(nodes, self._simulated.address)),
            metrics=self._metrics,
            collector=GarbageCollector(),
        )
        await controller.start()
        running = [
            asyncio.create_task(controller.add(body).run())
            for body in self._scenario.probe_bodies()
        ]
        try:
            yield controller
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await controller.close()
            await cluster.close()

    async def _attached(self, controller: Controller) -> None:
        async with asyncio.timeout(_ATTACH_S):
            while controller._fleet.states().get("Ready", 0) < self._scenario.nodes:
                await asyncio.sleep(0.5)

    async def _turn_bad(self) -> int:
        """Have every pod turn bad; return the most pods in full in any interval."""
        counts = self._simulated.counts
        counts.all_bad = 1
        seen: list[int] = [counts.pods_in_full]
        for _ in range(3 * _PARTS_OF_AN_INTERVAL):
            await asyncio.sleep(self._scenario.interval_s / _PARTS_OF_AN_INTERVAL)
            seen.append(counts.pods_in_full)
        return max(
            later - earlier
            for earlier, later in zip(seen, seen[_PARTS_OF_AN_INTERVAL:], strict=False)
        )

    @contextmanager
    def _profiled(self) -> Iterator[None]:
        if self._profile is None:
            yield
            return
        profiler = cProfile.Profile(time.thread_time)
        profiler.enable()
        try:
            yield
        finally:
            profiler.disable()
            profiler.dump_stats(self._profile)


def _prepare_memory() -> None:
    """Do what the operator does first."""
    heap.share_one_arena()
    heap.map_read_blocks()
    make_collections_rare()


# Of the fields of OperatorTraffic: the counter, and the divisor.
_COUNTED = (
    ("status_writes", "status_writes", 1),
    ("status_kib", "status_bytes", 1024),
    ("reports", "reports", 1),
    ("reports_kib", "report_bytes", 1024),
    ("pods_in_full", "pods_in_full", 1),
)


def _copy(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name, _ in Counts._fields_}


def _client(host: str) -> Cluster:
    configuration = Configuration()
    configuration.host = host
    return Cluster(configuration)


@dataclass(slots=True)
class _Blocked:
    """The longest time without a turn of a timer: of the clock, and of the loop's thread.

    `collecting_ms`: the longest garbage collection.
    """

    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    collecting_ms: float = 0.0
    _began: float = 0.0

    def on_collection(self, phase: str, _info: object) -> None:
        """Take the time of a garbage collection, as one of `gc.callbacks`."""
        now = time.thread_time()
        if phase == "start":
            self._began = now
        else:
            self.collecting_ms = max(self.collecting_ms, 1000 * (now - self._began))


@contextmanager
def _watched() -> Iterator[_Blocked]:
    """Watch the event loop."""
    blocked = _Blocked()
    task = asyncio.create_task(_watch(blocked))
    gc.callbacks.append(blocked.on_collection)
    try:
        yield blocked
    finally:
        gc.callbacks.remove(blocked.on_collection)
        task.cancel()


async def _watch(blocked: _Blocked) -> None:
    while True:
        wall, cpu = time.monotonic(), time.thread_time()
        await asyncio.sleep(_TICK_S)
        late_s = time.monotonic() - wall - _TICK_S
        blocked.wall_ms = max(blocked.wall_ms, 1000 * late_s)
        blocked.cpu_ms = max(blocked.cpu_ms, 1000 * (time.thread_time() - cpu))


def rss_mib() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def received_bytes(address: str) -> int:
    """Return the bytes that this process has received from this address, by its open sockets."""
    port = int(address.rpartition(":")[2])
    received = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as each:
                if each.family in (socket.AF_INET, socket.AF_INET6):
                    is_agent = each.getpeername()[1] == port
                    info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    received += is_agent * struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0]
        except OSError:
            continue  # closed, or not connected
    return received


# -------------------------------------------------------------------------- idle channels


def _in_process(address: str, tls: ClientTlsFiles, channels: int) -> float:
    """Return the memory of idle channels, and of the process, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_keep_idle, args=(theirs, address, tls, channels))
    process.start()
    theirs.close()
    try:
        return float(ours.recv())
    finally:
        process.join()


def _keep_idle(parent: Connection, address: str, tls: ClientTlsFiles, channels: int) -> None:
    _prepare_memory()
    parent.send(asyncio.run(_open_channels(address, tls, channels)))


async def _open_channels(address: str, tls: ClientTlsFiles, channels: int) -> float:
    """Open channels as links do, with a stream of reports each; return the memory in MiB."""
    credentials = tls.credentials()
    kept = []

    async def opened() -> None:
        channel = aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
        calls = AgentCalls(channel)
        await calls.GetNodeInfo(pb.GetNodeInfoRequest(), timeout=60)
        call = calls.WatchReports()
        await call.write(pb.WatchReportsRequest())
        kept.append((channel, call))

    for begin in range(0, channels, _CHANNELS_AT_ONCE):
        await asyncio.gather(*(opened() for _ in range(min(_CHANNELS_AT_ONCE, channels - begin))))
    heap.give_back()
    return rss_mib()


# --------------------------------------------------------------------------------- table


def _table(figures: Figures, target: Target) -> Table:
    table = Table(
        title=f"{figures.cluster}: {figures.nodes} nodes, {figures.pods} pods, "
        f"{figures.probes} probes; an interval of 10 s, simulated in {figures.interval_s} s; "
        f"load average {figures.load:.1f}"
    )
    for heading in ("figure", "measured", "wanted"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    attaching, processor, memory = figures.attaching, figures.processor, figures.memory
    traffic, scrape = figures.traffic, figures.scrape
    rows = [
        ("CPU, of one core", f"{processor.cpu_percent:.1f} %", f"{target.cpu_percent:g} %"),
        ("CPU of an interval", f"{processor.cpu_ms:.0f} ms", ""),
        ("RSS", f"{memory.rss_mib:.0f} MiB", f"{target.rss_mib:g} MiB"),
        ("largest RSS", f"{memory.peak_rss_mib:.0f} MiB", ""),
        ("idle channels, with the process", f"{memory.idle_channels_mib:.0f} MiB", ""),
        (
            "loop blocked, CPU time",
            f"{processor.blocked_cpu_ms:.0f} ms",
            f"{target.blocked_ms:g} ms",
        ),
        ("loop blocked, clock", f"{processor.blocked_ms:.0f} ms", ""),
        ("longest garbage collection", f"{processor.collecting_ms:.0f} ms", ""),
        ("status writes", f"{traffic.status_writes:.1f}", ""),
        ("status bytes", f"{traffic.status_kib:.1f} KiB", ""),
        # Fewer: the simulation is too slow for this interval.
        ("reports", f"{traffic.reports:.0f}", f"{traffic.expected_reports}"),
        ("report bytes", f"{traffic.reports_kib:.0f} KiB", ""),
        ("the same on the network, with headers", f"{traffic.network_kib:.0f} KiB", ""),
        ("pods in full", f"{traffic.pods_in_full:.1f}", ""),
        (
            "pods in full if all turn bad",
            f"{traffic.all_bad_pods_in_full}",
            f"{3 * MAX_PODS * figures.probes}",
        ),
        ("series of the metrics", f"{scrape.series}", ""),
        ("bytes of a scrape", f"{scrape.kib:.1f} KiB", ""),
        ("attached after", f"{attaching.seconds:.1f} s", ""),
        ("CPU until then", f"{attaching.cpu_s:.1f} s", ""),
        ("loop blocked until then, CPU time", f"{attaching.blocked_cpu_ms:.0f} ms", ""),
    ]
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    main()
