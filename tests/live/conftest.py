"""Fixtures of the live tier: engines on the running kernel, and pods to measure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from latencyprobe_agent.kernel.runtime import engine
from tests.live import pods
from tests.live.compiled_once import compiled_once
from tests.live.fixtures import bridged, pair, start_engine
from tests.live.pods import namespace, require_tools
from tests.live.shared_host import SharedHost

__all__ = ["bridged", "pair", "start_engine"]


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    require_tools()


@pytest.fixture(scope="session", autouse=True)
def _no_object_cache() -> Iterator[None]:
    """Agents that are processes of their own compile, unless a test gives them a cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LATENCYPROBE_OBJECT_CACHE", "none")
        yield


@pytest.fixture(scope="session")
def _shared_host() -> Iterator[SharedHost]:
    with namespace("host") as shared:
        yield SharedHost(shared)


@pytest.fixture(autouse=True)
def _compile_once(
    request: pytest.FixtureRequest, _tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines of one source load it after a single compilation, but for tests of an own build.

    Guests share more than this: tests/kernels/inside/shared.py.
    """
    if request.config.pluginmanager.has_plugin("tests.kernels.inside.shared"):
        return
    host: SharedHost = request.getfixturevalue("_shared_host")
    monkeypatch.setattr(pods, "host_namespace", host.lend)
    if request.node.get_closest_marker("own_build") is None:
        monkeypatch.setattr(engine, "build", compiled_once().build)
