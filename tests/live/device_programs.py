"""Engines with programs on devices, and how often these run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bench.programs import counting_runs
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.pods import Namespace, Pod
from tests.live.sockets import connection, everything_in, exchange, send_datagrams


async def use_on_devices(
    start: Callable[..., KernelEngine],
    host: Namespace,
    *pods: Pod,
    modules: frozenset[Module],
    first_slot: int,
) -> KernelEngine:
    """An engine whose targets are these pods, in slots from the first one on."""
    engine = start(host_netns=host.inode, on_devices=True)
    engine.assign({first_slot + slot: everything_in(pod) for slot, pod in enumerate(pods)})
    await engine.use(modules)
    return engine


def own_runs(engine: KernelEngine) -> dict[str, int]:
    """How often its programs on devices have run, while the kernel counts."""
    assert engine._object is not None
    programs = engine._object._owned.device_programs
    return {name: int(libbpf.program_info(each).run_cnt) for name, each in programs.items()}


def runs_at_sockets(engine: KernelEngine) -> int:
    """How often its program for what reaches the sockets of cgroups has run."""
    assert engine._object is not None
    program = engine._object._owned.cgroup_programs["on_cgroup_ingress"]
    return int(libbpf.program_info(program).run_cnt)


def links_to_devices(engine: KernelEngine) -> dict[tuple[int, int, str], int]:
    """The kernel's ids of its links to devices, by namespace, device and program."""
    assert engine._object is not None
    links = engine._object.devices.links
    assert links is not None
    found = {}
    for place, link in links._links.items():
        (number,) = re.findall(
            r"^link_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{link}").read_text(), re.MULTILINE
        )
        found[place.netns, place.ifindex, place.function] = int(number)
    return found


def runs_for_exchanges(engine: KernelEngine, client: Pod, server: Pod, times: int) -> int:
    """The runs of its programs on devices while two pods exchange segments and datagrams."""
    before = own_runs(engine)
    with (
        counting_runs(),
        connection(client.namespace, server.namespace, server.address) as both,
    ):
        exchange(both, times)
        send_datagrams(client.namespace, server.namespace, server.address, times)
        after = own_runs(engine)
    return sum(after.values()) - sum(before.values())
