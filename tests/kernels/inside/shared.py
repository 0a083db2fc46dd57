"""A plug-in of pytest: tests in a guest have engines that are built once, and one host.

Compiling takes half a minute in a guest: see tests/live/object_pool.py. Tests of loading and
unloading are marked `own_build`: theirs are loaded anew. The host of pods is the guest itself,
whose namespace is a constant in the loaded programs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from latencyprobe_agent.kernel.load import handover
from latencyprobe_agent.kernel.runtime import engine
from tests.live import pods
from tests.live.compiled_once import compiled_once
from tests.live.object_pool import ObjectPool
from tests.live.pods import Namespace, run
from tests.patience import patient


@contextmanager
def _guest_as_host() -> Iterator[Namespace]:
    """The guest's own network namespace, under a name, as it was."""
    made = Namespace(f"lptest-{os.getpid()}-guest")
    run("ip", "netns", "attach", made.name, str(os.getpid()))
    try:
        yield made
    finally:
        run("ip", "netns", "delete", made.name)
        _remove_bridge()
        run("nft", "flush", "ruleset")
        run("sysctl", "-qw", "net.ipv4.ip_forward=0")


def _remove_bridge() -> None:
    if os.path.exists("/sys/class/net/br0"):
        run("ip", "link", "delete", "br0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that use the same programs one after another, those with a build of their own last."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[bool, bool]:
    callspec = getattr(item, "callspec", None)
    is_typed = callspec is None or callspec.params.get("typed", True)
    return item.get_closest_marker("own_build") is not None, not is_typed


@pytest.fixture(scope="session")
def _pool() -> Iterator[ObjectPool]:
    pool = ObjectPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _shared(
    request: pytest.FixtureRequest, _pool: ObjectPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = patient(handover._COMPILE_TIMEOUT_S)
    monkeypatch.setattr(handover, "_COMPILE_TIMEOUT_S", limit)
    monkeypatch.setattr(pods, "host_namespace", _guest_as_host)
    if request.node.get_closest_marker("no_types") is not None:
        return  # what the compiler's process says
    if request.node.get_closest_marker("own_build") is None:
        monkeypatch.setattr(engine, "build", _pool.build)
    else:
        _pool.close()
        monkeypatch.setattr(engine, "build", compiled_once().build)
