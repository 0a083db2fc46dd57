"""What the compiler process takes, as a program of its own: `python -m bench.compiler_cost`.

It is a program of its own, since the kernel counts the peak of all children together. The peak of a
new child is that of its parent, and this parent is small and has no other child.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time

from bench.network import own_netns
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.runtime.engine import KernelEngine


async def measure() -> dict[str, float]:
    """Print the seconds until attached, and the compiler's peak."""
    engine = KernelEngine(host_netns=own_netns())
    began = time.monotonic()
    await engine.use(frozenset(DEFAULT_MODULES))
    seconds = time.monotonic() - began
    await engine.close()
    return {
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "parent_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
