"""The request for an object and its answer: what agent and compiler process say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

MESSAGE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Request:
    """What to build. `typed`: bind programs by BTF if this kernel can; see bpf/include/common.h.

    `without`: hooks by their name in coverage that are not to be used, for tests of the others.
    `trace`: with what tells of packets one by one; see bpf/include/trace.h.
    """

    modules: tuple[str, ...]
    host_netns: int
    typed: bool = True
    without: tuple[str, ...] = ()
    trace: bool = False


@dataclass(slots=True)
class Answer:
    """What was built.

    `maps` and `programs` name the descriptors, in this order: all maps, all programs, all links.
    `attached`: event to hook in use; `refused`: event to the kernel's answer.
    `drop_reasons`: the names of the kernel's drop reasons, by their numbers.
    """

    maps: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    attached: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    drop_reasons: list[str] = field(default_factory=list)
    error: str = ""
