"""Time and memory that loading takes, compiled and cached: `python -m bench.compiler_cost`.

It is a program of its own, since the kernel counts the peak of all children together. The peak of a
new child is that of its parent, and this parent is small and has no other child.
"""

from __future__ import annotations

import asyncio
import json
import resource
import tempfile
import time
from pathlib import Path

from bench.network import own_netns
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime.engine import KernelEngine


async def measure() -> dict[str, float]:
    """Return the seconds until attached, compiled and then from the cache, and peaks of memory."""
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        engine = KernelEngine(host_netns=own_netns(), cache=ObjectCache(Path(folder, "objects")))
        seconds = await _attach(engine)
        cached_s = await _attach(engine)
        again_s = await _attach_again(engine)
    return {
        "seconds": seconds,
        "cached_s": cached_s,
        "again_s": again_s,
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "parent_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


async def _attach(engine: KernelEngine) -> float:
    """Attach and detach; return the seconds until attached."""
    began = time.monotonic()
    await engine.use(frozenset(DEFAULT_MODULES))
    seconds = time.monotonic() - began
    await engine.close()
    return seconds


async def _attach_again(engine: KernelEngine) -> float:
    """Return the seconds until attached, with the first target after a time without any."""
    target = {0: SlotSpec(netns_wide=frozenset({own_netns()}))}
    engine.assign(target)
    await engine.use(frozenset(DEFAULT_MODULES))
    engine.assign({})
    preload = engine._preload
    assert preload is not None
    assert preload._loading is not None
    await asyncio.wrap_future(preload._loading)
    began = time.monotonic()
    engine.assign(target)
    seconds = time.monotonic() - began
    await engine.close()
    return seconds


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
