"""Pods that are large by their annotations cost the operator no more memory than one of them."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest
from kubernetes.aio.client.configuration import Configuration

from latencyprobe_operator.kube.cluster import UNAVAILABLE, Cluster
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, pod_body

MEBIBYTE = 1 << 20


def large_pod(name: str, annotation: str) -> Json:
    """A pod with an annotation, and with managed fields that the API server derives from it."""
    body = pod_body(name)
    body["metadata"]["annotations"] = {"note": annotation}
    body["metadata"]["managedFields"] = [
        {"fieldsV1": {f"f:{number}": {} for number in range(10)}} for _ in range(10)
    ]
    return body


@pytest.mark.parametrize("page", [100, 40])
async def test_a_page_of_large_pods_takes_the_memory_of_a_few_of_them(page: int) -> None:
    api, names = FakeApi(page=page), set[str]()
    annotation = "x" * MEBIBYTE
    for number in range(100):
        api.set(large_pod(f"pod-{number}", annotation))
    async with api.serve() as cluster:
        tracemalloc.start()
        try:
            await cluster.list_pods(None, "", lambda body: names.add(body["metadata"]["name"]))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(names) == 100
    assert api.lists == -(-100 // page)
    # Of both sides: the server has some texts of one pod, too.
    assert peak < 16 * MEBIBYTE


async def test_a_list_that_breaks_within_a_page_is_no_list() -> None:
    names: list[str] = []
    pods = ",".join(json.dumps(large_pod(f"pod-{number}", "x" * 10_000)) for number in range(100))
    half = f'{{"items": [{pods}'[: len(pods) // 2].encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + half)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        configuration = Configuration()
        host, port = server.sockets[0].getsockname()
        configuration.host = f"http://{host}:{port}"
        cluster = Cluster(configuration)
        with pytest.raises(UNAVAILABLE):
            await cluster.list_pods(None, "", lambda body: names.append(body["metadata"]["name"]))
        await cluster.close()
    assert 40 <= len(names) <= 50
