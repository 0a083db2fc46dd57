"""A kernel without BTF: with its headers installed, and without them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.contract import EngineError, SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.typeinfo import kernel_types_kind
from tests.kernels.inside.results import write_coverage
from tests.live.measuring import (
    CLIENT,
    SERVER,
    account_for,
    assert_all_left,
    lasting_coverage,
    measure,
)
from tests.live.netfilter import send_what_netfilter_drops
from tests.live.pods import Pod
from tests.live.sockets import everything_in, sent_again

Start = Callable[..., KernelEngine]
PROCESS = 7


@pytest.mark.headers_alone
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_headers_serve_where_there_is_no_btf(
    start_engine: Start, pair: tuple[Pod, Pod], protocol: str
) -> None:
    assert kernel_types_kind() == "headers"
    client, server = pair
    engine = start_engine()
    # Only a target that is a process needs the hooks of fork and exit.
    process = SlotSpec(
        tgids=frozenset({os.getpid()}), netns=frozenset({os.stat("/proc/self/ns/net").st_ino})
    )
    engine.assign({CLIENT: client.spec(), SERVER: server.spec(), PROCESS: process})
    await engine.use(frozenset(Module))
    write_coverage("headers", lasting_coverage(engine))
    pods = {CLIENT: client, SERVER: server}
    before = {slot: sent_again(pod.namespace) for slot, pod in pods.items()}
    measured, _ = await measure(engine, client, server, 100, "--protocol", protocol)
    for slot, pod in pods.items():
        assert account_for(measured[slot], "rx.total") == (100, 0)
        again = sent_again(pod.namespace) - before[slot]
        assert_all_left(measured[slot], "tx.total", 100, again)


@pytest.mark.headers_alone
async def test_headers_have_the_reasons_of_drops(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: everything_in(client)})
    await engine.use(frozenset(Module))  # the programs of the test before
    send_what_netfilter_drops(client, server, 7)
    counters = engine.read()[CLIENT].counters
    drops = {name: count for name, count in counters.items() if name.startswith("drops.")}
    assert drops == {"drops.NETFILTER_DROP": 7}
    functions = [count for name, count in counters.items() if name.startswith("dropsIn.")]
    assert functions == [7]


@pytest.mark.no_types
async def test_without_btf_and_headers_the_agent_says_what_to_install(start_engine: Start) -> None:
    assert kernel_types_kind() == "none"
    engine = start_engine()
    write_coverage("none", engine.coverage)
    with pytest.raises(EngineError, match=r"has no BTF .* Install linux-headers-"):
        await engine.use(frozenset(Module))
    for stage in engine.coverage:
        assert stage.state is CoverageState.UNAVAILABLE
        assert "linux-headers-" in stage.reason
