"""Listeners are read with pauses, which grow with what a reading takes."""

from __future__ import annotations

import errno
import time

import pytest

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.runtime.listeners import ListenerReadings, Pause

MILLISECOND_NS = 1_000_000
SECOND_NS = 1000 * MILLISECOND_NS


class Node:
    """A node on which each reading takes two milliseconds."""

    def __init__(self) -> None:
        self.now_ns = SECOND_NS
        self.readings: list[int] = []
        self.failure: OSError | None = None

    def run_iterator(self, link_fd: int) -> None:
        self.now_ns += 2 * MILLISECOND_NS
        if self.failure is not None:
            raise self.failure
        self.readings.append(link_fd)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node()
    monkeypatch.setattr(libbpf, "run_iterator", made.run_iterator)
    monkeypatch.setattr(time, "monotonic_ns", lambda: made.now_ns)
    return made


def test_a_thousandth_of_the_time_goes_into_readings(node: Node) -> None:
    listeners = ListenerReadings()
    for _ in range(100):
        listeners.read(7)
        node.now_ns += 100 * MILLISECOND_NS
    assert len(node.readings) == 5  # of ten seconds
    assert set(node.readings) == {7}


def test_the_last_reading_of_an_object_waits_for_nothing(node: Node) -> None:
    listeners = ListenerReadings()
    listeners.read(7)
    listeners.read(7)
    listeners.read(7, Pause.NONE)
    assert len(node.readings) == 2


def test_listeners_of_new_targets_are_read_a_hundredth_of_the_time(node: Node) -> None:
    listeners = ListenerReadings()
    listeners.read(7)
    for _ in range(100):
        listeners.read(7, Pause.BEFORE_CHANGE)
        node.now_ns += 10 * MILLISECOND_NS
    assert len(node.readings) == 5  # of a second: the first, and one after each 0.2 s


def test_a_reading_that_fails_is_made_up_for_later(node: Node) -> None:
    listeners = ListenerReadings()
    node.failure = libbpf.KernelRefusedError(errno.EMFILE, "create an iterator")
    listeners.read(7)
    node.failure = None
    node.now_ns += 2 * SECOND_NS
    listeners.read(7)
    assert node.readings == [7]
