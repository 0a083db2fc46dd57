"""What works under few capabilities: `python -m tests.live.confined PID NETNS`, started with those.

Prints one JSON object: what became of measuring, of the programs' run time, of the network
namespace that the process PID lives in (NETNS is its inode number), and of a socket in there.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import Module
from latencyprobe_agent.evidence.namespaces import Namespace, Reader
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.runtime.overhead import SAMPLE_S
from latencyprobe_agent.targets.processes import Processes


async def measuring() -> Mapping[str, object]:
    """Whether programs were attached, or the kernel's words; and whether their run time is told."""
    engine = KernelEngine(host_netns=os.stat("/proc/self/ns/net").st_ino)
    try:
        await engine.use(frozenset({Module.SCHED}))
        await asyncio.sleep(1.5 * SAMPLE_S)
        attached = any(stage.state is CoverageState.ACTIVE for stage in engine.coverage)
        return {"attached": attached, "run_time": engine.overhead().cpu_percent is not None}
    except EngineError as error:
        return {"attached": False, "refusal": str(error)}
    finally:
        await engine.close()


def reaching(pid: int, netns: int) -> Mapping[str, bool]:
    """What can be had of a network namespace that a process lives in."""
    try:
        channel = Reader().channel(Namespace(netns, pids=(pid,)))
    except PermissionError:
        channel = None
    if channel is not None:
        channel.close()
    return {"netns": netns in Processes().netns([pid]).inodes, "socket": channel is not None}


def main() -> None:
    """Try it all."""
    pid, netns = map(int, sys.argv[1:])
    print(json.dumps({**asyncio.run(measuring()), **reaching(pid, netns)}))


if __name__ == "__main__":
    main()
