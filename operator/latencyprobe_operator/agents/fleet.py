"""The agents: one connection each, kept at its desired state, listened to while there is any.

A *link* is the way to one agent: it connects, learns who is there, opens the stream of reports,
applies the desired state, and does all of it again after whatever breaks. A link without anything
to measure applies the empty state once, and hangs up until there is something.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import grpc
from grpc import aio

from latencyprobe import __version__
from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.fairness import TargetName
from latencyprobe.domain.targets import TargetState
from latencyprobe.process.backoff import Backoff
from latencyprobe.process.tasks import first_to_end
from latencyprobe.protocol.measurements import MAX_MESSAGE_BYTES, PROTOCOL_VERSION
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_operator.agents.messages import (
    TargetStatus,
    coverage_of,
    outgoing_state,
    target_status,
)
from latencyprobe_operator.agents.renewal import Renewal
from latencyprobe_operator.api.status_fields import NodeState as State
from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probes.nodes import AgentView

if TYPE_CHECKING:
    from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentAsyncStub

logger = logging.getLogger(__name__)

AGENT_SERVER_NAME = "agent.latencyprobe.io"
LEASE_SECONDS = 300
CONNECT_SECONDS = 5.0
APPLY_SECONDS = 60.0
SKEW_RETRY_SECONDS = 30.0
# An agent forgets its generation when nobody has listened for a lease.
IMPLAUSIBLE_RETRY_SECONDS = LEASE_SECONDS + 5.0
# How far the clock of an operator before this one may have been ahead.
MAX_AHEAD_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class AgentEndpoint:
    """Where an agent listens. `instance` tells one agent's pod from the next at its address."""

    address: str
    instance: str = ""


@dataclass(frozen=True, slots=True)
class ClientTlsFiles:
    """The operator's certificate, its key, and the authority that signed the agents'."""

    ca: Path
    certificate: Path
    key: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Read them now, so that renewed ones serve the next connection; raises OSError."""
        return _credentials(
            self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
        )


@functools.lru_cache(maxsize=2)
def _credentials(ca: bytes, key: bytes, certificate: bytes) -> grpc.ChannelCredentials:
    """Parsed once, and shared by all connections."""
    return grpc.ssl_channel_credentials(
        root_certificates=ca, private_key=key, certificate_chain=certificate
    )


class VersionSkewError(Exception):
    """An agent that speaks another protocol than this operator."""

    def __init__(self, info: pb.NodeInfo) -> None:
        super().__init__(
            f"agent {info.agent_version or 'of unknown version'} speaks protocol "
            f"{info.protocol_version}, operator {__version__} speaks protocol {PROTOCOL_VERSION}: "
            "bring both to one version"
        )


class LinkBrokenError(Exception):
    """The agent ended the stream of reports, or is not the one any more that it was."""


class CredentialsError(Exception):
    """The operator's own certificate, key or authority cannot be used."""


class ImplausibleGenerationError(Exception):
    """An agent's generation that no operator with a sound clock has applied."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        super().__init__(
            f"the agent reports generation {generation}, over {MAX_AHEAD_SECONDS} s ahead of the "
            "operator's clock: check the clocks of both nodes; next attempt when its lease has "
            f"ended, in {IMPLAUSIBLE_RETRY_SECONDS:g} s, or restart the agent"
        )


class CertificatesRenewedError(Exception):
    """There are newer certificates than this session's: another one begins with them."""


class Listener(Protocol):
    """Who wants to know what agents say."""

    def on_report(self, node: str, report: pb.ProbeReport) -> None:
        """An agent reported on one probe."""

    def on_agent_change(self, node: str) -> None:
        """What `Fleet.view` answers for this node has changed."""


class Generations:
    """The numbers of one agent's states: they grow, and begin at the wall clock.

    So they grow over restarts of the operator too. Each link has its own, since they follow what
    its agent reports: an agent that lies disables itself.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._last = 0

    def next(self) -> int:
        """A number above all before."""
        self._last = max(self._last + 1, self._clock_ns())
        return self._last

    def observe(self, generation: int) -> None:
        """Go beyond a number that the agent holds: another clock was ahead of ours.

        Raises ImplausibleGenerationError for one that no clock explains.
        """
        if generation > max(self._last, self._clock_ns() + MAX_AHEAD_SECONDS * 10**9):
            raise ImplausibleGenerationError(generation)
        self._last = max(self._last, generation)


_CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.ssl_target_name_override", AGENT_SERVER_NAME),
    ("grpc.default_authority", AGENT_SERVER_NAME),
    # A node that lost its power says nothing: find out within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each attempt is a new one, with the certificates of now and no other channel's back-off.
    ("grpc.use_local_subchannel_pool", 1),
    # A thousand channels: without these, one takes 235 KB instead of 290. Reports are too small for
    # a bandwidth estimate to be of use, and what breaks is tried again here, not in gRPC.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.enable_retries", 0),
    ("grpc.enable_channelz", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # An agent is reached directly, whatever proxy leads out of the cluster.
    ("grpc.enable_http_proxy", 0),
)


class _Since:
    """Since which generation a probe has been measured the way it is now.

    What an agent still reports of an older one was measured with other modules or another filter.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[tuple[object, ...], int]] = {}

    def apply(self, state: DesiredNodeState, generation: int) -> None:
        """A state is about to be applied under this generation."""
        now = {probe.key.uid: (probe.modules, probe.ports, probe.protocols) for probe in state}
        self._since = {
            uid: before
            if (before := self._since.get(uid, ((), 0)))[0] == way
            else (way, generation)
            for uid, way in now.items()
        }

    def covers(self, probe_uid: str, generation: int) -> bool:
        """Whether a report of this generation is one on the probe as it is now."""
        since = self._since.get(probe_uid)
        return since is not None and generation >= since[1]


class AgentLink:
    """The way to one agent. Runs as a task from `start` to `close`."""

    def __init__(
        self,
        node: str,
        endpoint: AgentEndpoint,
        *,
        credentials: Callable[[], grpc.ChannelCredentials],
        renewal: Renewal,
        clock_ns: Callable[[], int],
        listener: Listener,
        metrics: OperatorMetrics,
        gate: asyncio.Event,
        desired: DesiredNodeState,
    ) -> None:
        self.node = node
        self.endpoint = endpoint
        self.state = State.CONNECTING
        self.settled = asyncio.Event()
        self._credentials = credentials
        self._renewal = renewal
        self._generations = Generations(clock_ns)
        self._listener = listener
        self._metrics = metrics
        self._gate = gate
        self._desired = desired
        self._applied: DesiredNodeState | None = None
        self._sent: frozenset[TargetName] = frozenset()
        self._wake = asyncio.Event()
        self._backoff = Backoff(0.25, 15)
        self._message = f"connecting to {endpoint.address}"
        self._instance_id = ""
        self._coverage: dict[str, StageCoverage] = {}
        self._targets: dict[str, dict[str, TargetStatus]] = {}
        self._since = _Since()
        self._cpu_percent: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.create_task(self._run(), name=f"agent on {self.node}")

    async def close(self) -> None:
        """Hang up. The agent goes on measuring until its lease ends."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def want(self, state: DesiredNodeState) -> None:
        """Make this the agent's desired state, now or when it can be reached."""
        if state != self._desired:
            self._desired = state
            self.settled.clear()
            self._wake.set()

    def view(self) -> AgentView:
        """The agent as it is known at this moment."""
        state = self.state
        if state is State.READY and self._applied != self._desired:
            state = State.ATTACHING
        return AgentView(state, self._message, self._coverage, self._targets, self._cpu_percent)

    # ------------------------------------------------------------------ the task

    async def _run(self) -> None:
        await self._gate.wait()
        while True:
            while self._applied is not None and self._desired == self._applied == NO_STATE:
                await self._woken()
            delay = await self._attempt()
            await asyncio.sleep(delay)

    async def _attempt(self) -> float:
        """One session, from connecting to whatever ended it; answers how long to wait then."""
        try:
            await self._session()
        except CertificatesRenewedError:
            return 0.0
        except VersionSkewError as error:
            self._fail(State.VERSION_SKEW, str(error))
            return SKEW_RETRY_SECONDS
        except aio.AioRpcError as error:
            self._fail(State.UNREACHABLE, f"{self.endpoint.address}: {_tell(error)}")
        except LinkBrokenError as error:
            self._fail(State.CONNECTING, f"{self.endpoint.address}: {error}")
        except ImplausibleGenerationError as error:
            self._fail(State.UNREACHABLE, f"{self.endpoint.address}: {error}")
            return IMPLAUSIBLE_RETRY_SECONDS
        except CredentialsError as error:
            self._fail(State.UNREACHABLE, str(error))
        except Exception as error:
            # Whatever an agent sent to cause this, the link goes on, and the others do not notice.
            logger.exception("agent on node %s: unexpected", self.node)
            self._fail(
                State.UNREACHABLE, f"{self.endpoint.address}: unexpected {type(error).__name__}"
            )
        else:
            return 0.0
        return self._backoff.next()

    async def _session(self) -> None:
        """Ends by itself only when there is nothing to measure, and the agent knows it."""
        self._applied = None
        try:
            credentials = self._credentials()
        except (OSError, ValueError) as error:
            raise CredentialsError(f"the operator's own certificate: {error}") from error
        channel = aio.secure_channel(self.endpoint.address, credentials, options=_CHANNEL_OPTIONS)
        async with channel:
            stub: NodeAgentAsyncStub = NodeAgentStub(channel)
            await self._greet(stub)
            # The stream is there before the state, so that no report is missed.
            stream = stub.WatchReports(pb.WatchReportsRequest())
            await first_to_end(
                self._listen(stream), self._keep_applied(stub), self._until_renewal()
            )

    async def _greet(self, stub: NodeAgentAsyncStub) -> None:
        info = await stub.GetNodeInfo(pb.GetNodeInfoRequest(), timeout=CONNECT_SECONDS)
        if info.protocol_version != PROTOCOL_VERSION:
            raise VersionSkewError(info)
        if info.instance_id != self._instance_id:
            logger.info(
                "agent on node %s: version %s, kernel %s, instance %s",
                self.node,
                info.agent_version,
                info.kernel_release,
                info.instance_id,
            )
            self._targets = {}
        self._instance_id = info.instance_id
        self._coverage = coverage_of(info.coverage)

    async def _until_renewal(self) -> None:
        await self._renewal.wait()
        raise CertificatesRenewedError

    async def _keep_applied(self, stub: NodeAgentAsyncStub) -> None:
        while True:
            if self._desired != self._applied:
                await self._apply(stub, self._desired)
            elif self._desired == NO_STATE:
                return
            else:
                await self._woken()

    async def _apply(self, stub: NodeAgentAsyncStub, state: DesiredNodeState) -> None:
        generation = self._generations.next()
        outgoing = outgoing_state(
            state, generation=generation, lease_seconds=LEASE_SECONDS, held=self._sent
        )
        self._since.apply(state, generation)
        began = time.monotonic()
        try:
            result = await stub.Apply(outgoing.message, timeout=APPLY_SECONDS)
        except aio.AioRpcError as error:
            await self._refused(error, state)
            return
        self._metrics.apply_seconds.observe(time.monotonic() - began)
        logger.debug("agent on node %s applied generation %d", self.node, generation)
        self._applied = state
        self._sent = outgoing.targets
        self._backoff.reset()
        self._targets = {
            probe.id: {target.id: target_status(target) for target in probe.targets}
            for probe in result.probes
        }
        for probe_uid, left_out in outgoing.left_out.items():
            self._targets.setdefault(probe_uid, {}).update(left_out)
        if result.coverage:
            self._coverage = coverage_of(result.coverage)
        if self._desired == state:
            self.settled.set()
        self._become(State.READY, "")
        self._listener.on_agent_change(self.node)

    async def _refused(self, error: aio.AioRpcError, state: DesiredNodeState) -> None:
        """The agent lives, and does not take the state: try again soon, or when it has changed."""
        if error.code() not in (
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.INTERNAL,
        ):
            raise error
        logger.warning("agent on node %s does not take its state: %s", self.node, _tell(error))
        self._become(State.REJECTED, f"the agent does not take its desired state: {_tell(error)}")
        self._listener.on_agent_change(self.node)
        if self._desired == state:
            try:
                await asyncio.wait_for(self._woken(), self._backoff.next())
            except TimeoutError:
                return

    async def _listen(self, stream: aio.UnaryStreamCall[pb.WatchReportsRequest, pb.Report]) -> None:
        async for report in stream:
            if report.instance_id != self._instance_id:
                raise LinkBrokenError("another instance of the agent answers")
            self._generations.observe(report.generation)
            self._metrics.reports.inc()
            self._take(report)
        raise LinkBrokenError("the agent ended the stream of reports")

    def _take(self, report: pb.Report) -> None:
        if report.coverage:
            self._coverage = coverage_of(report.coverage)
        if report.overhead.measured:
            self._cpu_percent = report.overhead.cpu_percent
        changed = bool(report.coverage)
        for probe in report.probes:
            if self._since.covers(probe.id, report.generation):
                changed |= self._take_targets(probe)
                self._listener.on_report(self.node, probe)
        if changed:
            self._listener.on_agent_change(self.node)

    def _take_targets(self, probe: pb.ProbeReport) -> bool:
        """Remember what became of the targets; whether that is news."""
        known = self._targets.get(probe.id)
        if known is None:
            return False
        changed = False
        for target in probe.targets:
            now, before = target_status(target.status), known.get(target.status.id)
            if before and now != before:
                known[target.status.id] = now
                changed = True
                if now.state is TargetState.FAILED:
                    logger.warning("node %s: %s: %s", self.node, target.status.id, now.message)
        return changed

    async def _woken(self) -> None:
        await self._wake.wait()
        self._wake.clear()

    def _fail(self, state: State, message: str) -> None:
        news = (state, message) != (self.state, self._message)
        if news:
            logger.warning("agent on node %s: %s: %s", self.node, state, message)
        self._applied = None
        self.settled.clear()
        self._become(state, message)
        if news:
            self._listener.on_agent_change(self.node)

    def _become(self, state: State, message: str) -> None:
        self.state, self._message = state, message


def _tell(error: aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details() or 'no details'}"


class Fleet:
    """All agents, by node."""

    def __init__(
        self,
        *,
        credentials: Callable[[], grpc.ChannelCredentials],
        listener: Listener,
        metrics: OperatorMetrics,
        clock_ns: Callable[[], int] = time.time_ns,
        renewal: Renewal | None = None,
    ) -> None:
        self._credentials = credentials
        self._renewal = renewal or Renewal(credentials)
        self._listener = listener
        self._metrics = metrics
        self._clock_ns = clock_ns
        self._gate = asyncio.Event()
        self._links: dict[str, AgentLink] = {}
        self._absent: dict[str, str] = {}
        self._desired: dict[str, DesiredNodeState] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begin to connect: all that is wanted is known now.

        Until then nothing is applied, since an agent takes away what a state leaves out.
        """
        self._gate.set()
        self._renewal.start()

    def set_agent(self, node: str, endpoint: AgentEndpoint | None, *, why_not: str = "") -> None:
        """Say where this node's agent is; None and why where there is none to be reached."""
        link = self._links.get(node)
        if link and link.endpoint == endpoint:
            return
        if link:
            self._hang_up(self._links.pop(node))
        self._absent.pop(node, None)
        if endpoint:
            self._connect(node, endpoint)
        elif why_not:
            self._absent[node] = why_not
        self._listener.on_agent_change(node)

    def want(self, node: str, state: DesiredNodeState) -> None:
        """Make this the desired state of this node's agent, whenever there is one."""
        if state == NO_STATE:
            self._desired.pop(node, None)
        else:
            self._desired[node] = state
        if link := self._links.get(node):
            link.want(state)

    def view(self, node: str) -> AgentView:
        """This node's agent as it is known at this moment."""
        if link := self._links.get(node):
            return link.view()
        return AgentView(
            State.NO_AGENT,
            self._absent.get(node)
            or "no agent runs on this node: see whether the DaemonSet's node selector and "
            "tolerations let it",
        )

    async def settle(self, nodes: Iterable[str], *, timeout_seconds: float) -> bool:
        """Wait until the connected agents of these nodes have applied what they should.

        Agents that cannot be reached are not waited for. Answers whether all others did.
        """
        links = [link for node in nodes if (link := self._links.get(node))]
        waits = [
            asyncio.create_task(link.settled.wait()) for link in links if link.state is State.READY
        ]
        if not waits:
            return True
        _, late = await asyncio.wait(waits, timeout=timeout_seconds)
        for wait in late:
            wait.cancel()
        return not late

    async def close(self) -> None:
        """Hang up everywhere."""
        await self._renewal.close()
        for link in self._links.values():
            self._hang_up(link)
        self._links.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def states(self) -> Counter[str]:
        """How many agents are in which state."""
        return Counter(str(link.view().state) for link in self._links.values())

    def _connect(self, node: str, endpoint: AgentEndpoint) -> None:
        link = self._links[node] = AgentLink(
            node,
            endpoint,
            credentials=self._credentials,
            renewal=self._renewal,
            clock_ns=self._clock_ns,
            listener=self._listener,
            metrics=self._metrics,
            gate=self._gate,
            desired=self._desired.get(node, NO_STATE),
        )
        link.start()

    def _hang_up(self, link: AgentLink) -> None:
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
