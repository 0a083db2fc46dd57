"""Readings of what is pending in two pods, and connections between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.measurement import NOTHING
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.stages import PENDING
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, are_bound_by_btf
from tests.live.pods import Pod
from tests.live.sockets import PATIENCE_SECONDS, Connection, connect, listen


def pending(engine: KernelEngine, slot: int) -> Mapping[str, Pending]:
    """What is pending in a slot now."""
    return engine.read().get(slot, NOTHING).pending or {}


def both_pending(engine: KernelEngine) -> tuple[Mapping[str, Pending], Mapping[str, Pending]]:
    """What is pending at the client and at the server, in one reading."""
    read = engine.read()
    client, server = (read.get(slot, NOTHING).pending or {} for slot in (CLIENT, SERVER))
    return client, server


def peers(engine: KernelEngine, slot: int = CLIENT) -> tuple[Peer, ...]:
    """The peers that a slot waits for now."""
    return tuple(engine.read().get(slot, NOTHING).peers)


def is_unavailable(engine: KernelEngine) -> bool:
    """Whether this kernel can't show it; then the coverage says why, and nothing is made up."""
    if are_bound_by_btf(engine):
        return False
    (row,) = (each for each in engine.coverage if each.name == PENDING)
    assert row.state is CoverageState.UNAVAILABLE
    assert "requires BTF" in row.reason
    assert all(measured.pending is None for measured in engine.read().values())
    return True


@contextmanager
def connections(client: Pod, server: Pod, count: int) -> Iterator[list[Connection]]:
    """Open connections, all of one listener."""
    with ExitStack() as stack:
        listener = stack.enter_context(listen(server.namespace, server.address))
        made = []
        for _ in range(count):
            asking = stack.enter_context(connect(client.namespace, server.address))
            answering = stack.enter_context(listener.accept()[0])
            answering.settimeout(PATIENCE_SECONDS)
            made.append(Connection(asking, answering))
        yield made
