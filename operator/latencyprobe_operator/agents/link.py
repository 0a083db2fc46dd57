"""Links: each keeps one agent connected, as long as there is something to measure.

A link connects, runs a session, and connects again after every failure. Without anything to
measure it applies the empty state once, and disconnects until that changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc import aio

from latencyprobe.domain.identities import AGENT_NAME
from latencyprobe.domain.summary import PodChoice
from latencyprobe.process.backoff import Backoff
from latencyprobe.protocol.measurements import MAX_MESSAGE_BYTES
from latencyprobe_operator.agents.agent_facts import AgentFacts
from latencyprobe_operator.agents.calls import AgentCalls
from latencyprobe_operator.agents.credentials import Credentials, CredentialsError
from latencyprobe_operator.agents.generations import ImplausibleGenerationError, NewerTermError
from latencyprobe_operator.agents.misreports import Misreports
from latencyprobe_operator.agents.renewal import Renewal
from latencyprobe_operator.agents.report_rate import ExcessiveReportsError
from latencyprobe_operator.agents.session import (
    AgentSession,
    LinkBrokenError,
    VersionSkewError,
    describe,
)
from latencyprobe_operator.agents.state_sync import StateSync
from latencyprobe_operator.agents.turns import Turns
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import DesiredNodeState
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import AgentView, ReportedProbe

log = logging.getLogger(__name__)

SKEW_RETRY_S = 30.0
# A session that lasted this long worked. One that an agent ends sooner, time and again, must cost
# little, whatever it did until then.
_LIVED_S = 30.0
# An agent's messages are of half a MiB. Older agents send a probe's report in one.
MAX_INCOMING_BYTES = 4 << 20

_CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.ssl_target_name_override", AGENT_NAME),
    ("grpc.default_authority", AGENT_NAME),
    # A node that has lost its power is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each attempt is a new one, with the present certificates and no other channel's back-off.
    ("grpc.use_local_subchannel_pool", 1),
    # A thousand channels: without these, one takes 235 KB instead of 290. Reports are too small for
    # a bandwidth estimate to be of use, and failures are retried here, not in gRPC.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.enable_retries", 0),
    ("grpc.enable_channelz", 0),
    # Each channel keeps a buffer for the largest TLS record that it writes (16 KiB by default).
    ("grpc.tsi.max_frame_size", 1024),
    # And one block of 8 KiB for the next read. For more, gRPC would keep two; and from 12 KiB on,
    # blocks of 64 KiB: see posix_endpoint.cc. The last option bounds its estimate of the next read.
    ("grpc.experimental.tcp_read_chunk_size", 8192),
    ("grpc.experimental.tcp_max_read_chunk_size", 8192),
    ("grpc.experimental.tcp_max_read_buffer_size", 8192),
    ("grpc.max_receive_message_length", MAX_INCOMING_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # An agent is reached directly, whatever proxy leads out of the cluster.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class AgentEndpoint:
    """The address of an agent. `instance` distinguishes successive pods at one address."""

    address: str
    instance: str = ""


class AgentLink:
    """The connection to one agent. Runs as a task from `start` to `close`.

    Large, because its state outlives each session: sent states, the agent's facts, the back-off.
    Between two sessions, others read the view of the node here.
    """

    __slots__ = (
        "_backoff",
        "_credentials",
        "_facts",
        "_message",
        "_node",
        "_on_change",
        "_renewal",
        "_session",
        "_sync",
        "_task",
        "_turns",
        "breaks",
        "endpoint",
        "state",
    )

    def __init__(
        self,
        node: str,
        endpoint: AgentEndpoint,
        *,
        credentials: Credentials,
        renewal: Renewal,
        greetings: asyncio.Semaphore,
        turns: Turns,
        clock_ns: Callable[[], int],
        term: int = 0,
        on_report: Callable[[str, ReportedProbe], None],
        on_change: Callable[[str], None],
        metrics: OperatorMetrics,
        desired: DesiredNodeState,
    ) -> None:
        self.endpoint = endpoint
        self.state = NodeState.CONNECTING
        self.breaks = 0
        self._node = node
        self._message = f"connecting to {endpoint.address}"
        self._credentials = credentials
        self._renewal = renewal
        self._on_change = on_change
        self._turns = turns
        self._sync = StateSync(desired)
        misreports = Misreports(node, metrics)
        self._facts = AgentFacts(misreports)
        self._backoff = Backoff(0.25, 15)
        self._session = AgentSession(
            node,
            sync=self._sync,
            facts=self._facts,
            misreports=misreports,
            greetings=greetings,
            turns=turns,
            clock_ns=clock_ns,
            term=term,
            metrics=metrics,
            on_state=self._take_state,
            on_news=lambda: on_change(node),
            on_report=on_report,
        )
        self._task: asyncio.Task[None] | None = None

    def start(self, opened: asyncio.Event) -> None:
        """Begin to connect, once `opened` is set."""
        self._task = asyncio.create_task(self._run(opened), name=f"agent on {self._node}")

    async def close(self) -> None:
        """Disconnect. The agent goes on measuring until its lease ends."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def want(self, state: DesiredNodeState) -> None:
        """Make this the agent's desired state, now or when it can be reached."""
        self._sync.want(state)

    def want_in_full(self, probe_uid: str, choice: PodChoice, *, at_once: bool) -> None:
        """Have the agent report these pods of a probe in full, from now on."""
        self._session.want_in_full(probe_uid, choice, at_once=at_once)

    async def wait_settled(self) -> None:
        """Return once the agent has applied its desired state."""
        await self._sync.wait_settled()

    def view(self) -> AgentView:
        """Return the agent as it is known at this moment."""
        state = self.state
        if state is NodeState.READY and not self._sync.applied:
            state = NodeState.ATTACHING
        return self._facts.view(state, self._message)

    # ------------------------------------------------------------------ the task

    async def _run(self, opened: asyncio.Event) -> None:
        await opened.wait()
        while True:
            while self._sync.idle:
                await self._sync.wait_changed()
            await asyncio.sleep(await self._attempt())

    async def _attempt(self) -> float:
        """Run one session to its end; return the seconds to wait then."""
        address = self.endpoint.address
        began = asyncio.get_running_loop().time()
        try:
            await self._run_session()
        except VersionSkewError as error:
            self._fail(NodeState.VERSION_SKEW, str(error))
            return SKEW_RETRY_S
        except aio.AioRpcError as error:
            self._fail(_state_after(error), f"{address}: {describe(error)}")
        except (NewerTermError, LinkBrokenError) as error:
            self._fail(_state_after(error), f"{address}: {error}")
        except (ImplausibleGenerationError, ExcessiveReportsError) as error:
            self._fail(NodeState.UNREACHABLE, f"{address}: {error}")
            return error.retry_s
        except CredentialsError as error:
            self._fail(NodeState.UNREACHABLE, str(error))
        except Exception as error:
            # Whatever an agent sent to cause this, the link goes on, and the others do not notice.
            log.exception("agent on node %s: unexpected error", self._node)
            self._fail(NodeState.UNREACHABLE, f"{address}: unexpected {type(error).__name__}")
        else:
            return 0.0
        if asyncio.get_running_loop().time() - began >= _LIVED_S:
            self._backoff.reset()
        return self._backoff.next()

    async def _run_session(self) -> None:
        self._sync.begin()
        await self._turns.take()
        try:
            credentials = self._credentials()
        except (OSError, ValueError) as error:
            raise CredentialsError(f"cannot read the operator's certificate: {error}") from error
        channel = aio.secure_channel(self.endpoint.address, credentials, options=_CHANNEL_OPTIONS)
        async with channel:
            # After a renewal, another session begins with the new certificates.
            await self._session.run(AgentCalls(channel), self._renewal.wait)

    def _take_state(self, state: NodeState, message: str) -> None:
        self.state, self._message = state, message
        self._on_change(self._node)

    def _fail(self, state: NodeState, message: str) -> None:
        changed = (state, message) != (self.state, self._message)
        self.breaks += 1
        self._sync.mark_lost()
        self.state, self._message = state, message
        if changed:
            log.warning("agent on node %s: %s: %s", self._node, state, message)
            self._on_change(self._node)


def _state_after(error: Exception) -> NodeState:
    """Return the state of a link whose session has ended so."""
    if isinstance(error, LinkBrokenError):
        return NodeState.CONNECTING
    if isinstance(error, aio.AioRpcError):
        # A stream of reports is refused to an operator whose term has ended.
        refused = error.code() is grpc.StatusCode.FAILED_PRECONDITION
        return NodeState.REJECTED if refused else NodeState.UNREACHABLE
    return NodeState.REJECTED
