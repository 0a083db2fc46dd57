"""The request for an object and its answer: the messages between agent and compiler process."""

from __future__ import annotations

from dataclasses import dataclass, field

MESSAGE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Request:
    """The object to build. `typed`: type programs by BTF if the kernel can (bpf/include/common.h).

    `without`: hooks to exclude, by their names in the coverage; for tests of the others.
    `trace`: include the reporting of single packets; see bpf/include/trace.h. `udp`: include the
    programs that only datagrams need.
    """

    modules: tuple[str, ...]
    host_netns: int
    typed: bool = True
    without: tuple[str, ...] = ()
    trace: bool = False
    udp: bool = True


@dataclass(slots=True)
class Answer:
    """The description of an object that was built, or the error.

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
