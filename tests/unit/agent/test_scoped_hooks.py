"""Hooks on cgroups and devices serve instead of others, which the kernel's side here notes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from typing import cast

import pytest

from latencyprobe_agent.kernel.hooks import QUEUE, RECEIVE, SEGMENT, Hook, HookKind
from latencyprobe_agent.kernel.load.loader import ScopedHook
from latencyprobe_agent.kernel.runtime import cgroup_hooks, device_hooks
from latencyprobe_agent.kernel.runtime.attachments import Attachments
from latencyprobe_agent.kernel.runtime.cgroup_hooks import CgroupHooks
from latencyprobe_agent.kernel.runtime.configuration import CONFIG_BYTES, ConfigMemory
from latencyprobe_agent.kernel.runtime.device_hooks import DeviceHooks
from latencyprobe_agent.kernel.runtime.device_links import Outcome
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps

ON_CGROUPS = {
    SEGMENT: ScopedHook(Hook("on_cgroup_ingress", "ingress", HookKind.CGROUP_PACKET), "on_probe")
}
ON_DEVICES = {
    RECEIVE: ScopedHook(Hook("on_pod_ingress", "ingress", HookKind.DEVICE), "on_receive"),
    QUEUE: ScopedHook(Hook("on_pod_egress", "egress", HookKind.DEVICE), "on_queue"),
}
PODS = {7: frozenset({"/pod"})}


class Others:
    """The programs of the other hooks."""

    def __init__(self) -> None:
        self.attached = {"on_probe", "on_receive", "on_queue"}

    def attach_one(self, function: str) -> None:
        self.attached.add(function)

    def detach_one(self, function: str) -> None:
        self.attached.discard(function)


class CgroupLinks:
    """Links to cgroups; none is made."""

    def __init__(self, _programs: object) -> None:
        self.refused: dict[str, str] = {}
        self.followed: list[Collection[str]] = []
        self.is_closed = False

    def follow(self, directories: Collection[str]) -> None:
        self.followed.append(directories)

    def close(self) -> None:
        self.is_closed = True


class DeviceLinks:
    """Links to devices, whose round ends when the test says so."""

    def __init__(self, programs: Mapping[str, int], **_host: object) -> None:
        self.programs = programs
        self.outcome = Outcome()
        self.wanted: frozenset[int] = frozenset()
        self.is_busy = False
        self.checks = 0
        self.ended: Future[None] = Future()

    @property
    def is_attached(self) -> bool:
        return self.outcome.wanted == self.wanted and not self.outcome.refused

    def follow(self, wanted: Mapping[int, frozenset[str]]) -> None:
        self.wanted = frozenset(wanted)
        self.is_busy = True

    def finish(self, refused: str = "") -> None:
        self.outcome = Outcome(self.wanted, refused=refused)
        self.is_busy = False

    def replace_programs(self, programs: Mapping[str, int]) -> None:
        self.programs = programs

    def check(self) -> None:
        self.checks += 1

    def end(self) -> Future[None]:
        return self.ended


@pytest.fixture
def configuration() -> Iterator[ConfigMemory]:
    """The configuration, in a file of zeroes in the place of the kernel's map."""
    descriptor = os.memfd_create("configuration")
    os.truncate(descriptor, CONFIG_BYTES)
    yield ConfigMemory(descriptor)
    os.close(descriptor)


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
def cgroups(
    configuration: ConfigMemory, others: Others, monkeypatch: pytest.MonkeyPatch
) -> tuple[CgroupHooks, CgroupLinks]:
    made: list[CgroupLinks] = []

    def links(programs: object) -> CgroupLinks:
        made.append(CgroupLinks(programs))
        return made[-1]

    monkeypatch.setattr(cgroup_hooks, "CgroupLinks", links)
    hooks = CgroupHooks(ON_CGROUPS, {"on_cgroup_ingress": 3}, Attachments(others), configuration)
    return hooks, made[0]


def test_programs_on_cgroups_serve_until_a_target_is_no_cgroup(
    cgroups: tuple[CgroupHooks, CgroupLinks], others: Others, configuration: ConfigMemory
) -> None:
    hooks, links = cgroups
    due = hooks.is_check_due
    hooks.follow({"/a"})
    assert (due, hooks.is_check_due) == (True, False)
    assert (hooks.are_used, configuration.settings.sees_segments) == (True, True)
    assert "on_probe" not in others.attached

    hooks.follow(None)
    assert (hooks.are_used, configuration.settings.sees_segments) == (False, False)
    assert "on_probe" in others.attached
    assert links.is_closed


def test_programs_on_cgroups_never_return_to_sockets_that_others_have_seen(
    cgroups: tuple[CgroupHooks, CgroupLinks], others: Others
) -> None:
    hooks, links = cgroups
    links.refused = {"/a": "another program is there"}
    hooks.follow({"/a"})
    assert hooks.refused == "another program is there"
    links.refused = {}
    hooks.follow({"/b"})
    assert links.followed == [{"/a"}]
    assert not hooks.are_used
    assert "on_probe" in others.attached


def test_programs_on_cgroups_are_not_used_after_the_close(
    cgroups: tuple[CgroupHooks, CgroupLinks], others: Others
) -> None:
    hooks, links = cgroups
    hooks.close()
    hooks.follow({"/a"})
    assert links.is_closed
    assert links.followed == []
    assert "on_probe" in others.attached


def test_without_programs_on_cgroups_the_others_stay(
    configuration: ConfigMemory, others: Others
) -> None:
    hooks = CgroupHooks({}, {}, Attachments(others), configuration)
    hooks.follow({"/a"})
    assert not hooks.are_used
    assert "on_probe" in others.attached


@pytest.fixture
def devices(
    configuration: ConfigMemory, others: Others, monkeypatch: pytest.MonkeyPatch
) -> DeviceHooks:
    monkeypatch.setattr(device_hooks, "DeviceLinks", DeviceLinks)
    programs = {"on_pod_ingress": 4, "on_pod_egress": 5}
    return DeviceHooks(
        ON_DEVICES, programs, NamedMaps({}), Attachments(others), configuration, host=1
    )


def links_of(hooks: DeviceHooks) -> DeviceLinks:
    assert hooks.links is not None
    return cast(DeviceLinks, hooks.links)


def sees(configuration: ConfigMemory) -> tuple[bool, bool]:
    settings = configuration.settings
    return settings.sees_arrivals, settings.sees_departures


def test_tracepoints_serve_until_all_devices_have_programs(
    devices: DeviceHooks, others: Others, configuration: ConfigMemory
) -> None:
    devices.follow(PODS, None)
    assert not devices.check()
    assert sees(configuration) == (False, False)
    links_of(devices).finish()
    assert devices.check()
    assert sees(configuration) == (True, True)
    assert others.attached == {"on_probe"}
    assert not devices.check()
    assert links_of(devices).checks == 2


def test_tracepoints_serve_again_while_a_new_pod_has_no_programs(
    devices: DeviceHooks, others: Others, configuration: ConfigMemory
) -> None:
    devices.follow(PODS, None)
    links_of(devices).finish()
    devices.check()
    devices.follow({**PODS, 8: frozenset()}, None)
    assert sees(configuration) == (False, False)
    assert others.attached == {"on_probe", "on_receive", "on_queue"}
    links_of(devices).finish("device eth0: no memory")
    assert devices.check()
    assert devices.refused == "device eth0: no memory"
    assert not devices.are_used


def test_links_to_devices_end_with_targets_that_they_do_not_see(
    devices: DeviceHooks, others: Others
) -> None:
    devices.follow(PODS, None)
    links = links_of(devices)
    links.finish()
    devices.check()
    devices.follow(None, None)
    assert devices.links is None
    assert devices.detaching is links.ended
    assert "on_queue" in others.attached


def test_another_object_takes_links_over_and_only_one_ends_them(
    devices: DeviceHooks, configuration: ConfigMemory, others: Others
) -> None:
    devices.follow(PODS, None)
    links = links_of(devices)
    programs = {"on_pod_ingress": 14, "on_pod_egress": 15}
    following = DeviceHooks(
        ON_DEVICES, programs, NamedMaps({}), Attachments(others), configuration, host=1
    )
    following.adopt(devices)
    assert links_of(following) is links
    assert links.programs == programs
    devices.end()
    assert devices.detaching is None
    following.end()
    assert following.detaching is links.ended


def test_programs_on_devices_are_not_used_after_the_close(
    devices: DeviceHooks, configuration: ConfigMemory, others: Others
) -> None:
    devices.follow(PODS, None)
    links = links_of(devices)
    devices.close()
    assert devices.detaching is links.ended
    devices.follow(PODS, None)
    assert devices.links is None
    before = DeviceHooks(
        ON_DEVICES, {"on_queue": 24}, NamedMaps({}), Attachments(others), configuration, host=1
    )
    before.follow(PODS, None)
    devices.adopt(before)
    assert devices.links is None


def test_an_object_without_such_programs_leaves_links_to_devices_alone(
    devices: DeviceHooks, configuration: ConfigMemory, others: Others
) -> None:
    devices.follow(PODS, None)
    links = links_of(devices)
    without = DeviceHooks({}, {}, NamedMaps({}), Attachments(others), configuration, host=1)
    without.adopt(devices)
    without.follow(PODS, None)
    assert without.links is None
    assert links_of(devices) is links
