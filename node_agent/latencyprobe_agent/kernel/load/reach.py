"""The hooks that this kernel may have, known before compiling; unusable programs are omitted.

Compiling is most of the time that a probe takes to start, and it grows with the code.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Iterator, Mapping

from latencyprobe_agent.kernel.btf import KernelTypes, PerCpuVariable
from latencyprobe_agent.kernel.hooks import EVENTS, Event, Hook, HookKind
from latencyprobe_agent.kernel.load.variables import find_variable

_TYPED_KINDS = frozenset({HookKind.FENTRY, HookKind.FEXIT, HookKind.VARIABLE})


class Reach:
    """The knowledge of hooks that needs no attempt to attach one.

    `types`: for programs typed by BTF; None for others. `without`: hooks to exclude, by name
    (`kprobe/tcp_sendmsg`).
    """

    def __init__(self, types: KernelTypes | None, without: Collection[str] = ()) -> None:
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
        if hook.kind is HookKind.VARIABLE:
            find_variable(hook.symbol, self.types)
        else:
            type_id(hook, self.types)

    def variables(self) -> Mapping[str, PerCpuVariable]:
        """Return the variables that programs may read, by their names in `bpf/`."""
        hooks = (hook for event in EVENTS for hook in event.hooks)
        found: dict[str, PerCpuVariable] = {}
        for hook in (hook for hook in hooks if hook.kind is HookKind.VARIABLE):
            try:
                self.check(hook)
            except LookupError:
                continue
            if self.types is not None:
                found[hook.function] = find_variable(hook.symbol, self.types)
        return found

    def functions(self, events: Iterable[Event], *, first_only: bool) -> frozenset[str]:
        """Return the C functions of the hooks that may be used.

        `first_only`: omit alternatives to a hook that this kernel is known to have. They are needed
        only if the kernel refuses that hook.
        """
        mains = [hook for event in events for hook in self._hooks(event, first_only=first_only)]
        return frozenset(hook.function for main in mains for hook in (main, *main.also))

    def _hooks(self, event: Event, *, first_only: bool) -> Iterator[Hook]:
        for hook in event.hooks:
            try:
                self.check(hook)
            except LookupError:
                continue
            yield hook
            if first_only and self._is_there(hook):
                return

    def _is_there(self, hook: Hook) -> bool:
        """Return True for a tracepoint in BTF. Functions may be inlined, or refused by config."""
        if hook.kind is HookKind.VARIABLE:
            return True
        return self.types is not None and hook.kind is HookKind.TRACEPOINT and not hook.reads


def type_id(hook: Hook, types: KernelTypes) -> int:
    """Return the BTF id of a hook's tracepoint or function. Raises LookupError without one."""
    is_tracepoint = hook.kind is HookKind.TRACEPOINT
    find = types.tracepoint_id if is_tracepoint else types.function_id
    found = find(hook.symbol)
    if found is None:
        what = "tracepoint" if is_tracepoint else "function"
        raise LookupError(f"Linux {platform.release()} has no such {what}")
    return found
