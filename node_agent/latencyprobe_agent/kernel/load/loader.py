"""Loads compiled programs and attaches them, hook by hook in the order of preference.

What the kernel refuses costs the event that it was for, and the reasons are kept in its own words.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection, Mapping

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.btf import KernelTypes
from latencyprobe_agent.kernel.hooks import Event, Hook, HookKind
from latencyprobe_agent.kernel.load import perf
from latencyprobe_agent.kernel.load.kconfig import KernelConfig
from latencyprobe_agent.kernel.load.reach import Reach, type_id

_TRACING_ATTACH_TYPES: Mapping[HookKind, int] = {
    HookKind.TRACEPOINT: libbpf.ATTACH_TYPE_TRACE_RAW_TP,
    HookKind.FENTRY: libbpf.ATTACH_TYPE_TRACE_FENTRY,
    HookKind.FEXIT: libbpf.ATTACH_TYPE_TRACE_FEXIT,
}
# What a kernel must be configured with for a hook of this kind; named where it is not.
_OPTIONS: Mapping[HookKind, tuple[str, ...]] = {
    HookKind.TRACEPOINT: ("CONFIG_BPF_EVENTS",),
    HookKind.FENTRY: ("CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS", "CONFIG_BPF_JIT"),
    HookKind.FEXIT: ("CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS", "CONFIG_BPF_JIT"),
    HookKind.KPROBE: ("CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS", "CONFIG_BPF_EVENTS"),
    HookKind.KRETPROBE: ("CONFIG_KRETPROBES", "CONFIG_KPROBE_EVENTS", "CONFIG_BPF_EVENTS"),
}


class Loader:
    """Takes one event after another.

    `code`: compiled programs by their function. `types`: for programs bound by BTF, None for those
    that are not. `without`: hooks by name (`kprobe/tcp_sendmsg`) that are not to be tried.
    """

    def __init__(
        self,
        code: Mapping[str, bytes],
        types: KernelTypes | None,
        *,
        without: Collection[str] = (),
        config: KernelConfig | None = None,
    ) -> None:
        self._code = code
        self._types = types
        self._reach = Reach(types, without)
        self._config = config if config is not None else KernelConfig.of_running_kernel()
        self.programs: dict[str, int] = {}
        self.links: list[int] = []
        self.attached: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._answers: dict[str, str] = {}  # by function: why its hook is not to be had

    def attach(self, event: Event) -> None:
        """Use the first of the event's hooks that the kernel takes."""
        if event.beside and event.beside not in self.programs:
            missing = self._answers.get(event.beside, event.beside)
            self.refused[event.name] = f"of no use without {missing}"
            return
        reasons: list[str] = []
        for hook in event.hooks:
            # a program that is attached may serve another event, too
            if hook.function in self.programs or self._attach_with_others(hook, reasons):
                self.attached[event.name] = self._reach.name(hook)
                return
        self.refused[event.name] = "; ".join(reasons)

    def detach(self) -> None:
        """Undo all that was attached."""
        for descriptor in (*self.links, *self.programs.values()):
            os.close(descriptor)
        self.links, self.programs = [], {}

    def _attach_with_others(self, hook: Hook, reasons: list[str]) -> bool:
        """Attach the hook and those it can't do without, or none of them."""
        attached: list[Hook] = []
        for each in (hook, *hook.also):
            try:
                self._attach_hook(each)
            except (libbpf.KernelRefusedError, LookupError) as error:
                answer = f"{self._reach.name(each)}: {self._words(each, error)}"
                self._answers[hook.function] = answer
                reasons.append(answer)
                _complain(f"{each.function}: {error}")
                for undone in reversed(attached):
                    os.close(self.links.pop())
                    os.close(self.programs.pop(undone.function))
                return False
            attached.append(each)
        return True

    def _words(self, hook: Hook, error: Exception) -> str:
        """The kernel's answer, with the option it was built without where that explains it."""
        if isinstance(error, libbpf.KernelRefusedError):
            missing = [option for option in _OPTIONS[hook.kind] if self._config.lacks(option)]
            return ", ".join((error.answer, *(f"{option} is not set" for option in missing)))
        return str(error.args[0])

    def _attach_hook(self, hook: Hook) -> None:
        self._reach.check(hook)
        code = self._code.get(hook.function)
        if code is None:
            raise LookupError(
                f"{hook.reads}, this is {platform.release()}"
                if hook.reads
                else f"{hook.function} was not compiled"
            )
        program = self._load(hook, code)
        try:
            self.links.append(self._link(hook, program))
        except libbpf.KernelRefusedError:
            os.close(program)
            raise
        self.programs[hook.function] = program

    def _load(self, hook: Hook, code: bytes) -> int:
        if hook.is_kprobe:
            return libbpf.load_program(hook.function, code, program_type=libbpf.PROG_TYPE_KPROBE)
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

    def _link(self, hook: Hook, program: int) -> int:
        if hook.is_kprobe:
            returning = hook.kind is HookKind.KRETPROBE
            return perf.attach_kprobe(program, hook.symbol, returning=returning)
        return libbpf.attach_raw_tracepoint(program, None if self._types else hook.symbol)


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
