"""Probes of an operator that is gone can be deleted again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner

from latencyprobe_operator import release
from latencyprobe_operator.kube.cluster import ApiError
from latencyprobe_operator.release import (
    FINALIZER,
    NotReleasedError,
    release_command,
    release_probes,
)
from tools.fakes.api import FakeApi, Json

OTHERS = "example.org/audit"


def probe(name: str, *finalizers: str, namespace: str = "shop") -> Json:
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": "7"}
    return {"metadata": {**metadata, "finalizers": list(finalizers)} if finalizers else metadata}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_REST_S", 0)


async def test_only_our_finalizer_is_taken_off() -> None:
    api = FakeApi(probes=[probe("checkout", OTHERS, FINALIZER), probe("cart", OTHERS), probe("x")])

    async with api.serve() as cluster:
        assert await release_probes(cluster) == 1

    assert api.probes == [probe("checkout", OTHERS), probe("cart", OTHERS), probe("x")]


async def test_probes_of_several_pages_are_released() -> None:
    api = FakeApi(probes=[probe(f"checkout-{number}", FINALIZER) for number in range(120)])

    async with api.serve() as cluster:
        assert await release_probes(cluster) == 120


async def test_only_the_namespaces_that_were_named_are_read() -> None:
    api = FakeApi(probes=[probe("a", FINALIZER), probe("b", FINALIZER, namespace="other")])

    async with api.serve() as cluster:
        assert await release_probes(cluster, ["shop"]) == 1

    assert [body["metadata"].get("finalizers") for body in api.probes] == [None, [FINALIZER]]


async def test_a_probe_that_changed_since_its_reading_is_read_again() -> None:
    api = FakeApi(probes=[probe("checkout", FINALIZER)], conflicts=2)

    async with api.serve() as cluster:
        assert await release_probes(cluster) == 1

    assert api.probes == [probe("checkout")]


async def test_an_operator_that_still_runs_is_reported() -> None:
    api = FakeApi(probes=[probe("checkout", FINALIZER)], conflicts=1000)

    async with api.serve() as cluster:
        with pytest.raises(NotReleasedError, match=r"shop/checkout: .* stop the operator first"):
            await release_probes(cluster)


def test_without_a_cluster_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / "kubeconfig").write_text("{}")

    result = CliRunner().invoke(
        release_command, ["--kubeconfig", str(tmp_path / "kubeconfig")], env={}
    )

    assert result.exit_code == 1
    assert "cannot find a cluster" in result.stderr


async def test_without_a_crd_there_is_nothing_to_do() -> None:
    async with FakeApi(refuse=(404, "NotFound")).serve() as cluster:
        assert await release_probes(cluster) == 0


async def test_a_server_that_does_not_serve_probes_yet_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = FakeApi(probes=[probe("checkout", FINALIZER)], starting=True)
    sleep = asyncio.sleep

    async def start(seconds: float) -> None:
        await sleep(seconds)
        api.starting = False

    monkeypatch.setattr(asyncio, "sleep", start)
    async with api.serve() as cluster:
        assert await release_probes(cluster) == 1

    assert api.probes == [probe("checkout")]


async def test_without_a_served_crd_there_is_nothing_to_do() -> None:
    async with FakeApi(starting=True).serve() as cluster:
        assert await release_probes(cluster) == 0


async def test_a_refusal_is_an_error() -> None:
    async with FakeApi(refuse=(403, "Forbidden")).serve() as cluster:
        with pytest.raises(ApiError):
            await release_probes(cluster)
