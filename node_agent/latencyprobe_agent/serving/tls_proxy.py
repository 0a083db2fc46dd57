"""The TLS proxy: mutual TLS with a limited number of connections.

gRPC could do TLS itself, but it does not report refused clients, and does not limit connections. So
gRPC listens on a private Unix socket, and the proxy copies the bytes of each admitted connection to
it. A connection has a name on that side (`peer` of a call), by which the service identifies it.

A client with another name than the operator's is refused right after its handshake: no byte of it
reaches gRPC. A client whose certificate has expired is refused there too, if it resumed a session
from before and so had no certificate verified.

The number of connections is bounded, also in a flood. If too many TLS handshakes are pending, the
oldest one of the address with the most is cancelled. So the operator, which completes its handshake
quickly, is still admitted.

A connection ends when its client's certificate ends, and when the agent's TLS files are replaced.
So a key whose authority was removed is useless from then on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe.process.tasks import Spawn, first_to_end, spawn
from latencyprobe.process.tls_stream import ByteStream, SocketStream, TlsStream
from latencyprobe_agent.serving.tls import RenewedContext, names_in, validity_of

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
MAX_HANDSHAKES = 32
HANDSHAKE_S = 5.0
_CHECK_S = 1.0
_ACCEPT_RETRY_S = 0.1
# A flood is reported, and does not flood the log.
_LOG_S = 10.0


class TlsRefusal(StrEnum):
    """A reason for refusing a client."""

    NO_CERTIFICATE = "no_certificate"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    FOREIGN = "foreign_authority"
    PURPOSE = "no_client_certificate"
    NAME = "other_name"
    NO_TLS = "no_tls"
    SLOW = "slow_handshake"
    CROWDED = "crowded"


# X509_V_ERR_*, include/openssl/x509_vfy.h
_BY_VERIFY_CODE = {
    9: TlsRefusal.NOT_YET_VALID,
    10: TlsRefusal.EXPIRED,
    18: TlsRefusal.FOREIGN,
    19: TlsRefusal.FOREIGN,
    20: TlsRefusal.FOREIGN,
    21: TlsRefusal.FOREIGN,
    26: TlsRefusal.PURPOSE,
}


def refusal_in(error: Exception) -> TlsRefusal:
    """Return the reason of a failed handshake."""
    if isinstance(error, TimeoutError):
        return TlsRefusal.SLOW
    if isinstance(error, ssl.SSLCertVerificationError):
        return _BY_VERIFY_CODE.get(error.verify_code, TlsRefusal.FOREIGN)
    if isinstance(error, ssl.SSLError) and error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return TlsRefusal.NO_CERTIFICATE
    return TlsRefusal.NO_TLS


class RefusalLog:
    """The counts of refused clients, and a rate-limited log line for each reason."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._lines = RepeatedLines(log)

    def refuse(self, refusal: TlsRefusal, peer: str, detail: str) -> None:
        """Count and log a refusal. Of client data, `detail` holds only names that our CA signed."""
        self._count(refusal)
        self._lines.note(refusal, f"refused {peer}: {detail}", interval_s=_LOG_S)


class AdmittedClient:
    """An admitted client. `expires_at`: the end of its certificate, in seconds since 1970."""

    def __init__(self, address: str, context: ssl.SSLContext, expires_at: float) -> None:
        self.address = address
        self.context = context
        self.expires_at = expires_at
        self.is_ending = asyncio.Event()
        self.idle_since = asyncio.get_running_loop().time()
        self._calls = 0

    @property
    def is_idle(self) -> bool:
        """True if no call is in progress."""
        return self._calls == 0

    def begin_call(self) -> None:
        """Note the beginning of a call."""
        self._calls += 1

    def end_call(self) -> None:
        """Note the end of a call."""
        self._calls -= 1
        self.idle_since = asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class _Handshake:
    """A pending handshake.

    The task must not refer to itself. Otherwise, the exception that cancels it keeps it in memory,
    with its TLS buffers, until the garbage collector runs.
    """

    task: asyncio.Task[None]
    peer: str


class TlsProxy:
    """A listener that forwards one client to the Unix socket `inner`.

    The client needs a certificate of our CA for `client_name`.
    """

    def __init__(
        self,
        context: RenewedContext,
        inner: Path,
        client_name: str,
        refusals: RefusalLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._inner = inner
        self._client_name = client_name
        self._refusals = refusals
        self._clock = clock
        self._token = secrets.token_hex(8)  # so that no other process's socket has our names
        self._numbers = itertools.count(1)
        self._connections: dict[str, AdmittedClient] = {}
        self._handshakes: dict[socket.socket, _Handshake] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._lines = RepeatedLines(log)

    def start(self, listener: socket.socket, spawn: Spawn = spawn) -> None:
        """Accept connections on this listening socket from now on, in tasks that `spawn` begins."""
        listener.setblocking(False)
        self._listener = listener
        self._tasks.add(spawn(self._accept(listener), "TLS connections"))
        self._tasks.add(spawn(self._end_invalid(), "invalid certificates"))

    async def close(self) -> None:
        """Stop accepting, and close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def connection(self, peer: str) -> AdmittedClient | None:
        """Return a connection by gRPC's name of it."""
        return self._connections.get(peer.removeprefix("unix-abstract:"))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or aborted by the client
                self._lines.note("accept", f"cannot accept a connection: {error}")
                await asyncio.sleep(_ACCEPT_RETRY_S)
                continue
            peer = _peer_text(address)
            if len(self._handshakes) >= MAX_HANDSHAKES:
                self._evict_one()
            task = self._spawn(self._serve(connection, peer))
            # Also if it was evicted before it began. Closing a socket twice does no harm.
            task.add_done_callback(_closing(connection))
            self._handshakes[connection] = _Handshake(task, peer)

    def _evict_one(self) -> None:
        """Cancel the oldest handshake of the address that has the most."""
        pending = Counter(_host_of(each.peer) for each in self._handshakes.values())
        most = max(pending.values())
        connection, victim = next(
            (connection, each)
            for connection, each in self._handshakes.items()
            if pending[_host_of(each.peer)] == most
        )
        del self._handshakes[connection]
        victim.task.cancel()
        self._refusals.refuse(
            TlsRefusal.CROWDED, victim.peer, f"{MAX_HANDSHAKES} other TLS handshakes are pending"
        )

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        context = self._context.current()
        with connection:
            try:
                stream = await self._shake_hands(connection, context, peer)
            finally:
                self._handshakes.pop(connection, None)
            if stream is not None and self._admits(stream, peer):
                _, end = validity_of(stream.certificate)
                await self._pass_on(stream, AdmittedClient(peer, context, end))
                stream.say_goodbye()

    async def _shake_hands(
        self, connection: socket.socket, context: ssl.SSLContext, peer: str
    ) -> TlsStream | None:
        """Do the TLS handshake; return the stream inside, or None if it fails."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                return await TlsStream.accept(connection, context)
        except (OSError, TimeoutError) as error:  # an ssl.SSLError is an OSError
            refusal = refusal_in(error)
            self._refusals.refuse(refusal, peer, _REASONS[refusal])
            return None

    def _admits(self, stream: TlsStream, peer: str) -> bool:
        """Return True for a valid client with the right name if there is room; refuse others."""
        refusal = _outside_validity(stream.certificate, self._clock())
        if refusal is not None:
            self._refusals.refuse(refusal, peer, _REASONS[refusal])
            return False
        names = names_in(stream.certificate)
        if self._client_name not in names:
            shown = ", ".join(sorted(names)) or "no name"
            detail = f"the certificate is for {shown}, not for {self._client_name}"
            self._refusals.refuse(TlsRefusal.NAME, peer, detail)
            return False
        return self._make_room(peer)

    def _make_room(self, peer: str) -> bool:
        """End the connection that has been idle longest, if all places are taken.

        Return False, and refuse the new client, if all are busy.
        """
        opened = [each for each in self._connections.values() if not each.is_ending.is_set()]
        if len(opened) < MAX_CONNECTIONS:
            return True
        detail = f"{MAX_CONNECTIONS} connections are open"
        idle = [each for each in opened if each.is_idle]
        if not idle:
            self._refusals.refuse(TlsRefusal.CROWDED, peer, f"{detail}, all with calls")
            return False
        victim = min(idle, key=lambda each: each.idle_since)
        victim.is_ending.set()
        self._refusals.refuse(
            TlsRefusal.CROWDED, victim.address, f"{detail}, and this one has been idle longest"
        )
        return True

    async def _pass_on(self, outer: TlsStream, connection: AdmittedClient) -> None:
        name = f"latencyprobe-{self._token}-{next(self._numbers)}"
        self._connections[name] = connection
        try:
            with socket.socket(socket.AF_UNIX) as inside:
                inside.setblocking(False)
                inside.bind(f"\0{name}")
                await asyncio.get_running_loop().sock_connect(inside, str(self._inner))
                await _relay(outer, SocketStream(inside), connection.is_ending)
        except OSError as error:
            log.debug("lost the connection of %s: %s", connection.address, error)
        finally:
            del self._connections[name]

    async def _end_invalid(self) -> None:
        """End connections whose handshake would fail now, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_S)
            context, now = self._context.current(), self._clock()
            for connection in self._connections.values():
                if connection.is_ending.is_set():
                    continue
                if now >= connection.expires_at:
                    refusal, peer = TlsRefusal.EXPIRED, connection.address
                    self._refusals.refuse(refusal, peer, _REASONS[refusal])
                elif connection.context is not context:
                    log.info(
                        "ended the connection of %s: the certificates were renewed",
                        connection.address,
                    )
                else:
                    continue
                connection.is_ending.set()


def _closing(connection: socket.socket) -> Callable[[asyncio.Task[None]], None]:
    return lambda _: connection.close()


_REASONS = {
    TlsRefusal.NO_CERTIFICATE: "the client sent no certificate",
    TlsRefusal.EXPIRED: "the certificate has expired",
    TlsRefusal.NOT_YET_VALID: "the certificate is not yet valid: check the clocks of both machines",
    TlsRefusal.FOREIGN: "the certificate is not signed by the configured CA",
    TlsRefusal.PURPOSE: "the certificate is not valid for client authentication",
    TlsRefusal.NO_TLS: "the TLS handshake failed; the client may not trust the agent's certificate",
    TlsRefusal.SLOW: f"the TLS handshake took longer than {HANDSHAKE_S:g} s",
}


async def _relay(one: ByteStream, other: ByteStream, is_ending: asyncio.Event) -> None:
    """Copy in both directions until either side ends: HTTP/2 does not use half a connection."""
    await first_to_end(_copy(one, other), _copy(other, one), _until(is_ending))


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _copy(source: ByteStream, target: ByteStream) -> None:
    while data := await source.read():
        await target.write(data)


def _outside_validity(certificate: Mapping[str, Any], now: float) -> TlsRefusal | None:
    begin, end = validity_of(certificate)
    if now >= end:
        return TlsRefusal.EXPIRED
    return TlsRefusal.NOT_YET_VALID if now < begin else None


def _host_of(peer: str) -> str:
    return peer.rpartition(":")[0]


def _peer_text(address: tuple[str, int]) -> str:
    host, port = address[:2]
    host = host.removeprefix("::ffff:")  # IPv4 on a socket for both
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
