"""Hooks on cgroups and devices serve instead of others, which the kernel's side here notes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import cast

import pytest

from latencyprobe_agent.kernel.abi import HOST_DEVICES
from latencyprobe_agent.kernel.contract import EngineError
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
MORE_PODS = {**PODS, 8: frozenset[str]()}
ON_CGROUPS_ONLY = frozenset({"segments"})
ON_DEVICES_ONLY = frozenset({"arrivals", "departures"})
NO_EVENTS: frozenset[str] = frozenset()


class Others:
    """The programs of the other hooks, and each change with what those here see by then."""

    def __init__(self, configuration: ConfigMemory) -> None:
        self._configuration = configuration
        self.attached = {"on_probe", "on_receive", "on_queue"}
        self.changes: list[tuple[str, frozenset[str]]] = []
        self.refusal = ""

    def note(self, change: str) -> None:
        self.changes.append((change, sees(self._configuration)))

    def taken(self) -> list[tuple[str, frozenset[str]]]:
        """Return the changes since the last call."""
        taken, self.changes = self.changes, []
        return taken

    def attach_one(self, function: str) -> None:
        if self.refusal:
            raise OSError(self.refusal)
        self.note(f"attach {function}")
        self.attached.add(function)

    def detach_one(self, function: str) -> None:
        self.note(f"detach {function}")
        self.attached.discard(function)


class HostDevices(NamedMaps):
    """The map of the host's devices, whose entries are a set here."""

    def __init__(self, others: Others) -> None:
        super().__init__({HOST_DEVICES.name: 6})
        self._others = others
        self._keys: set[bytes] = set()

    @property
    def numbers(self) -> set[int]:
        return {HOST_DEVICES.key.unpack(key)[0] for key in self._keys}

    def write(self, name: str, entries: Mapping[bytes, bytes]) -> None:
        assert name == HOST_DEVICES.name
        if entries:
            self._others.note("write host_devices")
        self._keys |= entries.keys()

    def erase(self, name: str, keys: Iterable[bytes]) -> Collection[bytes]:
        assert name == HOST_DEVICES.name
        erased = self._keys & set(keys)
        self._keys -= erased
        return erased

    def keys(self, name: str, key_bytes: int) -> set[bytes]:
        assert (name, key_bytes) == (HOST_DEVICES.name, HOST_DEVICES.key.size)
        return set(self._keys)


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

    def finish(self, refused: str = "", host_devices: Collection[int] = ()) -> None:
        self.outcome = Outcome(self.wanted, frozenset(host_devices), refused)
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
def others(configuration: ConfigMemory) -> Others:
    return Others(configuration)


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
    assert (hooks.are_used, sees(configuration)) == (True, ON_CGROUPS_ONLY)
    assert others.taken() == [("detach on_probe", ON_CGROUPS_ONLY)]

    hooks.follow(None)
    assert (hooks.are_used, sees(configuration)) == (False, NO_EVENTS)
    assert others.taken() == [("attach on_probe", ON_CGROUPS_ONLY)]
    assert links.is_closed


def test_programs_on_cgroups_serve_until_the_others_can_be_attached_again(
    cgroups: tuple[CgroupHooks, CgroupLinks], others: Others, configuration: ConfigMemory
) -> None:
    hooks, links = cgroups
    hooks.follow({"/a"})
    others.refusal = "no memory"
    with pytest.raises(EngineError, match="no memory"):
        hooks.follow(None)
    assert (hooks.are_used, sees(configuration)) == (True, ON_CGROUPS_ONLY)
    assert not links.is_closed
    others.refusal = ""
    hooks.follow(None)
    assert (hooks.are_used, sees(configuration)) == (False, NO_EVENTS)
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
def host_devices(others: Others) -> HostDevices:
    return HostDevices(others)


@pytest.fixture
def devices(
    configuration: ConfigMemory,
    others: Others,
    host_devices: HostDevices,
    monkeypatch: pytest.MonkeyPatch,
) -> DeviceHooks:
    monkeypatch.setattr(device_hooks, "DeviceLinks", DeviceLinks)
    programs = {"on_pod_ingress": 4, "on_pod_egress": 5}
    return DeviceHooks(
        ON_DEVICES, programs, host_devices, Attachments(others), configuration, host=1
    )


def links_of(hooks: DeviceHooks) -> DeviceLinks:
    assert hooks.links is not None
    return cast(DeviceLinks, hooks.links)


def sees(configuration: ConfigMemory) -> frozenset[str]:
    """Return the events that programs on cgroups and devices see instead of others."""
    settings = configuration.settings
    seen = {
        "segments": settings.sees_segments,
        "arrivals": settings.sees_arrivals,
        "departures": settings.sees_departures,
    }
    return frozenset(event for event, is_seen in seen.items() if is_seen)


def test_tracepoints_serve_until_all_devices_have_programs(
    devices: DeviceHooks, others: Others, configuration: ConfigMemory
) -> None:
    devices.follow(PODS, None)
    assert not devices.check()
    assert sees(configuration) == NO_EVENTS
    links_of(devices).finish(host_devices={2, 3})
    assert devices.check()
    assert sees(configuration) == ON_DEVICES_ONLY
    assert others.attached == {"on_probe"}
    assert others.taken() == [
        ("write host_devices", NO_EVENTS),
        ("detach on_receive", ON_DEVICES_ONLY),
        ("detach on_queue", ON_DEVICES_ONLY),
    ]
    assert not devices.check()
    assert links_of(devices).checks == 2


def test_tracepoints_serve_again_while_a_new_pod_has_no_programs(
    devices: DeviceHooks, others: Others, configuration: ConfigMemory
) -> None:
    devices.follow(PODS, None)
    links_of(devices).finish()
    devices.check()
    others.taken()
    devices.follow(MORE_PODS, None)
    assert sees(configuration) == NO_EVENTS
    assert others.taken() == [
        ("attach on_receive", ON_DEVICES_ONLY),
        ("attach on_queue", ON_DEVICES_ONLY),
    ]
    links_of(devices).finish("device eth0: no memory")
    assert devices.check()
    assert devices.refused == "device eth0: no memory"
    assert not devices.are_used


def test_programs_on_devices_serve_until_the_tracepoints_can_be_attached_again(
    devices: DeviceHooks, others: Others, configuration: ConfigMemory
) -> None:
    devices.follow(PODS, None)
    links_of(devices).finish()
    devices.check()
    others.refusal = "no memory"
    for wanted in (MORE_PODS, None):
        with pytest.raises(EngineError, match="no memory"):
            devices.follow(wanted, None)
        assert (devices.are_used, sees(configuration)) == (True, ON_DEVICES_ONLY)
        assert links_of(devices).wanted == {7}
    others.refusal = ""
    devices.follow(MORE_PODS, None)
    assert (devices.are_used, sees(configuration)) == (False, NO_EVENTS)
    assert others.attached == {"on_probe", "on_receive", "on_queue"}


def test_programs_know_the_present_devices_of_the_host(
    devices: DeviceHooks, host_devices: HostDevices
) -> None:
    devices.follow(PODS, None)
    assert host_devices.numbers == set()
    links_of(devices).finish(host_devices={2, 3})
    devices.check()
    assert host_devices.numbers == {2, 3}
    links_of(devices).finish(host_devices={3, 4})
    devices.check()
    assert host_devices.numbers == {3, 4}


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
