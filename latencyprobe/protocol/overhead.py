"""The cost of the programs as the protocol carries it. Texts of a peer become printable here."""

from __future__ import annotations

from collections.abc import Iterable

from latencyprobe.domain.overhead import HookOverhead, ProgramsOverhead
from latencyprobe.domain.stages import Module
from latencyprobe.printable import printable
from latencyprobe.protocol.v1 import node_agent_pb2 as pb


def overhead_to_proto(overhead: ProgramsOverhead) -> pb.Overhead:
    """Convert the cost of the programs to a message."""
    return pb.Overhead(
        cpu_percent=overhead.cpu_percent or 0,
        measured=overhead.cpu_percent is not None,
        stopped_modules=overhead.stopped_modules,
        dispatch_ns=overhead.dispatch_ns,
        dispatch_reason=overhead.dispatch_reason,
        hooks=[
            pb.HookOverhead(hook=each.hook, cpu_percent=each.cpu_percent, permanent=each.permanent)
            for each in overhead.hooks
        ],
    )


def overhead_from_proto(message: pb.Overhead) -> ProgramsOverhead:
    """Read the cost of the programs from a message."""
    return ProgramsOverhead(
        message.cpu_percent if message.measured else None,
        message.dispatch_ns,
        printable(message.dispatch_reason),
        stopped_modules(message.stopped_modules),
        tuple(
            HookOverhead(printable(each.hook), each.cpu_percent, each.permanent)
            for each in message.hooks
        ),
    )


def stopped_modules(names: Iterable[str]) -> tuple[Module, ...]:
    """Return the known ones of these modules, each once."""
    known = set(names)
    return tuple(module for module in Module if module in known)
