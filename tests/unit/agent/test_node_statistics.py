"""The node's own stages, on maps that a test fills as the kernel would."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from latencyprobe.domain.measurement import NodeStage
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import NODE_ROW, NODE_ROWS, ROW_HANDLERS
from latencyprobe_agent.kernel.runtime.node_statistics import NodeStatisticsMemory

NAMES = 7
OF_THE_DISK = (ROW_HANDLERS + 5) * NODE_ROW.size


@pytest.fixture
def rows() -> Iterator[int]:
    """The descriptor of the map `node_stats`."""
    descriptor = os.memfd_create("node_stats")
    os.ftruncate(descriptor, 2 * NODE_ROWS * NODE_ROW.size)
    yield descriptor
    os.close(descriptor)


def test_a_handler_whose_name_cannot_be_read_now_has_it_later(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(map_fd: int, key: bytes, value_bytes: int) -> bytes | None:
        raise libbpf.KernelRefusedError(errno.ENOMEM, "read an entry")

    memory = NodeStatisticsMemory(rows, NAMES)
    os.pwrite(rows, b"\1", OF_THE_DISK)
    with monkeypatch.context() as patched:
        patched.setattr(libbpf, "look_up", refuse)
        assert set(memory.take(0).stages) == {NodeStage("irq.hard", "handler 5")}
    os.pwrite(rows, b"\1", OF_THE_DISK)
    monkeypatch.setattr(libbpf, "look_up", lambda *_: b"nvme0q1\0")
    assert set(memory.take(0).stages) == {NodeStage("irq.hard", "nvme0q1")}
    memory.close()
