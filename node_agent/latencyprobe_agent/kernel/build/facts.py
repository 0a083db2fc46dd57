"""Facts of the running kernel: macros for the C source, and numbers of its types for loading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from latencyprobe_agent.kernel.btf import KernelTypes
from latencyprobe_agent.kernel.build import counts, variables
from latencyprobe_agent.kernel.build.drops import drop_macros
from latencyprobe_agent.kernel.compiled import TypeNumbers
from latencyprobe_agent.kernel.hooks import Event, Hook, HookKind
from latencyprobe_agent.kernel.load.reach import Reach


def fact_macros(
    events: Iterable[Event], reach: Reach, types: KernelTypes | None, reasons: list[str]
) -> Mapping[str, str]:
    """Return the macros of its drop reasons, variables and counts that these events need."""
    return {**drop_macros(reasons), **_read_macros(events, reach, types)}


def _read_macros(
    events: Iterable[Event], reach: Reach, types: KernelTypes | None
) -> Mapping[str, str]:
    """Return what programs need to read the variables and counts of these events."""
    if types is None:
        return {}
    read = {
        name: variables.find_variable(symbol, types)
        for name, symbol in reach.reads(events, HookKind.VARIABLE).items()
    }
    counted = {
        name: counts.find_count(symbol, types)
        for name, symbol in reach.reads(events, HookKind.COUNT).items()
    }
    return {**variables.macros(read, types), **counts.macros(counted)}


def type_numbers(events: Iterable[Event], types: KernelTypes) -> TypeNumbers:
    """Return what the kernel's types say of all hooks of these events."""
    tracepoints: dict[str, int] = {}
    functions: dict[str, int] = {}
    faults: dict[str, str | None] = {}
    for hook in _hooks_of(events):
        if hook.is_read:
            is_count = hook.kind is HookKind.COUNT
            fault_of = counts.fault_of if is_count else variables.fault_of
            faults[hook.symbol] = fault_of(hook.symbol, types)
            continue
        if hook.kind is HookKind.TRACEPOINT:
            found, numbers = types.tracepoint_id(hook.symbol), tracepoints
        else:
            found, numbers = types.function_id(hook.typed_function), functions
        if found is not None:
            numbers[hook.typed_function] = found
    return TypeNumbers(tracepoints, functions, faults)


def _hooks_of(events: Iterable[Event]) -> Iterator[Hook]:
    for event in events:
        scoped = (event.scoped,) if event.scoped is not None else ()
        for hook in (*event.hooks, *scoped):
            yield from (hook, *hook.also)
