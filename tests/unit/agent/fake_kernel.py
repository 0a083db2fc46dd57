"""A kernel that records what it is asked to create, load and attach."""

from __future__ import annotations

import os

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.btf import KernelTypes, PerCpuVariable
from latencyprobe_agent.kernel.build import counts
from latencyprobe_agent.kernel.build.variables import fault_of
from latencyprobe_agent.kernel.hooks import Event, Hook, HookKind

TRACEPOINT = Hook("on_send", "tcp_sendmsg_locked")
FENTRY = Hook("on_fentry_send", "tcp_sendmsg_locked", HookKind.FENTRY)
KPROBE = Hook("on_kprobe_send", "tcp_sendmsg_locked", HookKind.KPROBE)
LENGTH = Hook("on_length", "sock_send_length")
SOCK_OPS = Hook("on_sock_ops", "tcp_set_state", HookKind.SOCK_OPS)
ON_DEVICE = Hook(
    "on_ingress", "ingress", HookKind.DEVICE, also=(Hook("on_egress", "egress", HookKind.DEVICE),)
)
SEND = Event("send", frozenset(Module), (TRACEPOINT, FENTRY, KPROBE, LENGTH))


class Types(KernelTypes):
    """A kernel that has these tracepoints, functions, variables and counts, and lacks a field."""

    RUN_QUEUE, CPU_NUMBER = 4096, 128

    def __init__(
        self,
        tracepoints: tuple[str, ...] = (),
        functions: tuple[str, ...] = (),
        variables: tuple[str, ...] = (),
        *,
        counts: tuple[str, ...] = (),
        helpers: tuple[str, ...] = ("BPF_FUNC_map_lookup_percpu_elem",),
        has_run_queues: bool = True,
        is_realtime: bool = False,
        lacks: tuple[str, str] = ("", ""),
    ) -> None:
        self._ids = {f"btf_trace_{name}": 7 for name in tracepoints} | dict.fromkeys(functions, 8)
        self._variables = {name: PerCpuVariable(16, 4) for name in variables}
        if has_run_queues:
            self._variables["runqueues"] = PerCpuVariable(self.RUN_QUEUE, 3584)
            self._variables["cpu_number"] = PerCpuVariable(self.CPU_NUMBER, 4)
        self._counts = dict.fromkeys(counts, 23)
        self._helpers = dict.fromkeys(helpers, 195)
        self._lacks = {lacks} if is_realtime else {lacks, ("task_struct", "softirq_disable_cnt")}

    def tracepoint_id(self, tracepoint: str) -> int | None:
        return self._ids.get(f"btf_trace_{tracepoint}")

    def function_id(self, function: str) -> int | None:
        return self._ids.get(function)

    def per_cpu_variable(self, name: str) -> PerCpuVariable | None:
        return self._variables.get(name)

    def variable_fault(self, variable: str) -> str | None:
        if variable in self._counts:
            return counts.fault_of(variable, self)
        return fault_of(variable, self)

    def enumerators(self, enum: str) -> dict[str, int]:
        return self._helpers if enum == "bpf_func_id" else {}

    def field_offset(self, struct_name: str, field: str) -> int | None:
        return 312 if self.has_field(struct_name, field) else None

    def unnamed_enumerator(self, name: str) -> int | None:
        return self._counts.get(name)

    def has_field(self, struct_name: str, field: str) -> bool:
        return (struct_name, field) not in self._lacks


class Kernel:
    """What it was asked for; `refuses` says which maps, programs and attach types."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, int, int, int]] = []
        self.attached: list[tuple[str, str | None]] = []
        self.maps: list[str] = []
        self.refuses: dict[str, int] = {}

    def create_map(self, name: str, **_: object) -> int:
        if name in self.refuses:
            raise libbpf.KernelRefusedError(self.refuses[name], f"create map {name}")
        self.maps.append(name)
        return os.open(os.devnull, os.O_RDONLY)

    def load_program(
        self,
        name: str,
        instructions: bytes,
        *,
        program_type: int,
        attach_type: int = 0,
        attach_btf_id: int = 0,
    ) -> int:
        if name in self.refuses:
            raise libbpf.KernelRefusedError(self.refuses[name], f"load {name}")
        self.loaded.append((name, program_type, attach_type, attach_btf_id))
        return os.open(os.devnull, os.O_RDONLY)

    def attach_raw_tracepoint(self, program_fd: int, tracepoint: str | None) -> int:
        return self._attach("raw_tracepoint", tracepoint)

    def attach_iterator(self, program_fd: int, map_fd: int | None = None) -> int:
        return self._attach("iterator", None if map_fd is None else f"map {map_fd}")

    def attach_kprobe(self, program_fd: int, function: str, *, returning: bool) -> int:
        return self._attach("kretprobe" if returning else "kprobe", function)

    def _attach(self, kind: str, what: str | None) -> int:
        if kind in self.refuses:
            raise libbpf.KernelRefusedError(self.refuses[kind], "attach")
        self.attached.append((kind, what))
        return os.open(os.devnull, os.O_RDONLY)
