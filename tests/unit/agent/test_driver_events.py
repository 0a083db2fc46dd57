"""Programs see drivers free packets for a while after a target's packet got to a driver."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from latencyprobe_agent.kernel.abi import CONFIG
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime.attachments import Attachments
from latencyprobe_agent.kernel.runtime.configuration import CONFIG_BYTES, ConfigMemory
from latencyprobe_agent.kernel.runtime.driver_events import IDLE_S, DriverEvents, DriverUse

FUNCTIONS = ("on_drop", "on_free")


class Programs:
    """Attached programs, and each change with whether completions were waited for by then."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.attached = set(FUNCTIONS)
        self.changes: list[tuple[str, bool]] = []
        self.refusal = ""

    @property
    def are_waited_for(self) -> bool:
        return os.pread(self._descriptor, 1, CONFIG.offset("sees_completions")) == b"\1"

    def attach_one(self, function: str) -> None:
        if self.refusal:
            raise OSError(self.refusal)
        self.changes.append((f"attach {function}", self.are_waited_for))
        self.attached.add(function)

    def detach_one(self, function: str) -> None:
        self.changes.append((f"detach {function}", self.are_waited_for))
        self.attached.discard(function)


@pytest.fixture
def descriptor() -> Iterator[int]:
    """A file of zeroes in the place of the kernel's map of the configuration."""
    made = os.memfd_create("configuration")
    os.truncate(made, CONFIG_BYTES)
    yield made
    os.close(made)


@pytest.fixture
def programs(descriptor: int) -> Programs:
    return Programs(descriptor)


@pytest.fixture
def events(descriptor: int, programs: Programs) -> DriverEvents:
    return DriverEvents(FUNCTIONS, Attachments(programs), ConfigMemory(descriptor))


def test_the_programs_are_wanted_until_no_driver_was_used_for_a_while() -> None:
    now = 100.0
    use = DriverUse(lambda: now)
    now += IDLE_S - 1
    assert use.is_recent(False)
    assert use.is_recent(True)
    now += IDLE_S - 1
    assert use.is_recent(False)
    now += 1
    assert not use.is_recent(False)


def test_a_packet_for_a_driver_has_them_wanted_again() -> None:
    now = 100.0
    use = DriverUse(lambda: now)
    now += IDLE_S
    assert not use.is_recent(False)
    assert use.is_recent(True)


def test_completions_are_waited_for_only_while_all_programs_are_attached(
    events: DriverEvents, programs: Programs
) -> None:
    assert programs.are_waited_for
    events.follow(False)
    events.follow(False)
    assert not programs.attached
    events.follow(True)
    assert programs.attached == set(FUNCTIONS)
    assert programs.are_waited_for
    assert programs.changes == [
        ("detach on_drop", False),
        ("detach on_free", False),
        ("attach on_drop", False),
        ("attach on_free", False),
    ]


def test_a_packet_that_gets_to_a_driver_has_them_attached_with_the_next_check(
    events: DriverEvents, programs: Programs, descriptor: int
) -> None:
    now = 100.0
    events.use = DriverUse(lambda: now)
    now += IDLE_S
    events.check()
    assert not programs.attached
    os.pwrite(descriptor, b"\1", CONFIG.offset("is_driver_used"))
    events.check()
    assert programs.attached == set(FUNCTIONS)


def test_programs_that_cannot_be_attached_now_are_tried_again(
    events: DriverEvents, programs: Programs
) -> None:
    events.follow(False)
    programs.refusal = "no memory"
    with pytest.raises(EngineError, match="cannot attach the eBPF programs: no memory"):
        events.follow(True)
    assert not programs.are_waited_for
    programs.refusal = ""
    events.follow(True)
    assert programs.are_waited_for


def test_without_such_events_no_completion_is_waited_for(
    descriptor: int, programs: Programs
) -> None:
    events = DriverEvents((), Attachments(programs), ConfigMemory(descriptor))
    events.follow(True)
    assert not events.are_followed
    assert not programs.are_waited_for
    assert programs.changes == []
