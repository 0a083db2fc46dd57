"""A plug-in of pytest: tests in a guest have engines that are built once, and one host.

Compiling takes half a minute in a guest, so engines get programs of the same compiled code: with
the default modules if they do for what is asked, else with all. What an engine closes is kept,
empty, for the next that asks for the same. Tests of loading and unloading are marked `own_build`:
theirs are loaded anew. The host of pods is the guest itself, whose namespace is a constant in the
loaded programs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel.contract import MAX_SLOTS
from latencyprobe_agent.kernel.load import handover
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime import engine, ring
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject
from tests.live import pods
from tests.live.compiled_once import compiled_once
from tests.live.pods import Namespace, run
from tests.patience import patient

_KEY_BYTES = {"cgroups": 8, "processes": 4, "filter_ports": 4}


class _Pool:
    """The loaded object that was used last, if nobody uses it now."""

    def __init__(self) -> None:
        self._unused: tuple[Request, LoadedObject] | None = None

    async def build(
        self, request: Request, cache: ObjectCache | None = None, prepared: object = None
    ) -> LoadedObject:
        wanted = replace(request, modules=_modules_for(request), udp=True)
        if self._unused is None or self._unused[0] != wanted:
            self.close()
            built = await compiled_once().build(wanted)
        else:
            (_, built), self._unused = self._unused, None
        _empty(built)
        return _Lent(self, wanted, built)  # type: ignore[return-value]

    def take_back(self, request: Request, built: LoadedObject) -> None:
        self.close()
        _empty(built)
        self._unused = request, built

    def close(self) -> None:
        """Close what is not used now."""
        if self._unused is not None:
            self._unused[1].close()
            self._unused = None


def _modules_for(request: Request) -> tuple[str, ...]:
    does = not request.trace and set(DEFAULT_MODULES).issuperset(map(Module, request.modules))
    return tuple(str(module) for module in Module if module in DEFAULT_MODULES or not does)


class _Lent:
    """A loaded object whose end is its return to the pool."""

    def __init__(self, pool: _Pool, request: Request, built: LoadedObject) -> None:
        self._pool, self._request, self._built = pool, request, built
        self._is_lent = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._built, name)

    def close(self) -> None:
        if self._is_lent:
            self._is_lent = False
            self._pool.take_back(self._request, self._built)


def _empty(built: LoadedObject) -> None:
    """As it was when it was new, but for what is known of packets that are gone."""
    built.sample(0)
    built._is_scope_lost = False
    built.listeners.forget_last()
    built.configuration.write_namespaces({})
    for name, key_bytes in _KEY_BYTES.items():
        built.erase(name, built.keys(name, key_bytes))
    built.bump_generation()
    for _ in range(2):
        inactive = built.flip_epoch({})
        for element in range(MAX_SLOTS):
            built.statistics._take_element(inactive.epoch * MAX_SLOTS + element)
        if built.node_statistics is not None:
            built.node_statistics.take(inactive.epoch)
    if built.ring is not None:
        counts = slice(ring._COUNTS_OFFSET, ring._COUNTS_OFFSET + ring._COUNTS.size)
        built.ring._control[counts] = bytes(ring._COUNTS.size)


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
def _pool() -> Iterator[_Pool]:
    pool = _Pool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _shared(request: pytest.FixtureRequest, _pool: _Pool, monkeypatch: pytest.MonkeyPatch) -> None:
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
