"""Fixtures of the tests inside a guest. Those of tests/live serve here too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.kernels.vm import NICS
from tests.live import pods
from tests.live.fixtures import bridged, hooks, pair, start_engine
from tests.live.pods import Pod, made_pod, namespace, run
from tests.live.sockets import PATIENCE_SECONDS
from tests.live.targets import until

__all__ = ["bridged", "hooks", "nics", "pair", "start_engine"]

HERE = Path(__file__).parent
_ONLY_SOMETIMES = ("headers_alone", "no_types")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is here runs on every kernel, unless it is about a kernel without types."""
    for item in items:
        special = any(item.get_closest_marker(marker) for marker in _ONLY_SOMETIMES)
        if item.path.is_relative_to(HERE) and not special:
            item.add_marker("every_kernel")


@pytest.fixture
def node_and_beyond() -> Iterator[tuple[Pod, Pod]]:
    """A (client, server) pair: a pod behind a network device, and one of the node's own network."""
    here, beyond = (_device(address) for address in NICS)
    with ExitStack() as stack:
        outside = stack.enter_context(namespace("beyond"))
        run("ip", "link", "set", beyond, "netns", outside.name, "name", "eth0")
        client = made_pod(stack, outside, 0)
        node = stack.enter_context(pods.host_namespace())
        stack.callback(run, "ip", "address", "flush", "dev", here)
        yield client, made_pod(stack, node, 1, here)


@pytest.fixture
def nics() -> Iterator[tuple[Pod, Pod]]:
    """A (client, server) pair of pods on a network device each, with interrupts and a wire."""
    with ExitStack() as stack:
        pods = []
        for index, address in enumerate(NICS):
            inside = stack.enter_context(namespace(f"nic{index}"))
            # A hardware device goes back to the machine's own namespace when its own is deleted.
            run("ip", "link", "set", _device(address), "netns", inside.name, "name", "eth0")
            pods.append(made_pod(stack, inside, index))
        yield pods[0], pods[1]


def _device(address: str) -> str:
    """The name of the network device with this hardware address.

    It comes back some time after the namespace that it was in is deleted: cleanup_net().
    """
    until(
        lambda: len(_devices(address)) == 1,
        f"one network device with the address {address}",
        seconds=PATIENCE_SECONDS,
    )
    (name,) = _devices(address)
    return name


def _devices(address: str) -> list[str]:
    found = []
    for path in Path("/sys/class/net").glob("*/address"):
        with suppress(OSError):  # it may be on its way to another namespace
            if path.read_text().strip() == address:
                found.append(path.parent.name)
    return found
