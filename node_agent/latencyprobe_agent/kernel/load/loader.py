"""Loads compiled programs and attaches them, hook by hook in the order of preference.

If the kernel refuses all hooks of an event, the event is missing. The reasons quote the kernel.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.hooks import Event, Hook, HookKind
from latencyprobe_agent.kernel.load import perf
from latencyprobe_agent.kernel.load.kconfig import KernelConfig
from latencyprobe_agent.kernel.load.reach import Reach, TypeIds, type_id

_TRACING_ATTACH_TYPES: Mapping[HookKind, int] = {
    HookKind.TRACEPOINT: libbpf.ATTACH_TYPE_TRACE_RAW_TP,
    HookKind.FENTRY: libbpf.ATTACH_TYPE_TRACE_FENTRY,
    HookKind.FEXIT: libbpf.ATTACH_TYPE_TRACE_FEXIT,
    HookKind.ITERATOR: libbpf.ATTACH_TYPE_TRACE_ITER,
}
# The options that a hook of this kind requires; a refusal names those that are not set.
_OPTIONS: Mapping[HookKind, tuple[str, ...]] = {
    HookKind.TRACEPOINT: ("CONFIG_BPF_EVENTS",),
    HookKind.FENTRY: ("CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS", "CONFIG_BPF_JIT"),
    HookKind.FEXIT: ("CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS", "CONFIG_BPF_JIT"),
    HookKind.KPROBE: ("CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS", "CONFIG_BPF_EVENTS"),
    HookKind.KRETPROBE: ("CONFIG_KRETPROBES", "CONFIG_KPROBE_EVENTS", "CONFIG_BPF_EVENTS"),
    HookKind.ITERATOR: ("CONFIG_BPF_EVENTS",),
}
_SCOPED_TYPES: Mapping[HookKind, int] = {
    HookKind.SOCK_OPS: libbpf.PROG_TYPE_SOCK_OPS,
    HookKind.CGROUP_PACKET: libbpf.PROG_TYPE_CGROUP_SKB,
    HookKind.CGROUP_ADDRESS: libbpf.PROG_TYPE_CGROUP_SOCK_ADDR,
    HookKind.DEVICE: libbpf.PROG_TYPE_SCHED_CLS,
}
# By the hook's symbol; programs of the other types on cgroups are of one kind each.
ADDRESS_ATTACH_TYPES: Mapping[str, int] = {
    "connect4": libbpf.ATTACH_TYPE_CONNECT4,
    "connect6": libbpf.ATTACH_TYPE_CONNECT6,
    "getpeername4": libbpf.ATTACH_TYPE_GETPEERNAME4,
    "getpeername6": libbpf.ATTACH_TYPE_GETPEERNAME6,
}
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class ScopedHook:
    """An event's hook on cgroups or devices.

    `instead_of`: the function of its other hook; empty if the kernel has none.
    """

    hook: Hook
    instead_of: str = ""


class Loader:
    """The programs and links of one object, attached event by event.

    `code`: linked programs by their function. `types`: for programs typed by BTF, None for others.
    `without`: hooks to exclude, by name (`kprobe/tcp_sendmsg`). `messages`: the kernel's answers
    with the verifier's last lines. `maps`: the maps that iterators visit, by name.
    Large, because each kind of answer is an attribute.
    """

    def __init__(
        self,
        code: Mapping[str, bytes],
        types: TypeIds | None,
        *,
        without: Collection[str] = (),
        config: KernelConfig | None = None,
        maps: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._code = code
        self._maps = maps
        self._types = types
        self._reach = Reach(types, without)
        self._given_config = config
        self.programs: dict[str, int] = {}
        self.hooks: dict[str, Hook] = {}  # by function, of `programs`
        self.links: list[int] = []
        self.scoped: dict[str, ScopedHook] = {}  # by event
        self.cgroup_programs: dict[str, int] = {}  # of `scoped`, by function; not attached
        self.device_programs: dict[str, int] = {}  # the same
        self.remarks: dict[str, str] = {}  # event to the reason why it is not in `scoped`
        self.attached: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.messages: list[str] = []
        self._failures: dict[str, str] = {}  # by function: its hook, and why that failed
        self._ahead: dict[str, Future[int]] = {}  # by function: its program, or the refusal

    def load_ahead(self, events: Iterable[Event], executor: Executor) -> None:
        """Begin to load the first choices of these events side by side; `discard` those unused.

        The verifier takes nearly all of the time to load, and lets several CPUs in at once:
        bpf_check(), kernel/bpf/verifier.c, where CAP_BPF is there.
        """
        hooks = {
            each.function: each
            for event in events
            for hook in (*self._first_choice(event), *self._scoped_ahead(event))
            for each in (hook, *hook.also)
            if each.function in self._code
        }
        # The longest first: no CPU waits long for another.
        for function in sorted(hooks, key=lambda name: len(self._code[name]), reverse=True):
            self._ahead[function] = executor.submit(
                self._load_now, hooks[function], self._code[function]
            )

    def discard(self) -> None:
        """Close the programs that were loaded ahead and are not used."""
        ahead, self._ahead = self._ahead, {}
        for loading in ahead.values():
            if loading.exception() is None:
                os.close(loading.result())

    def attach(self, event: Event) -> None:
        """Use the first of the event's hooks that the kernel accepts.

        Raises KernelRefusedError if there is no memory, or no descriptor.
        """
        if event.beside and event.beside not in self.programs:
            missing = self._failures.get(event.beside, event.beside)
            self.refused[event.name] = f"requires {missing}"
            return
        reasons: list[str] = []
        for hook in event.hooks:
            # an attached program may serve another event too
            if hook.function in self.programs or self._attach_with_others(hook, reasons):
                self.attached[event.name] = self._reach.name(hook)
                if not event.is_scoped_last:
                    self._load_scoped(event, hook.function)
                return
        self.refused[event.name] = "; ".join(reasons)
        if event.is_scoped_last:
            self._load_scoped(event)

    def detach(self) -> None:
        """Detach all programs, and discard the others."""
        self.discard()
        scoped = (*self.cgroup_programs.values(), *self.device_programs.values())
        for descriptor in (*self.links, *self.programs.values(), *scoped):
            os.close(descriptor)
        self.links, self.programs, self.hooks = [], {}, {}
        self.scoped, self.cgroup_programs, self.device_programs = {}, {}, {}

    def _attach_with_others(self, hook: Hook, reasons: list[str]) -> bool:
        """Attach the hook and those that it requires; attach nothing if one is refused."""
        wanted = [each for each in (hook, *hook.also) if each.function not in self.programs]
        attached: list[Hook] = []
        each = hook
        try:
            for each in wanted:
                self._reach.check(each)
            for each in wanted:
                if not each.is_read:
                    self._attach_hook(each)
                    attached.append(each)
        except (libbpf.KernelRefusedError, LookupError) as error:
            if is_shortage(error):
                raise
            name, reason = self._reach.name(each), self._reason(each, error)
            self._failures[hook.function] = _failure(name, reason)
            reasons.append(f"{name}: {reason}")
            self.messages.append(f"{each.function}: {error}")
            for undone in reversed(attached):
                os.close(self.links.pop())
                os.close(self.programs.pop(undone.function))
                del self.hooks[undone.function]
            return False
        return True

    @cached_property
    def _config(self) -> KernelConfig:
        """The kernel's configuration, read only where something was refused."""
        given = self._given_config
        return given if given is not None else KernelConfig.of_running_kernel()

    def _reason(self, hook: Hook, error: Exception) -> str:
        """Return the kernel's answer, with the options that are not set and may explain it."""
        if isinstance(error, libbpf.KernelRefusedError):
            missing = [option for option in _OPTIONS[hook.kind] if self._config.lacks(option)]
            return ", ".join((error.answer, *(f"{option} is not set" for option in missing)))
        return str(error.args[0])

    def _attach_hook(self, hook: Hook) -> None:
        code = self._code.get(hook.function)
        if code is None:
            raise LookupError(
                f"{hook.reads} (this kernel: {platform.release()})"
                if hook.reads
                else f"{hook.function} was not compiled"
            )
        program = self._load(hook, code)
        try:
            typed = self._types is not None
            self.links.append(link(hook, program, typed=typed, maps=self._maps))
        except libbpf.KernelRefusedError:
            os.close(program)
            raise
        self.programs[hook.function], self.hooks[hook.function] = program, hook

    def _scoped_ahead(self, event: Event) -> Iterable[Hook]:
        return () if event.is_scoped_last else self._reach.scoped(event)

    def _load_scoped(self, event: Event, instead_of: str = "") -> None:
        """Load the event's scoped programs beside the hook in use. A refusal is no error."""
        for hook in self._reach.scoped(event):
            try:
                self.load_scoped(event.name, ScopedHook(hook, instead_of))
            except (libbpf.KernelRefusedError, LookupError) as error:
                if is_shortage(error):
                    raise
                reason = error.answer if isinstance(error, libbpf.KernelRefusedError) else ""
                if reason:
                    self.remarks[event.name] = f"{self._reach.name(hook)} is not used: {reason}"
                self.messages.append(f"{hook.function}: {error}")

    def load_scoped(self, event: str, scoped: ScopedHook) -> None:
        """Load programs for cgroups or devices. Raises KernelRefusedError and LookupError."""
        is_of_device = scoped.hook.kind is HookKind.DEVICE
        programs = self.device_programs if is_of_device else self.cgroup_programs
        loaded: dict[str, int] = {}
        try:
            for hook in (scoped.hook, *scoped.hook.also):
                loaded[hook.function] = self._load(hook, self._code[hook.function])
        except BaseException:
            for descriptor in loaded.values():
                os.close(descriptor)
            raise
        programs.update(loaded)
        self.scoped[event] = scoped

    def load(self, hook: Hook) -> None:
        """Load the program of a hook without attaching it. Raises KernelRefusedError."""
        program = self._load(hook, self._code[hook.function])
        self.programs[hook.function], self.hooks[hook.function] = program, hook

    def _first_choice(self, event: Event) -> Iterator[Hook]:
        """Yield the first hook of an event that may be there, if any."""
        for hook in event.hooks:
            with suppress(LookupError):
                self._reach.check_all(hook)
                yield hook
                return

    def _load(self, hook: Hook, code: bytes) -> int:
        ahead = self._ahead.pop(hook.function, None)
        return ahead.result() if ahead is not None else self._load_now(hook, code)

    def _load_now(self, hook: Hook, code: bytes) -> int:
        if hook.is_kprobe:
            return libbpf.load_program(hook.function, code, program_type=libbpf.PROG_TYPE_KPROBE)
        if hook.kind in _SCOPED_TYPES:
            return libbpf.load_program(
                hook.function,
                code,
                program_type=_SCOPED_TYPES[hook.kind],
                attach_type=ADDRESS_ATTACH_TYPES.get(hook.symbol, 0),
            )
        if self._types is not None:
            return libbpf.load_program(
                hook.function,
                code,
                program_type=libbpf.PROG_TYPE_TRACING,
                attach_type=_TRACING_ATTACH_TYPES[hook.kind],
                attach_btf_id=type_id(hook, self._types),
            )
        return libbpf.load_program(
            hook.function, code, program_type=libbpf.PROG_TYPE_RAW_TRACEPOINT
        )


def link(hook: Hook, program: int, *, typed: bool, maps: Mapping[str, int]) -> int:
    """Attach a loaded program; return the descriptor that keeps it attached.

    `typed`: it is typed by BTF. `maps`: those that iterators visit. Raises KernelRefusedError.
    """
    if hook.is_kprobe:
        returning = hook.kind is HookKind.KRETPROBE
        return perf.attach_kprobe(program, hook.symbol, returning=returning)
    if hook.kind is HookKind.ITERATOR:
        return libbpf.attach_iterator(program, maps[hook.over] if hook.over else None)
    return libbpf.attach_raw_tracepoint(program, None if typed else hook.symbol)


def is_shortage(error: Exception) -> bool:
    """Return True if the kernel lacked memory or descriptors, which says nothing of a hook."""
    return isinstance(error, libbpf.KernelRefusedError) and error.errno in _SHORTAGES


def _failure(hook: str, reason: str) -> str:
    """Return the hook with its reason; the relative clause is for "cannot attach: …"."""
    action = reason.removeprefix("cannot ")
    return f"{hook}, which failed to {action}" if action != reason else f"{hook}: {reason}"
