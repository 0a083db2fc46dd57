"""Which hooks this kernel may have, known before anything is compiled: what can't be used is not.

Compiling is most of the time that a probe takes to start, and it grows with the code.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Iterator

from latencyprobe_agent.kernel.btf import KernelTypes
from latencyprobe_agent.kernel.hooks import Event, Hook, HookKind


class Reach:
    """What is known of hooks without asking the kernel to take one.

    `types`: for programs bound by BTF, None for those that are not. `without`: hooks by name
    (`kprobe/tcp_sendmsg`) that are not to be tried.
    """

    def __init__(self, types: KernelTypes | None, without: Collection[str] = ()) -> None:
        self.types = types
        self._without = frozenset(without)

    def name(self, hook: Hook) -> str:
        """As coverage shows it."""
        return hook.name(typed=self.types is not None)

    def check(self, hook: Hook) -> None:
        """Raises LookupError with the reason why a hook can't be used, where that is known."""
        if self.name(hook) in self._without:
            raise LookupError("not to be used, on request")
        if hook.is_kprobe and self.types is not None:
            raise LookupError("can't reach what is kept with sockets bound by BTF")
        if hook.kind in (HookKind.FENTRY, HookKind.FEXIT) and self.types is None:
            raise LookupError(f"needs BTF and Linux 5.11, this is {platform.release()}")
        if self.types is not None:
            type_id(hook, self.types)

    def functions(self, events: Iterable[Event], *, first_only: bool) -> frozenset[str]:
        """The C functions of the hooks that may be used.

        `first_only`: without those that stand behind a hook that this kernel is known to have, and
        so are needed only if it refuses that one.
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
        """A tracepoint that BTF shows. Functions may be refused: inlined, or by configuration."""
        return self.types is not None and hook.kind is HookKind.TRACEPOINT and not hook.reads


def type_id(hook: Hook, types: KernelTypes) -> int:
    """The BTF id of what a hook is bound to. Raises LookupError where the kernel has no such."""
    is_tracepoint = hook.kind is HookKind.TRACEPOINT
    find = types.tracepoint_id if is_tracepoint else types.function_id
    found = find(hook.symbol)
    if found is None:
        what = "tracepoint" if is_tracepoint else "function"
        raise LookupError(f"Linux {platform.release()} has no such {what}")
    return found
