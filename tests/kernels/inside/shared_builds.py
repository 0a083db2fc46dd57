"""A plug-in of pytest: engines that ask for the same programs get those that are loaded already.

Compiling takes a quarter of a minute in a guest. So what an engine closes is kept, empty, for the
next that asks for the same; tests of loading and unloading are marked `own_build`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from latencyprobe_agent.kernel import engine, loaded
from latencyprobe_agent.kernel.compiler import Request
from latencyprobe_agent.kernel.loaded import LoadedObject, build
from latencyprobe_agent.slots import MAX_SLOTS
from tests.patience import patient

_KEY_BYTES = {"cgroups": 8, "processes": 4, "filter_ports": 4}
_KEPT = 2


class _Pool:
    """Loaded objects that nobody uses now, by what they were asked for as."""

    def __init__(self) -> None:
        self._unused: dict[Request, LoadedObject] = {}

    async def build(self, request: Request) -> LoadedObject:
        built = self._unused.pop(request, None)
        if built is None:
            self.keep(_KEPT - 1)
            built = await build(request)
        return _Lent(self, request, built)  # type: ignore[return-value]

    def take_back(self, request: Request, built: LoadedObject) -> None:
        _empty(built)
        self._unused[request] = built

    def keep(self, most: int) -> None:
        """Close all but the ones last used."""
        while len(self._unused) > most:
            self._unused.pop(next(iter(self._unused))).close()


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
    built.configuration.write_namespaces({})
    for name, key_bytes in _KEY_BYTES.items():
        built.erase(name, built.keys(name, key_bytes))
    built.bump_generation()
    for slot in range(MAX_SLOTS):
        built.statistics.clear(slot)


@pytest.fixture(scope="session")
def _pool() -> Iterator[_Pool]:
    pool = _Pool()
    yield pool
    pool.keep(0)


@pytest.fixture(autouse=True)
def _shared_builds(
    request: pytest.FixtureRequest, _pool: _Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = patient(loaded._COMPILE_TIMEOUT_SECONDS)
    monkeypatch.setattr(loaded, "_COMPILE_TIMEOUT_SECONDS", limit)
    if request.node.get_closest_marker("own_build") is None:
        monkeypatch.setattr(engine, "build", _pool.build)
    else:
        _pool.keep(0)
