"""Time and memory that loading takes, compiled and cached: `python -m bench.compiler_cost`.

It is a program of its own, with no other children than those that compile. They share most pages:
so their memory is the sum of their proportional set sizes, polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.network import own_netns
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime.engine import KernelEngine

_POLL_S = 0.02


class Peak:
    """The most memory that the descendants of this process had together, in MiB."""

    def __init__(self) -> None:
        self.mib = 0.0

    async def watch(self) -> None:
        """Poll until cancelled."""
        while True:
            self.mib = max(self.mib, sum(_pss_kib(pid) for pid in _descendants("self")) / 1024)
            await asyncio.sleep(_POLL_S)


def _descendants(pid: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield child
                yield from _descendants(child)


def _pss_kib(pid: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


async def measure() -> dict[str, float]:
    """Return the seconds until attached, compiled and then from the cache, and the most memory."""
    peak = Peak()
    watching = asyncio.create_task(peak.watch())
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        engine = KernelEngine(host_netns=own_netns(), cache=ObjectCache(Path(folder, "objects")))
        seconds = await _attach(engine)
        watching.cancel()
        cached_s = await _attach(engine)
        again_s = await _attach_again(engine)
    return {
        "seconds": seconds,
        "cached_s": cached_s,
        "again_s": again_s,
        "peak_mib": peak.mib,
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
