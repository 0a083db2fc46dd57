"""The operator's process: builds the parts, and runs kopf until a signal ends it.

With an election, kopf runs and agents are connected to only while this process leads. One that has
lost the Lease ends, and starts again as a standby: so nothing of its time as the leader is left.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kopf

from latencyprobe.exposition.page import metrics_page
from latencyprobe.otlp.pushing import pushed
from latencyprobe.otlp.settings import OtlpSettings
from latencyprobe.process.http_server import health_page, served
from latencyprobe.process.listening import ListenAddress
from latencyprobe.process.open_files import raise_open_files_limit
from latencyprobe.process.tasks import first_to_end
from latencyprobe_operator.admission import NO_LIMITS, AdminLimits
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.source import AgentSource
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.election import Election
from latencyprobe_operator.garbage import GarbageCollector, make_collections_rare
from latencyprobe_operator.handlers import build_registry
from latencyprobe_operator.kube import heap
from latencyprobe_operator.kube.cluster import GROUP, PLURAL, Cluster
from latencyprobe_operator.kube.kopf_scans import patient_scans
from latencyprobe_operator.kube.kopf_watches import paced_watches
from latencyprobe_operator.kube.lease import ClusterLease
from latencyprobe_operator.kube.nesting import allow_nested_objects
from latencyprobe_operator.leadership import Leadership, LeadershipLostError, LeaseTiming
from latencyprobe_operator.metrics import OperatorMetrics

log = logging.getLogger(__name__)

# More than kopf needs. The process ends then, whatever is left.
_KOPF_ENDS_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionOptions:
    """The Lease by which one of several operators leads."""

    namespace: str
    name: str
    timing: LeaseTiming = field(default_factory=LeaseTiming)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the operator. `latencyprobe operator --help` explains each."""

    tls: ClientTlsFiles
    kubeconfig: Path | None = None
    namespace: str = "latencyprobe-system"
    agent_selector: str = "app.kubernetes.io/name=latencyprobe-agent"
    agent_port: int = 9345
    agents: Mapping[str, str] = field(default_factory=dict)
    """Addresses by node; if there are any, the DaemonSet is not used."""
    watch_namespaces: tuple[str, ...] = ()
    metrics_address: ListenAddress | None = None
    otlp: OtlpSettings | None = None
    health_address: ListenAddress | None = None
    limits: AdminLimits = NO_LIMITS
    election: ElectionOptions | None = None
    """None: no other operator serves the same probes."""


def run(options: Options) -> None:
    """Run the operator until SIGTERM or SIGINT."""
    # A file for each agent.
    raise_open_files_limit()
    allow_nested_objects()
    heap.share_one_arena()
    heap.map_read_blocks()
    make_collections_rare()
    asyncio.run(operate(options))


async def operate(options: Options) -> None:
    """Run the operator in a running event loop.

    Raises LeadershipLostError once another operator leads, OtlpFileError at once, and
    TaskFailedError for a task of the controller.
    """
    metrics = OperatorMetrics()
    metrics.show_certificates({"own": options.tls.certificate, "agents-authority": options.tls.ca})
    pages = {"/metrics": metrics_page(metrics.registry)}
    async with (
        served(options.metrics_address, pages),
        pushed(options.otlp, metrics.registry, "latencyprobe-operator"),
    ):
        cluster = await Cluster.connect(options.kubeconfig)
        try:
            # Served by the event loop that does the work: it is healthy as long as it responds.
            async with served(options.health_address, {"/healthz": health_page()}):
                await _take_part(options, cluster, metrics)
        finally:
            await cluster.close()


async def _take_part(options: Options, cluster: Cluster, metrics: OperatorMetrics) -> None:
    if options.election is None:
        metrics.leader.set(1)
        controller = _controller(options, cluster, metrics)
        await _serve(options, cluster, controller, asyncio.Event())
        return
    # As a container, started again, it is another candidate: the one before may not have ended.
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    leadership = Leadership(identity, options.election.timing)
    metrics.leader.set_function(lambda: leadership.remaining_s() > 0)
    lease = ClusterLease(cluster, options.election.namespace, options.election.name)
    election = Election(lease, leadership)
    stopped = _stopped_by_signal()
    try:
        await first_to_end(election.win(), _wait(stopped))
        if not stopped.is_set():
            controller = _controller(options, cluster, metrics, leadership)
            await _serve(options, cluster, controller, stopped, election)
    finally:
        await election.release()


async def _serve(
    options: Options,
    cluster: Cluster,
    controller: Controller,
    stopped: asyncio.Event,
    election: Election | None = None,
) -> None:
    """Run kopf until a signal comes, the Lease is lost, or a task of the controller fails.

    Then disconnect from the agents and release the Lease, without waiting for kopf's end. Agents go
    on: they are the next leader's, or this operator's when it has started again.
    """
    serving = asyncio.create_task(_run_kopf(options, cluster, controller, stopped), name="kopf")
    keeping = [election.keep()] if election else []
    try:
        await first_to_end(*keeping, controller.failure(), _wait(stopped), _end_of(serving))
    except LeadershipLostError as error:
        log.warning("%s; this operator ends, to start again as a standby", error)
        raise
    finally:
        stopped.set()
        await controller.close()
        if election:
            await election.release()
        await asyncio.wait({serving}, timeout=_KOPF_ENDS_S)
    if serving.done():
        serving.result()


def _stopped_by_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set, until kopf takes them."""
    stopped = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    return stopped


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})


def _controller(
    options: Options,
    cluster: Cluster,
    metrics: OperatorMetrics,
    leadership: Leadership | None = None,
) -> Controller:
    return Controller(
        cluster,
        credentials=options.tls.credentials,
        agents=AgentSource(
            options.namespace, options.agent_selector, options.agent_port, options.agents
        ),
        metrics=metrics,
        namespaces=options.watch_namespaces,
        limits=options.limits,
        leadership=leadership,
        collector=GarbageCollector(),
    )


async def _run_kopf(
    options: Options,
    cluster: Cluster,
    controller: Controller,
    stopped: asyncio.Event | None = None,
) -> None:
    """Run kopf until a signal comes, or the event is set. At the latest kopf's end sets it."""
    scan = not options.watch_namespaces
    registry = build_registry(controller, cluster, scan=scan)
    if stopped:
        # kopf takes the signals for itself. And its task that waits for the flag would delay its
        # end by 5 s.
        @kopf.on.cleanup(id="set the flag", registry=registry)
        async def set_flag(**_: Any) -> None:
            stopped.set()

    with paced_watches(), patient_scans(GROUP, PLURAL):
        await kopf.operator(
            registry=registry,
            clusterwide=scan,
            namespaces=options.watch_namespaces,
            standalone=True,
            stop_flag=stopped,
        )
