"""Fixtures of the live tier: engines on the running kernel, and pods to measure.

Tests that every kernel passes run twice here: with this kernel's best hooks, and with tracepoints
in place of scoped ones. Like in guests, they share the loaded programs, and so do those that are
marked `shared_programs`. These programs stay attached from test to test, so the tests come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.runtime import building
from tests.live import pods
from tests.live.compiled_once import compiled_once
from tests.live.fixtures import BEST, TRACEPOINTS, bridged, hooks, pair, start_engine
from tests.live.object_pool import ObjectPool
from tests.live.pods import namespace, require_tools
from tests.live.shared_host import SharedHost

__all__ = ["bridged", "hooks", "pair", "start_engine"]

_GUEST_PLUGIN = "tests.kernels.inside.shared"
_OBJECT_CACHE_VARIABLE = "LATENCYPROBE_OBJECT_CACHE"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every kernel has a second run, by tracepoints: thorough if it is `unscoped`."""
    if metafunc.config.pluginmanager.has_plugin(_GUEST_PLUGIN):
        return
    marked = metafunc.definition.get_closest_marker
    if marked("every_kernel") is not None and "hooks" in metafunc.fixturenames:
        marks = [pytest.mark.thorough] if marked("unscoped") is not None else []
        second = pytest.param(TRACEPOINTS, marks=marks)
        metafunc.parametrize("hooks", [BEST, second], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that share programs come last, those with the same ones one after another.

    Second runs are only for programs that could use other hooks. Programs by raw_tp are all
    verified here, and measure in the guest without BTF: what they measure here is thorough.
    """
    if config.pluginmanager.has_plugin(_GUEST_PLUGIN):
        return
    items[:] = [item for item in items if not (_is_second(item) and _is_untyped(item))]
    for item in items:
        if _is_untyped(item) and item.get_closest_marker("own_build") is None:
            item.add_marker("thorough")
    items.sort(
        key=lambda item: (_shares(item), _is_second(item), _shares(item) and _is_untyped(item))
    )


def _shares(item: pytest.Item) -> bool:
    is_marked = item.get_closest_marker("shared_programs") is not None
    return is_marked or _parameter(item, "hooks") is not None


def _is_second(item: pytest.Item) -> bool:
    return _parameter(item, "hooks") == TRACEPOINTS


def _is_untyped(item: pytest.Item) -> bool:
    return _parameter(item, "typed") is False


def _parameter(item: pytest.Item, name: str) -> object:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec is not None else None


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    require_tools()


@pytest.fixture(scope="session", autouse=True)
def object_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Agents that are processes of their own load what the first of them has compiled."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("cache") / "objects"
        patched.setenv(_OBJECT_CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="session")
def _shared_host() -> Iterator[SharedHost]:
    with namespace("host") as shared:
        yield SharedHost(shared)


@pytest.fixture(scope="session")
def _pool() -> Iterator[ObjectPool]:
    pool = ObjectPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _compile_once(
    request: pytest.FixtureRequest, _tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines of one source load it after a single compilation, but for tests of an own build.

    Guests share more than this: tests/kernels/inside/shared.py.
    """
    if request.config.pluginmanager.has_plugin(_GUEST_PLUGIN):
        return
    host: SharedHost = request.getfixturevalue("_shared_host")
    monkeypatch.setattr(pods, "host_namespace", host.lend)
    is_own = request.node.get_closest_marker("own_build") is not None
    if is_own:
        monkeypatch.setenv(_OBJECT_CACHE_VARIABLE, "none")
    if _shares(request.node):
        pool: ObjectPool = request.getfixturevalue("_pool")
        if is_own:
            pool.close()  # it looks for what is left
        monkeypatch.setattr(building, "build", compiled_once().build if is_own else pool.build)
    elif not is_own:
        monkeypatch.setattr(building, "build", compiled_once().build)
