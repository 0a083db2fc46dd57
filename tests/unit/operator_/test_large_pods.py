"""Pods that are large by their annotations cost the operator no more memory than one of them."""

from __future__ import annotations

import asyncio
import json
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest
from kubernetes.aio.client.configuration import Configuration

from latencyprobe_operator.kube.cluster import UNAVAILABLE, Cluster
from latencyprobe_operator.kube.listing import ListReader
from latencyprobe_operator.kube.nesting import allow_nested_objects
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


@pytest.fixture
def as_in_the_operator() -> Iterator[None]:
    """Decode nested objects as the operator's process does."""
    before = sys.getrecursionlimit()
    allow_nested_objects()
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("as_in_the_operator")
async def test_a_pod_as_deep_as_the_api_server_allows_ends_no_list() -> None:
    levels, names = 9_900, list[str]()
    nested = '{"f:a":' * levels + "{}" + "}" * levels
    pods = [json.dumps(large_pod(name, "x")) for name in ("deep", "next")]
    pods[0] = pods[0].replace('"fieldsV1": {', f'"fieldsV1": {{"f:b": {nested}, ', 1)
    assert "f:b" in pods[0]

    async def pieces() -> AsyncIterator[bytes]:
        yield f'{{"items": [{",".join(pods)}]}}'.encode()

    async for body in ListReader(pieces()):
        names.append(body["metadata"]["name"])
    assert names == ["deep", "next"]


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
