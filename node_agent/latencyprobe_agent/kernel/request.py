"""The request for an object and its answer: the messages between agent and compiler process."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Request:
    """The programs to have. `typed`: type programs by BTF if the kernel can (bpf/include/common.h).

    `host_netns`: inode number of the node's own network namespace, which matters for loading only.
    `without`: hooks to exclude, by their names in the coverage; for tests of the others.
    `trace`: include the reporting of single packets; see bpf/include/trace.h. `udp`: include the
    programs that only datagrams need. `complete`: compile the alternatives to hooks that this
    kernel has, too: it has refused one of those hooks.
    """

    modules: tuple[str, ...]
    host_netns: int
    typed: bool = True
    without: tuple[str, ...] = ()
    trace: bool = False
    udp: bool = True
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The message beside the encoded object. `error`: why there is none."""

    error: str = ""
