"""The cost of following a cluster's pods for the operator: python -m bench.pod_memory [PODS].

A second process serves PODS pods (by default 100,000) of 8 KB of JSON each, in pages of 500, over
real HTTP. One set of ten of them is selected. Prints the seconds of the first list and the
longest time for which the event loop was blocked. Prints RSS before and after it, and after three
more lists, and its peak. The heap is set up, and gives memory back, as the operator's does.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from bench.operator_scale import rss_mib

# The operator's other memory is part of what is measured.
from latencyprobe_operator import main as _operator  # noqa: F401
from latencyprobe_operator.kube import heap
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.kube.informer import Scope
from latencyprobe_operator.kube.pods import PodsChange, PodWatches
from latencyprobe_operator.kube.selector import read_selector
from tools.fakes.samples import pod_texts

PAGE = 500
LISTS = 4


def main() -> None:
    """Serve the pods beside the operator, and print what the operator took."""
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, pods))
    server.start()
    heap.share_one_arena()
    heap.map_read_blocks()
    try:
        asyncio.run(follow(ours.recv(), pods))
    finally:
        server.terminate()
        server.join()


def serve(parent: Connection, pods: int) -> None:
    """Serve as the API server."""
    asyncio.run(_serve(parent, pods))


async def _serve(parent: Connection, pods: int) -> None:
    bodies = list(pod_texts(pods))

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            await asyncio.sleep(2)
            error = '{"type": "ERROR", "object": {"code": 410, "message": "too old"}}\n'
            return web.Response(text=error)
        start = int(request.query.get("continue", 0))
        more = start + PAGE if start + PAGE < pods else ""
        items = ",".join(map(_enlarge, bodies[start : start + PAGE]))
        metadata = f'{{"resourceVersion": "1", "continue": "{more}"}}'
        return web.Response(text=f'{{"metadata": {metadata}, "items": [{items}]}}')

    application = web.Application()
    application.router.add_get("/api/v1/pods", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    parent.send("http://{}:{}".format(*runner.addresses[0][:2]))
    await asyncio.Event().wait()


def _enlarge(body: str) -> str:
    """Give a pod what the operator has no use for: an annotation, and managed fields."""
    annotations = '"annotations": {"note": "' + "x" * 3000 + '"}, '
    managed = '"managedFields": [' + ", ".join(['{"f:spec": {"f:x": {}}}'] * 200) + "], "
    return body.replace('{"metadata": {', '{"metadata": {' + annotations + managed, 1)


async def follow(host: str, pods: int) -> None:
    """Follow the pods as the operator does."""
    configuration = Configuration()
    configuration.host = host
    cluster = Cluster(configuration)
    watches = PodWatches(cluster)
    listed = asyncio.Queue[float]()

    def listen(_: PodsChange) -> None:
        listed.put_nowait(time.monotonic())

    print(f"before: RSS {rss_mib():.0f} MiB")
    blocked = asyncio.create_task(_longest_block())
    selector = read_selector({"matchLabels": {"app.kubernetes.io/name": "checkout-7"}})
    for number in itertools.count(1):
        began = time.monotonic()
        if number == 1:
            watches.subscribe("shop", selector, listen)
        seconds = await listed.get() - began
        heap.give_back()
        print(f"{Scope(None)}: list {number} after {seconds:.1f} s, RSS {rss_mib():.0f} MiB")
        if number == LISTS:
            break
    print(f"peak: RSS {_peak_mib():.0f} MiB")
    print(f"event loop blocked for at most {_blocked[0]:.3f} s; {pods} pods")
    blocked.cancel()
    await watches.close()
    await cluster.close()


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_blocked = [0.0]


async def _longest_block() -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.01)
        _blocked[0] = max(_blocked[0], time.monotonic() - began - 0.01)


if __name__ == "__main__":
    main()
