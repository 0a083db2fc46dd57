"""A plug-in of pytest: tests in a guest have engines that are built once, and one host.

Compiling takes a minute in a guest, and loading a quarter of one: see tests/live/object_pool.py.
Tests of loading and unloading are marked `own_build`: theirs are loaded anew. The host of pods is
the guest itself, whose namespace is a constant in the loaded programs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from latencyprobe_agent.kernel.load import handover
from latencyprobe_agent.kernel.runtime import building
from latencyprobe_agent.kernel.typeinfo import kernel_types_kind
from tests.live import pods
from tests.live.compiled_once import compile_here, compiled_once
from tests.live.object_pool import ObjectPool
from tests.live.pods import Namespace, run
from tests.patience import patient

# Tests of more than the default modules: first the agent whose programs the others load, too.
_OF_ALL_MODULES = ("test_coverage", "test_engine_irq", "test_engine_sched", "test_engine_trace")


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option for the guest of `make test`."""
    parser.addoption(
        "--first-choices-alone",
        action="store_true",
        help="leave out what uses hooks that are not this kernel's first choice, or takes minutes",
    )


def pytest_configure() -> None:
    """Compile in this process: both CPUs of a guest are one of this machine's."""
    compiled_once().compile_ = compile_here


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that use the same programs one after another, those with a build of their own last."""
    if config.getoption("first_choices_alone"):
        left_out = [item for item in items if _is_second_choice(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=_place)


def _is_second_choice(item: pytest.Item) -> bool:
    return (
        item.get_closest_marker("second_choice") is not None
        or not _parameter(item, "typed", True)
        or bool(_parameter(item, "without", ()))
    )


def _place(item: pytest.Item) -> tuple[bool, bool, int]:
    name = item.path.stem
    return (
        item.get_closest_marker("own_build") is not None,
        not _parameter(item, "typed", True),
        _OF_ALL_MODULES.index(name) + 1 if name in _OF_ALL_MODULES else 0,
    )


def _parameter(item: pytest.Item, name: str, default: object) -> object:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name, default) if callspec is not None else default


@pytest.fixture(scope="session")
def _pool() -> Iterator[ObjectPool]:
    pool = ObjectPool(traces=kernel_types_kind() == "btf")  # without BTF, no test traces
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
        monkeypatch.setattr(building, "build", _pool.build)
    else:
        _pool.close()
        monkeypatch.setattr(building, "build", compiled_once().build)
