"""What works under few capabilities: `python -m tests.live.confined PID NETNS CGROUP [COMPILED]`.

It is started with those, and in that cgroup. COMPILED is a file of programs that are there already.
Prints one JSON object: what became of measuring, of a program on the cgroup, of the programs' run
time, of the network namespace that the process PID lives in (NETNS is its inode number), and of a
socket in there.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import Module
from latencyprobe_agent.evidence.namespaces import Namespace, Reader
from latencyprobe_agent.kernel.contract import EngineError, SlotSpec
from latencyprobe_agent.kernel.hooks import SCOPED_HOOKS
from latencyprobe_agent.kernel.load.handover import Handover
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime import loaded
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.runtime.overhead import SAMPLE_S
from latencyprobe_agent.targets.processes import Processes


async def measuring(cgroup: str) -> Mapping[str, object]:
    """Whether programs were attached, or the kernel's words; what they measure, and what is told.

    `lost`: what the coverage says of the program that would be on the cgroup.
    """
    netns = os.stat("/proc/self/ns/net").st_ino
    engine = KernelEngine(host_netns=netns)
    own = SlotSpec(
        cgroup_ids=frozenset({os.stat(cgroup).st_ino}),
        cgroup_directories=frozenset({cgroup}),
        netns=frozenset({netns}),
    )
    try:
        engine.assign({0: own})
        await engine.use(frozenset({Module.SCHED, Module.TCP}))
        connect_to_itself()
        await asyncio.sleep(1.5 * SAMPLE_S)
        (connect,) = (stage for stage in engine.coverage if stage.name == "tcp.connect")
        return {
            "attached": any(stage.state is CoverageState.ACTIVE for stage in engine.coverage),
            "on_cgroup": connect.hook in SCOPED_HOOKS,
            "lost": connect.reason,
            "connects": engine.read()[0].stage("tcp.connect").histogram.count,
            "run_time": engine.overhead().cpu_percent is not None,
        }
    except EngineError as error:
        return {"attached": False, "refusal": str(error)}
    finally:
        await engine.close()


def connect_to_itself() -> None:
    """One connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        pass


def reaching(pid: int, netns: int) -> Mapping[str, bool]:
    """What can be had of a network namespace that a process lives in."""
    try:
        channel = Reader().channel(Namespace(netns, pids=(pid,)))
    except PermissionError:
        channel = None
    if channel is not None:
        channel.close()
    return {"netns": netns in Processes().netns([pid]).inodes, "socket": channel is not None}


def use_compiled(path: str) -> None:
    """Have no compiler's process."""
    content = Path(path).read_bytes()

    async def given(_: Request) -> Handover:
        return Handover(content, "")

    patch.object(loaded, "request_object", given).start()


def main() -> None:
    """Try it all."""
    pid, netns = map(int, sys.argv[1:3])
    for path in sys.argv[4:]:
        use_compiled(path)
    print(json.dumps({**asyncio.run(measuring(sys.argv[3])), **reaching(pid, netns)}))


if __name__ == "__main__":
    main()
