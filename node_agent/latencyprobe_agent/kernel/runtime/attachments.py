"""The attached programs of an object: all of them, but for those that some reason keeps off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

from latencyprobe.process.os_errors import explained
from latencyprobe_agent.kernel.contract import EngineError


class Attachable(Protocol):
    """Programs that are attached one by one."""

    def attach_one(self, function: str) -> None:
        """Attach a program, if it is not. Raises OSError."""

    def detach_one(self, function: str) -> None:
        """Detach a program, and keep it loaded. Idempotent. Raises OSError."""


class OffReason(StrEnum):
    """A reason why programs are not attached."""

    NO_PROCESSES = "no target is chosen by process"
    NO_DRIVERS = "no packet of a target gets to a driver"
    NO_STEERING = "no packet is steered to another CPU"
    ON_CGROUPS = "programs on the targets' cgroups serve instead"
    ON_DEVICES = "programs on devices serve instead"
    STOPPED = "their modules are stopped"
    BETWEEN_SLICES = "no packet is measured until the next time slice"


class Attachments:
    """The programs that are kept off, by reason: no program at first."""

    def __init__(self, programs: Attachable) -> None:
        self._programs = programs
        self._off: dict[OffReason, tuple[str, ...]] = {}

    def keep_off(self, reason: OffReason, functions: Iterable[str]) -> None:
        """Have this reason keep off these programs and no others; detach in their order.

        Raises EngineError if a program that has no other reason cannot be attached again. The
        reason then keeps off what it did before. Raises it too if a program cannot be detached; the
        next call detaches it.
        """
        before, wanted = self._off.get(reason, ()), tuple(functions)
        others = {f for other, off in self._off.items() if other is not reason for f in off}
        with _refusal_of("attach"):
            for function in before:
                if function not in wanted and function not in others:
                    self._programs.attach_one(function)
        self._off[reason] = wanted
        with _refusal_of("detach"):
            for function in wanted:
                self._programs.detach_one(function)


@contextmanager
def _refusal_of(action: str) -> Iterator[None]:
    """Raise EngineError for an OSError, with this action."""
    try:
        yield
    except OSError as error:
        raise EngineError(f"cannot {action} the eBPF programs: {explained(error)}") from error
