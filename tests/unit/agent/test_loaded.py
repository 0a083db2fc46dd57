"""A loaded object that cannot be set up: nothing of it stays, here without a kernel."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import cast
from unittest.mock import Mock

import pytest

from latencyprobe_agent.kernel import abi
from latencyprobe_agent.kernel.load.provision import Provided
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime import loaded, memories
from latencyprobe_agent.kernel.runtime.configuration import ProgramSettings
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject
from latencyprobe_agent.kernel.runtime.memories import Memories
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps

MAPPED = (
    "StatisticsMemory",
    "ConfigMemory",
    "NodeStatisticsMemory",
    "MappedArray",
    "CgroupWaits",
    "PendingMemory",
)
REFUSAL = OSError(errno.ENOMEM, "no memory")


def all_maps() -> Mapping[str, int]:
    """Return a number for each map that an object may have."""
    names = [each.name for each in vars(abi).values() if isinstance(each, abi.Map)]
    return {name: number for number, name in enumerate([*names, abi.TRACE_RING])}


@pytest.mark.parametrize("refused", MAPPED)
def test_no_ring_is_made_for_an_object_whose_memory_cannot_be_mapped(
    refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Mock()
    for name in (*MAPPED, "PacketRing"):
        monkeypatch.setattr(memories, name, getattr(parts, name))
    part = getattr(parts, refused)
    part.side_effect = part.of_map.side_effect = REFUSAL
    with pytest.raises(OSError, match="no memory"):
        Memories(NamedMaps(all_maps()), (), lambda _: None)
    parts.PacketRing.assert_not_called()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The parts of an object that have something to close, and the calls to all of them."""
    made = Mock()
    made.programs.maps = {"configuration": 3}
    made.programs.hooks = made.programs.attached = made.programs.scoped = {}
    made.programs.programs = made.programs.cgroup_programs = made.programs.device_programs = {}
    made.memories.pending = None
    made.memories.configuration.settings = ProgramSettings()
    monkeypatch.setattr(loaded, "Memories", lambda *_: made.memories)
    monkeypatch.setattr(loaded, "CgroupHooks", lambda *_: made.cgroups)
    monkeypatch.setattr(loaded, "DeviceHooks", lambda *_, **__: made.devices)
    return made


def object_of(parts: Mock) -> LoadedObject:
    provided = Mock(programs=parts.programs, drop_reasons=())
    return LoadedObject(Request((), host_netns=1), cast(Provided, provided))


def closed(parts: Mock) -> list[str]:
    """Return the parts that were closed, in their order."""
    return [call[0].removesuffix(".close") for call in parts.mock_calls if "close" in call[0]]


def test_an_object_whose_programs_cannot_be_used_leaves_nothing_mapped_or_loaded(
    parts: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "CgroupHooks", Mock(side_effect=REFUSAL))
    with pytest.raises(OSError, match="no memory"):
        object_of(parts)
    assert closed(parts) == ["memories", "programs"]


def test_an_object_closes_what_uses_its_programs_before_them(parts: Mock) -> None:
    object_of(parts).close()
    assert closed(parts) == ["cgroups", "devices", "memories", "programs"]
