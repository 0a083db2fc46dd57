"""Measuring two pods by an engine, and reading what it measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES, Module, parts_of
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.hooks import EVENTS, HookKind
from latencyprobe_agent.kernel.runtime.driver_events import IDLE_S, DriverUse
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.pods import Namespace, Pod
from tests.live.sockets import everything_in

Start = Callable[..., KernelEngine]
CLIENT, SERVER = 0, 1
MILLISECOND_NS = 1_000_000
RX_PARTS = ("rx.softirq", "rx.host", "rx.stack", "rx.socket")
TX_OF_A_PAIR = ("tx.socket", "tx.stack", "tx.qdisc", "tx.total")
# The kernel's variables that programs read, as `without` names them; other programs replace them.
NO_VARIABLES = tuple(
    hook.name(typed=True)
    for hook in (hook for event in EVENTS for hook in event.hooks)
    if hook.kind is HookKind.VARIABLE
)
TX_PARTS = ("tx.socket", "tx.stack", "tx.host", "tx.qdisc", "tx.driver")


async def measure(
    engine: KernelEngine,
    client: Pod,
    server: Pod,
    requests: int,
    *options: str,
    client_options: tuple[str, ...] = (),
    address: str | None = None,
) -> tuple[dict[int, Measurement], dict[str, list[int]]]:
    """Have the client ask the server; returns measurements by slot and the server's account."""
    where = (address or server.address, "7000", str(requests), *options)
    serving = server.start("server", *where)
    asking = client.start("client", *where, *client_options)
    try:
        asking.go()
        account = serving.result()
        assert asking.result()["sent"] == requests
    finally:
        serving.stop()
        asking.stop()
    return dict(engine.read()), account


async def both(start: Start, client: Pod, server: Pod, **options: object) -> KernelEngine:
    """An engine with the default modules on both pods."""
    engine = start(**options)
    engine.assign({CLIENT: client.spec(), SERVER: server.spec()})
    await engine.use(frozenset(DEFAULT_MODULES))
    return engine


async def watch(start: Start, client: Pod, server: Pod, *, typed: bool = True) -> KernelEngine:
    """An engine with the default modules on everything in both namespaces."""
    engine = start(typed=typed)
    engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
    await engine.use(frozenset(DEFAULT_MODULES))
    return engine


def are_bound_by_btf(engine: KernelEngine) -> bool:
    """Whether its programs are; before Linux 5.11 they can't be, however it was asked for."""
    return any(stage.hook.startswith("tp_btf/") for stage in engine.coverage)


def read_listeners_at_once(engine: KernelEngine) -> None:
    """Have the next reading include the listeners, without the pause after the last one."""
    assert engine._object is not None
    engine._object.listeners._took_ns = 0


def let_drivers_rest(engine: KernelEngine) -> None:
    """Have its next reading find that no driver got a target's packet for a long time."""
    now = time.monotonic()
    times = iter([now - 2 * IDLE_S])
    assert engine._object is not None
    engine._object.drivers.use = DriverUse(lambda: next(times, now))


def lasting_coverage(engine: KernelEngine) -> tuple[StageCoverage, ...]:
    """The coverage without remarks on obstacles, which any packet of a pod may meet."""
    return engine._hooks.coverage


def count(measurement: Measurement, stage: str) -> int:
    return measurement.stage(stage).histogram.count


def median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def account_for(measurement: Measurement, stage: str) -> tuple[int, int]:
    """(samples, packets known to be missing) of a stage."""
    measured = measurement.stage(stage)
    return measured.histogram.count, measured.lost + measured.unmatched


def sent_counts(sent: int, *measured: Measurement) -> range:
    """The counts that are right for so many segments: after a halt, TCP sends some again.

    `retransmits` has a SYN or a FIN too, which is no sample.
    """
    return range(sent, sent + resent(*measured) + 1)


def assert_all_left(measured: Measurement, stage: str, segments: int, again: int) -> None:
    """Each of so many segments is measured once, if none was sent again.

    `again`: how many the kernel has sent once more, which TCP does after a halt of the machine.
    Those are measured or missing.
    """
    samples, missing = account_for(measured, stage)
    assert missing <= again, f"{stage}: {samples} measured, {missing} missing, {again} sent again"
    assert segments <= samples + missing <= segments + again, (
        f"{stage}: {samples} measured, {missing} missing of {segments} and {again} sent again"
    )


def resent(*measured: Measurement) -> int:
    """How many segments TCP has sent once more, a SYN or FIN too, by our own count."""
    return sum(each.counters.get("retransmits", 0) for each in measured)


def assert_parts_add_up(measurement: Measurement, *modules: str) -> None:
    """The parts of the totals of these modules ("rx", "tx")."""
    for module in modules:
        total = f"{module}.total"
        whole = measurement.stage(total).histogram.sum_ns
        parts = (measurement.stage(part.name).histogram.sum_ns for part in parts_of(total))
        assert sum(parts) == whole > 0, f"{total}: {measurement}"


def assert_is_there_alone(measured: Measurement, stage: str, parts: tuple[str, ...]) -> None:
    """The packets' time is in this one part, by the shortest times: load has no effect on them."""
    held_ns = measured.stage(stage).histogram.min_ns
    assert held_ns > MILLISECOND_NS
    for part in set(parts) & measured.stages.keys() - {stage}:
        assert measured.stage(part).histogram.min_ns < held_ns / 10, part


async def watch_on_host(start: Start, host: Namespace, *pods: Pod) -> KernelEngine:
    """An engine with the default modules on these pods, in slots from 0 on."""
    engine = start(host_netns=host.inode)
    engine.assign({slot: everything_in(pod) for slot, pod in enumerate(pods)})
    await engine.use(frozenset(DEFAULT_MODULES))
    return engine


async def watch_namespace(
    start: Start,
    there: Namespace,
    *,
    modules: Iterable[Module] = DEFAULT_MODULES,
    **options: object,
) -> KernelEngine:
    """An engine on everything in a namespace."""
    engine = start(**options)
    inode = frozenset({there.inode})
    engine.assign({CLIENT: SlotSpec(netns_wide=inode, netns=inode)})
    await engine.use(frozenset(modules))
    return engine
