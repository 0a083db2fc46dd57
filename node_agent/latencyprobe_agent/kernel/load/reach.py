"""The hooks that this kernel may have, known before compiling; unusable programs are omitted.

Compiling is most of the time that a probe takes to start, and it grows with the code.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

from latencyprobe_agent.kernel.hooks import ON_CGROUPS, Event, Hook, HookKind

_TYPED_KINDS = frozenset(
    {
        *(HookKind.FENTRY, HookKind.FEXIT, HookKind.ITERATOR),
        *(HookKind.VARIABLE, HookKind.COUNT, HookKind.DEVICE),
        *ON_CGROUPS,
    }
)
_NOUNS = {
    HookKind.TRACEPOINT: "tracepoint",
    HookKind.ITERATOR: "iterator",
    HookKind.DEVICE: "link to devices",
}


class TypeIds(Protocol):
    """The BTF ids of a kernel, and its variables and counts of each CPU, by name."""

    def tracepoint_id(self, tracepoint: str) -> int | None:
        """Return the id of a tracepoint; None if the kernel does not have it."""

    def function_id(self, function: str) -> int | None:
        """Return the id of a function; None if the kernel does not have it."""

    def variable_fault(self, variable: str) -> str | None:
        """Return the reason why programs cannot read a variable or count; None if they can."""


class Reach:
    """The knowledge of hooks that needs no attempt to attach one.

    `types`: for programs typed by BTF; None for others. `without`: hooks to exclude, by name
    (`kprobe/tcp_sendmsg`).
    """

    def __init__(self, types: TypeIds | None, without: Collection[str] = ()) -> None:
        self.types = types
        self._without = frozenset(without)

    def name(self, hook: Hook) -> str:
        """Return the hook's name in the coverage."""
        return hook.name(typed=self.types is not None)

    def check(self, hook: Hook) -> None:
        """Raise LookupError with the reason if a hook is known to be unusable."""
        if self.name(hook) in self._without:
            raise LookupError("excluded by request")
        if hook.is_kprobe and self.types is not None:
            raise LookupError(
                "kprobes cannot access per-socket storage when programs are BTF-typed"
            )
        if hook.kind in _TYPED_KINDS and self.types is None:
            raise LookupError(
                f"requires BTF and Linux 5.11 or newer (this kernel: {platform.release()})"
            )
        if self.types is None:
            return
        if hook.is_read:
            fault = self.types.variable_fault(hook.symbol)
            if fault is not None:
                raise LookupError(fault)
        elif hook.kind not in ON_CGROUPS:
            type_id(hook, self.types)

    def check_all(self, hook: Hook) -> None:
        """Raise LookupError if a hook, or one that it requires, is known to be unusable."""
        for each in (hook, *hook.also):
            self.check(each)

    def reads(self, events: Iterable[Event], kind: HookKind) -> Mapping[str, str]:
        """Return the kernel's names of variables or counts, by their names in `bpf/`."""
        found: dict[str, str] = {}
        for event in events:
            for main in self._hooks(event, first_only=False):
                for hook in (main, *main.also):
                    if hook.kind is kind:
                        found.setdefault(hook.function, hook.symbol)
        return found

    def functions(self, events: Iterable[Event], *, first_only: bool) -> frozenset[str]:
        """Return the C functions of the hooks that may be used.

        `first_only`: omit alternatives to a hook that this kernel is known to have. They are needed
        only if the kernel refuses that hook.
        """
        events = tuple(events)
        mains = [hook for event in events for hook in self._hooks(event, first_only=first_only)]
        scoped = [hook for event in events for hook in self.scoped(event)]
        return frozenset(hook.function for main in mains + scoped for hook in (main, *main.also))

    def scoped(self, event: Event) -> Iterator[Hook]:
        """Yield an event's hook on cgroups or devices, if it may be used."""
        if event.scoped is not None:
            with suppress(LookupError):
                self.check(event.scoped)
                yield event.scoped

    def _hooks(self, event: Event, *, first_only: bool) -> Iterator[Hook]:
        for hook in event.hooks:
            try:
                self.check_all(hook)
            except LookupError:
                continue
            yield hook
            if first_only and self._is_there(hook):
                return

    def _is_there(self, hook: Hook) -> bool:
        """Return True for a hook that is in BTF.

        Functions may be inlined, or refused by config. Iterators over maps were seen refused.
        """
        if hook.is_read or hook.kind is HookKind.ITERATOR:
            return not hook.over
        return self.types is not None and hook.kind is HookKind.TRACEPOINT and not hook.reads


def type_id(hook: Hook, types: TypeIds) -> int:
    """Return the BTF id of a hook's tracepoint, iterator or function.

    Raises LookupError without one.
    """
    is_tracepoint = hook.kind is HookKind.TRACEPOINT
    find = types.tracepoint_id if is_tracepoint else types.function_id
    found = find(hook.typed_function)
    if found is None:
        what = _NOUNS.get(hook.kind, "function")
        raise LookupError(f"Linux {platform.release()} has no such {what}")
    return found
