"""The agent as a process: assembled, run, and shut down in order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import platform
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from latencyprobe.otlp.files import OtlpFileError, check_files
from latencyprobe.otlp.pushing import pushed
from latencyprobe.otlp.resources import HOST, NODE
from latencyprobe.otlp.settings import OtlpSettings
from latencyprobe.process.capabilities import (
    CAP_SYS_ADMIN,
    MissingCapabilityError,
    effective_capabilities,
    require_capabilities,
)
from latencyprobe.process.http_server import ServeError, served
from latencyprobe.process.listening import ListenAddress
from latencyprobe.process.tasks import EssentialTasks, first_to_end
from latencyprobe.process.temporary import remove_leftovers
from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.budget import NO_CEILINGS, Ceilings
from latencyprobe_agent.evidence.gatherer import Gatherer
from latencyprobe_agent.evidence.known_cgroups import KnownCgroups
from latencyprobe_agent.evidence.namespaces import Namespace
from latencyprobe_agent.kernel.contract import Engine, EngineError
from latencyprobe_agent.kernel.hooks import SCOPED_HOOKS
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.typeinfo import kernel_types_kind
from latencyprobe_agent.node import HostNetnsError, host_netns_inode
from latencyprobe_agent.pacing import CHANGE_INTERVAL_S
from latencyprobe_agent.pressure import CpuPressure
from latencyprobe_agent.serving.figures import FigureCollector
from latencyprobe_agent.serving.metrics import AgentMetrics, pages
from latencyprobe_agent.serving.metrics_access import MetricsAccess, MetricsAccessFiles
from latencyprobe_agent.serving.service import ListenError, Server, SocketAddress, TcpAddress
from latencyprobe_agent.serving.tls import TlsFileError
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.totals import DEFAULT_MAX_PODS, Totals

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


class StartError(Exception):
    """A failed start of the agent. The message is for people."""


class MakeEngine(Protocol):
    """A maker of the kernel side."""

    def __call__(self, *, host_netns: int) -> Engine:
        """Make the engine of this node."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings from outside. Large: one attribute a setting."""

    address: TcpAddress | SocketAddress
    node_name: str
    host_netns: Path | None = None
    proc_root: Path = Path("/proc")
    cgroup_root: str | None = None
    metrics_address: ListenAddress | None = None
    metrics_max_pods: int = DEFAULT_MAX_PODS
    metrics_access: MetricsAccessFiles | None = None
    otlp: OtlpSettings | None = None
    ceilings: Ceilings = NO_CEILINGS
    object_cache: Path | None = None
    uses_cgroup_hooks: bool = True
    uses_device_hooks: bool = False
    exemplars_ns: int | None = None
    """Trace packets that take at least this long; None: for clients only."""

    @property
    def shows_metrics(self) -> bool:
        """Return whether metrics are served or pushed."""
        return self.metrics_address is not None or self.otlp is not None


async def run(settings: Settings, make_engine: MakeEngine | None = None) -> None:
    """Serve until SIGTERM or SIGINT; raise StartError if that fails.

    Raises TaskFailedError for a task without which the agent would measure or serve nothing.
    `make_engine`: None for the engine of the running kernel.
    """
    _check_push(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if leftovers := remove_leftovers():
        log.info("removed %d temporary folders that killed processes had left behind", leftovers)
    try:
        async with _agent(settings, make_engine) as (agent, metrics):
            await _serve(agent, metrics, settings, stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    log.info("stopped")


def check_capabilities() -> None:
    """Raise StartError without the capabilities to measure; warn without those for overhead."""
    try:
        require_capabilities()
    except MissingCapabilityError as error:
        raise StartError(str(error)) from None
    if not effective_capabilities() >> CAP_SYS_ADMIN & 1:
        log.warning("cannot measure the cost of the eBPF programs: this needs CAP_SYS_ADMIN")


def exit_with_parent(parent: int | None) -> None:
    """Request SIGTERM at the exit of the parent; raise StartError if it has exited already.

    `parent` is its process id, if it is known; else the current parent is taken.
    """
    expected = parent or os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise StartError(f"cannot follow the parent process: prctl(PR_SET_PDEATHSIG): {reason}")
    if os.getppid() != expected:
        raise StartError(f"the parent process (PID {expected}) has exited")


@contextlib.asynccontextmanager
async def _agent(
    settings: Settings, make_engine: MakeEngine | None
) -> AsyncIterator[tuple[Agent, AgentMetrics]]:
    """Run the agent with its engine; always detach it at the end."""
    try:
        host_inode = host_netns_inode(settings.host_netns)
        resolver = Resolver(
            proc_root=settings.proc_root,
            cgroup_root=settings.cgroup_root,
            host_netns=host_inode,
        )
        engine = (make_engine or _kernel_engine(settings))(host_netns=host_inode)
    except (OSError, EngineError, HostNetnsError) as error:
        raise StartError(str(error)) from None
    metrics = AgentMetrics()
    if isinstance(settings.address, TcpAddress):
        files = settings.address.files
        metrics.show_certificates({"own": files.certificate, "operator-authority": files.ca})
    evidence = Gatherer(
        _host_namespace(settings, host_inode),
        proc_root=settings.proc_root,
        cgroup_root=settings.cgroup_root,
    )
    node = _node_facts(settings, resolver, host_inode)
    totals = Totals(settings.metrics_max_pods) if settings.shows_metrics else None
    agent = Agent(
        engine,
        resolver,
        node,
        metrics,
        evidence,
        ceilings=settings.ceilings,
        pressure=CpuPressure(settings.proc_root).percent,
        change_interval_s=_change_interval_s(settings),
        totals=totals,
        cgroups=KnownCgroups(resolver.hierarchy),
        exemplars_ns=settings.exemplars_ns,
    )
    if totals is not None:
        metrics.registry.register(FigureCollector(agent, totals, settings.node_name))
    try:
        yield agent, metrics
    finally:
        await agent.close()


def _kernel_engine(settings: Settings) -> MakeEngine:
    folder = settings.object_cache
    host_path = str(settings.host_netns) if settings.host_netns is not None else None

    def make(*, host_netns: int) -> KernelEngine:
        engine = KernelEngine(
            host_netns=host_netns,
            host_path=host_path,
            on_devices=settings.uses_device_hooks,
            cache=ObjectCache(folder) if folder is not None else None,
            without=() if settings.uses_cgroup_hooks else SCOPED_HOOKS,
        )
        engine.prepare(tracing=settings.exemplars_ns is not None)
        return engine

    return make


def _change_interval_s(settings: Settings) -> float:
    """Return the pace of loading. A local client shares the node with no other: it has no limit."""
    return CHANGE_INTERVAL_S if isinstance(settings.address, TcpAddress) else 0.0


def _host_namespace(settings: Settings, inode: int) -> Namespace:
    """Return the node's own network namespace: that of PID 1, or the configured one."""
    path = str(settings.host_netns) if settings.host_netns is not None else None
    return Namespace(inode, pids=(1,), path=path)


def _node_facts(settings: Settings, resolver: Resolver, host_netns: int) -> NodeDescription:
    return NodeDescription(
        node_name=settings.node_name,
        kernel_release=platform.release(),
        architecture=platform.machine(),
        kernel_types=kernel_types_kind(),
        cgroup_version=resolver.cgroup_version,
        host_netns=host_netns,
    )


async def _serve(
    agent: Agent, metrics: AgentMetrics, settings: Settings, stop: asyncio.Event
) -> None:
    tasks = EssentialTasks()
    server = Server(agent, settings.address, metrics, tasks.spawn)
    try:
        access = settings.metrics_access
        protection = MetricsAccess(access) if access is not None else None
        bound = await server.start()
    except (ListenError, TlsFileError) as error:
        raise StartError(str(error)) from None
    keeper = tasks.spawn(agent.keep(), "measurement")
    try:
        served_pages = pages(metrics, lambda: server.is_serving)
        address = settings.metrics_address
        async with (
            served(address, served_pages, protection) as metrics_bound,
            pushed(_pushing(settings), metrics.registry, "latencyprobe-agent"),
        ):
            if metrics_bound:
                log.info("metrics on %s", metrics_bound)
            log.info("serving on %s as node %s", bound, settings.node_name)
            await first_to_end(_wait(stop), tasks.failure())
            log.info("shutting down")
            await server.drain()
    except (OtlpFileError, ServeError) as error:
        raise StartError(str(error)) from None
    finally:
        await agent.close()
        await server.stop()
        keeper.cancel()
        await asyncio.wait({keeper})


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def _check_push(settings: Settings) -> None:
    """Raise StartError if the push cannot begin, before programs are loaded."""
    try:
        if settings.otlp is not None:
            check_files(settings.otlp)
    except OtlpFileError as error:
        raise StartError(str(error)) from None


def _pushing(settings: Settings) -> OtlpSettings | None:
    """Return the settings of the push, with the names of this node."""
    if settings.otlp is None:
        return None
    names = {HOST: settings.node_name}
    if isinstance(settings.address, TcpAddress):  # an operator's, so a node of Kubernetes
        names[NODE] = settings.node_name
    return replace(settings.otlp, attributes={**names, **settings.otlp.attributes})
