"""Hooks are tried in their order; what is refused costs its event alone and is explained."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.hooks import EVENTS, Event, Hook, HookKind, coverage_of
from latencyprobe_agent.kernel.load.kconfig import KernelConfig
from latencyprobe_agent.kernel.load.loader import Loader
from latencyprobe_agent.kernel.load.reach import TypeIds
from tests.unit.agent.fake_kernel import (
    FENTRY,
    LENGTH,
    ON_DEVICE,
    SEND,
    SOCK_OPS,
    TRACEPOINT,
    Kernel,
    Types,
)

CODE = {hook.function: b"\0" * 8 for hook in SEND.hooks}
FULL_CONFIG = KernelConfig(
    frozenset(
        {
            "CONFIG_BPF_EVENTS",
            "CONFIG_BPF_JIT",
            "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
            "CONFIG_KPROBES",
            "CONFIG_KPROBE_EVENTS",
        }
    )
)


FILES = Event("files", frozenset(Module), (Hook("on_file", "task_file", HookKind.ITERATOR),))


def load(
    types: TypeIds | None,
    *,
    event: Event = SEND,
    without: tuple[str, ...] = (),
    config: KernelConfig = FULL_CONFIG,
    code: Mapping[str, bytes] = CODE,
) -> Loader:
    """What came of one event; its descriptors are closed."""
    loader = Loader(code, types, without=without, config=config)
    loader.attach(event)
    scoped = (*loader.cgroup_programs.values(), *loader.device_programs.values())
    for descriptor in (*loader.programs.values(), *scoped, *loader.links):
        os.close(descriptor)
    return loader


def test_the_first_hook_that_the_kernel_takes_is_the_only_one_in_use(kernel: Kernel) -> None:
    loader = load(Types(("tcp_sendmsg_locked",), ("tcp_sendmsg_locked",)))
    assert loader.attached == {"send": "tp_btf/tcp_sendmsg_locked"}
    assert list(loader.programs) == ["on_send"]
    assert loader.refused == {}
    assert kernel.loaded == [
        ("on_send", libbpf.PROG_TYPE_TRACING, libbpf.ATTACH_TYPE_TRACE_RAW_TP, 7)
    ]
    assert kernel.attached == [("raw_tracepoint", None)]


def test_without_the_tracepoint_the_functions_entry_is_used(kernel: Kernel) -> None:
    loader = load(Types(functions=("tcp_sendmsg_locked",)))
    assert loader.attached == {"send": "fentry/tcp_sendmsg_locked"}
    assert kernel.loaded == [
        ("on_fentry_send", libbpf.PROG_TYPE_TRACING, libbpf.ATTACH_TYPE_TRACE_FENTRY, 8)
    ]


def test_a_kernel_without_btf_gets_a_kprobe(kernel: Kernel) -> None:
    kernel.refuses["raw_tracepoint"] = errno.ENOENT
    loader = load(None)
    assert loader.attached == {"send": "kprobe/tcp_sendmsg_locked"}
    assert kernel.loaded[-1] == ("on_kprobe_send", libbpf.PROG_TYPE_KPROBE, 0, 0)
    assert kernel.attached == [("kprobe", "tcp_sendmsg_locked")]
    assert list(loader.programs) == ["on_kprobe_send"]


def test_the_end_of_a_function_is_hooked_by_fexit_or_kretprobe(kernel: Kernel) -> None:
    hooks = (
        Hook("on_fexit", "inet_csk_accept", HookKind.FEXIT),
        Hook("on_kretprobe", "inet_csk_accept", HookKind.KRETPROBE),
    )
    code = {hook.function: b"\0" * 8 for hook in hooks}
    accept = Event("accept", frozenset(Module), hooks)
    typed = load(Types(functions=("inet_csk_accept",)), event=accept, code=code)
    assert typed.attached == {"accept": "fexit/inet_csk_accept"}
    assert kernel.loaded[-1][2] == libbpf.ATTACH_TYPE_TRACE_FEXIT
    untyped = load(None, event=accept, code=code)
    assert untyped.attached == {"accept": "kretprobe/inet_csk_accept"}
    assert kernel.attached[-1] == ("kretprobe", "inet_csk_accept")


def test_an_iterator_is_bound_by_the_function_that_has_its_arguments(kernel: Kernel) -> None:
    hook = Hook("on_file", "task_file", HookKind.ITERATOR)
    files = Event("files", frozenset(Module), (hook,))
    types = Types(functions=("bpf_iter_task_file",))
    loader = load(types, event=files, code={hook.function: b"\0" * 8})
    assert loader.attached == {"files": "iter/task_file"}
    assert kernel.attached == [("iterator", None)]
    assert kernel.loaded == [
        ("on_file", libbpf.PROG_TYPE_TRACING, libbpf.ATTACH_TYPE_TRACE_ITER, 8)
    ]


def test_an_iterator_needs_btf(kernel: Kernel) -> None:
    hook = Hook("on_file", "task_file", HookKind.ITERATOR)
    files = Event("files", frozenset(Module), (hook,))
    refused = load(None, event=files).refused["files"]
    assert refused.startswith("iter/task_file: requires BTF and Linux 5.11")
    refused = load(Types(), event=files).refused["files"]
    assert refused == "iter/task_file: Linux 6.1.0-13-amd64 has no such iterator"
    assert kernel.loaded == []


def test_a_program_that_reads_a_count_is_not_there_without_it(kernel: Kernel) -> None:
    name = "LINUX_MIB_LISTENOVERFLOWS"
    count = Hook("overflows", name, HookKind.COUNT)
    files = Event(
        "files",
        frozenset(Module),
        (Hook("on_file", "task_file", HookKind.ITERATOR, also=(count,)), TRACEPOINT),
    )
    has = ("bpf_iter_task_file",), ("tcp_sendmsg_locked",)
    code = {**CODE, "on_file": b"\0" * 8}
    whole = load(Types(has[1], has[0], counts=(name,)), event=files, code=code)
    assert whole.attached == {"files": "iter/task_file"}
    old = Types(has[1], has[0], counts=(name,), helpers=())
    assert load(old, event=files).attached == {"files": "tp_btf/tcp_sendmsg_locked"}
    kernel.refuses["on_file"] = errno.E2BIG
    refused = load(Types(has[1], has[0], counts=(name,)), event=files, code=code)
    assert refused.attached == {"files": "tp_btf/tcp_sendmsg_locked"}
    alone = replace(files, hooks=files.hooks[:1])
    assert load(old, event=alone).refused == {
        "files": f"mib/{name}: requires bpf_map_lookup_percpu_elem(), added in Linux 5.19"
    }


def test_hooks_that_belong_together_come_together_or_not_at_all(kernel: Kernel) -> None:
    wait = Hook("on_fexit_wait", "sk_stream_wait_memory", HookKind.FEXIT)
    first = replace(FENTRY, also=(wait,))
    code = {**CODE, wait.function: b"\0" * 8}
    send = Event("send", frozenset(Module), (first, TRACEPOINT))
    types = Types(("tcp_sendmsg_locked",), ("tcp_sendmsg_locked", "sk_stream_wait_memory"))
    whole = load(types, event=send, code=code)
    assert whole.attached == {"send": "fentry/tcp_sendmsg_locked"}
    assert list(whole.programs) == ["on_fentry_send", "on_fexit_wait"]
    assert len(whole.links) == 2
    before = len(os.listdir("/proc/self/fd"))
    kernel.refuses["on_fexit_wait"] = errno.EPERM
    halved = load(types, event=send, code=code)
    assert halved.attached == {"send": "tp_btf/tcp_sendmsg_locked"}
    assert list(halved.programs) == ["on_send"]
    assert len(halved.links) == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_required_function_that_the_kernel_lacks_is_the_reason(kernel: Kernel) -> None:
    wait = Hook("on_fexit_wait", "sk_stream_wait_memory", HookKind.FEXIT)
    send = Event("send", frozenset(Module), (replace(FENTRY, also=(wait,)),))
    refused = load(Types(functions=("tcp_sendmsg_locked",)), event=send, code={}).refused
    assert refused == {
        "send": "fexit/sk_stream_wait_memory: Linux 6.1.0-13-amd64 has no such function"
    }
    assert kernel.loaded == []


def test_a_program_that_is_attached_serves_a_hook_that_requires_it_too(kernel: Kernel) -> None:
    both = replace(TRACEPOINT, also=(LENGTH,))
    loader = Loader(CODE, Types(("tcp_sendmsg_locked", "sock_send_length")), config=FULL_CONFIG)
    for event in (
        Event("length", frozenset(Module), (LENGTH,)),
        Event("send", frozenset(Module), (both,)),
    ):
        loader.attach(event)
    for descriptor in (*loader.programs.values(), *loader.links):
        os.close(descriptor)
    assert list(loader.programs) == ["on_length", "on_send"]
    assert len(loader.links) == 2


def test_a_variable_is_in_use_without_a_program(kernel: Kernel) -> None:
    variable = Hook("preempt_count", "__preempt_count", HookKind.VARIABLE)
    event = Event("context", frozenset(Module), (variable, TRACEPOINT))
    loader = load(Types(("tcp_sendmsg_locked",), variables=("__preempt_count",)), event=event)
    assert loader.attached == {"context": "percpu/__preempt_count"}
    assert (loader.programs, loader.links) == ({}, [])


def test_reasons_quote_the_kernel_hook_by_hook(kernel: Kernel) -> None:
    kernel.refuses["on_fentry_send"] = errno.EPERM
    loader = load(Types(functions=("tcp_sendmsg_locked",)))
    assert loader.attached == {}
    assert loader.refused["send"].split("; ") == [
        "tp_btf/tcp_sendmsg_locked: Linux 6.1.0-13-amd64 has no such tracepoint",
        "fentry/tcp_sendmsg_locked: cannot load on_fentry_send: Operation not permitted (EPERM)",
        (
            "kprobe/tcp_sendmsg_locked: kprobes cannot access per-socket storage when programs "
            "are BTF-typed"
        ),
        "tp_btf/sock_send_length: Linux 6.1.0-13-amd64 has no such tracepoint",
    ]


def test_an_event_that_requires_another_says_why_that_one_is_missing(
    kernel: Kernel,
) -> None:
    read = Event("read", frozenset(Module), (LENGTH, TRACEPOINT))
    queue = Event("queue", frozenset(Module), (FENTRY,), beside=LENGTH.function)
    loader = Loader(CODE, Types(("tcp_sendmsg_locked",)), config=FULL_CONFIG)
    for event in (read, queue):
        loader.attach(event)
    for descriptor in (*loader.programs.values(), *loader.links):
        os.close(descriptor)
    assert loader.attached == {"read": "tp_btf/tcp_sendmsg_locked"}
    assert loader.refused == {
        "queue": "requires tp_btf/sock_send_length: Linux 6.1.0-13-amd64 has no such tracepoint"
    }


def test_an_event_that_requires_a_refused_hook_quotes_the_kernel(kernel: Kernel) -> None:
    kernel.refuses["raw_tracepoint"] = errno.ENOENT
    loader = Loader(CODE, None, config=FULL_CONFIG)
    for event in (
        Event("read", frozenset(Module), (LENGTH,)),
        Event("queue", frozenset(Module), (TRACEPOINT,), beside=LENGTH.function),
    ):
        loader.attach(event)
    assert loader.refused["queue"] == (
        "requires raw_tp/sock_send_length, which failed to attach: "
        "No such file or directory (ENOENT)"
    )


def test_the_option_that_explains_a_refusal_is_named(kernel: Kernel) -> None:
    kernel.refuses["kprobe"] = kernel.refuses["raw_tracepoint"] = errno.ENOENT
    config = KernelConfig(frozenset({"CONFIG_BPF_EVENTS", "CONFIG_KPROBE_EVENTS"}))
    words = load(None, config=config).refused["send"].split("; ")
    assert words == [
        "raw_tp/tcp_sendmsg_locked: cannot attach: No such file or directory (ENOENT)",
        (
            "fentry/tcp_sendmsg_locked: requires BTF and Linux 5.11 or newer "
            "(this kernel: 6.1.0-13-amd64)"
        ),
        (
            "kprobe/tcp_sendmsg_locked: cannot attach: No such file or directory (ENOENT), "
            "CONFIG_KPROBES is not set"
        ),
        "raw_tp/sock_send_length: cannot attach: No such file or directory (ENOENT)",
    ]
    unknown = KernelConfig(None)
    assert "is not set" not in load(None, config=unknown).refused["send"]


def test_hooks_left_out_on_request_make_room_for_the_next(kernel: Kernel) -> None:
    types = Types(("tcp_sendmsg_locked",), ("tcp_sendmsg_locked",))
    loader = load(types, without=("tp_btf/tcp_sendmsg_locked",))
    assert loader.attached == {"send": "fentry/tcp_sendmsg_locked"}


def test_a_program_whose_attach_is_refused_is_let_go(kernel: Kernel) -> None:
    kernel.refuses["raw_tracepoint"] = kernel.refuses["kprobe"] = errno.EINVAL
    before = len(os.listdir("/proc/self/fd"))
    loader = load(None)
    assert loader.programs == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_refused_event_costs_its_stages_alone(kernel: Kernel) -> None:
    hooks = [each for event in EVENTS for hook in event.hooks for each in (hook, *hook.also)]
    code = {hook.function: b"\x00" * 8 for hook in hooks}
    symbols = {hook.symbol for hook in hooks} - {"net_dev_start_xmit"}
    loader = Loader(code, Types(tuple(symbols)), config=FULL_CONFIG)
    for event in EVENTS:
        loader.attach(event)
    for descriptor in (*loader.programs.values(), *loader.links):
        os.close(descriptor)
    coverage = {
        stage.name: stage
        for stage in coverage_of(frozenset(Module), loader.attached, loader.refused)
    }
    assert coverage["tx.qdisc"].state is CoverageState.UNAVAILABLE
    assert coverage["tx.qdisc"].reason == (
        "tp_btf/net_dev_start_xmit: Linux 6.1.0-13-amd64 has no such tracepoint"
    )
    assert coverage["rx.total"].state is coverage["tcp.rtt"].state is CoverageState.ACTIVE


ON_DEVICES = replace(SEND, scoped=ON_DEVICE)
DEVICE_CODE = {**CODE, "on_ingress": b"\0" * 8, "on_egress": b"\0" * 8}
DEVICE_TYPES = Types(("tcp_sendmsg_locked",), ("tcx_link_attach",))


def test_programs_for_devices_are_loaded_beside_the_hook_in_use_and_not_attached(
    kernel: Kernel,
) -> None:
    loader = load(DEVICE_TYPES, event=ON_DEVICES, code=DEVICE_CODE)
    assert loader.attached == {"send": "tp_btf/tcp_sendmsg_locked"}
    assert list(loader.device_programs) == ["on_ingress", "on_egress"]
    assert ("on_egress", libbpf.PROG_TYPE_SCHED_CLS, 0, 0) in kernel.loaded
    assert kernel.attached == [("raw_tracepoint", None)]


def test_programs_for_devices_are_loaded_all_or_none(kernel: Kernel) -> None:
    kernel.refuses["on_egress"] = errno.EPERM
    loader = load(DEVICE_TYPES, event=ON_DEVICES, code=DEVICE_CODE)
    assert (loader.scoped, loader.device_programs) == ({}, {})
    assert loader.remarks == {
        "send": "tcx/ingress is not used: cannot load on_egress: Operation not permitted (EPERM)"
    }


def test_a_kernel_without_links_to_devices_gets_no_program_for_them(kernel: Kernel) -> None:
    loader = load(Types(("tcp_sendmsg_locked",)), event=ON_DEVICES, code=DEVICE_CODE)
    assert (loader.scoped, loader.device_programs, loader.remarks) == ({}, {}, {})
    assert "on_ingress" not in {name for name, *_ in kernel.loaded}


SCOPED = replace(SEND, scoped=SOCK_OPS)
SCOPED_CODE = {**CODE, SOCK_OPS.function: b"\0" * 8}


def test_a_program_for_cgroups_is_loaded_beside_the_hook_in_use_and_not_attached(
    kernel: Kernel,
) -> None:
    loader = load(Types(("tcp_sendmsg_locked",)), event=SCOPED, code=SCOPED_CODE)
    assert loader.attached == {"send": "tp_btf/tcp_sendmsg_locked"}
    assert ("on_sock_ops", libbpf.PROG_TYPE_SOCK_OPS, 0, 0) in kernel.loaded
    assert kernel.attached == [("raw_tracepoint", None)]
    assert list(loader.cgroup_programs) == ["on_sock_ops"]
    assert loader.scoped["send"].instead_of == "on_send"


def test_a_refused_program_for_cgroups_costs_nothing_and_is_explained(kernel: Kernel) -> None:
    kernel.refuses["on_sock_ops"] = errno.EPERM
    loader = load(Types(("tcp_sendmsg_locked",)), event=SCOPED, code=SCOPED_CODE)
    assert loader.attached == {"send": "tp_btf/tcp_sendmsg_locked"}
    assert (loader.scoped, loader.cgroup_programs, loader.refused) == ({}, {}, {})
    assert loader.remarks == {
        "send": "sock_ops/tcp_set_state is not used: cannot load on_sock_ops: Operation not "
        "permitted (EPERM)"
    }


def test_programs_without_types_and_those_left_out_on_request_are_not_loaded_for_cgroups(
    kernel: Kernel,
) -> None:
    for loader in (
        load(None, event=SCOPED, code=SCOPED_CODE),
        load(
            Types(("tcp_sendmsg_locked",)),
            event=SCOPED,
            code=SCOPED_CODE,
            without=("sock_ops/tcp_set_state",),
        ),
    ):
        assert (loader.scoped, loader.remarks) == ({}, {})
    assert "on_sock_ops" not in {name for name, *_ in kernel.loaded}


LAST = replace(
    SCOPED,
    scoped=Hook(
        "on_name4",
        "getpeername4",
        HookKind.CGROUP_ADDRESS,
        also=(Hook("on_name6", "getpeername6", HookKind.CGROUP_ADDRESS),),
    ),
    is_scoped_last=True,
)
LAST_CODE = {**CODE, "on_name4": b"\0" * 8, "on_name6": b"\0" * 8}


def test_programs_for_cgroups_that_come_last_are_loaded_only_without_another_hook(
    kernel: Kernel,
) -> None:
    loader = load(Types(("tcp_sendmsg_locked",)), event=LAST, code=LAST_CODE)
    assert loader.attached == {"send": "tp_btf/tcp_sendmsg_locked"}
    assert (loader.scoped, loader.cgroup_programs) == ({}, {})
    loader = load(Types(), event=LAST, code=LAST_CODE)
    assert list(loader.refused) == ["send"]
    assert loader.scoped["send"].instead_of == ""
    assert list(loader.cgroup_programs) == ["on_name4", "on_name6"]
    kind = libbpf.PROG_TYPE_CGROUP_SOCK_ADDR
    assert kernel.loaded[-2:] == [
        ("on_name4", kind, libbpf.ATTACH_TYPE_GETPEERNAME4, 0),
        ("on_name6", kind, libbpf.ATTACH_TYPE_GETPEERNAME6, 0),
    ]


def test_an_iterator_is_bound_to_the_function_that_has_its_arguments(kernel: Kernel) -> None:
    types = Types(functions=("bpf_iter_task_file",))
    loader = load(types, event=FILES, code={"on_file": b"\0" * 8})
    assert loader.attached == {"files": "iter/task_file"}
    assert kernel.attached == [("iterator", None)]
    assert kernel.loaded == [
        ("on_file", libbpf.PROG_TYPE_TRACING, libbpf.ATTACH_TYPE_TRACE_ITER, 8)
    ]


def test_an_iterator_over_a_map_gets_the_map(kernel: Kernel) -> None:
    hook = Hook("on_state", "bpf_sk_storage_map", HookKind.ITERATOR, over="socket_states")
    types = Types(functions=("bpf_iter_bpf_sk_storage_map",))
    loader = Loader({"on_state": b"\0" * 8}, types, maps={"others": 3, "socket_states": 4})
    loader.attach(Event("states", frozenset(Module), (hook,)))
    assert loader.attached == {"states": "iter/bpf_sk_storage_map"}
    assert kernel.attached == [("iterator", "map 4")]


def test_an_iterator_requires_btf(kernel: Kernel) -> None:
    refused = load(None, event=FILES).refused["files"]
    assert refused.startswith("iter/task_file: requires BTF and Linux 5.11")
    assert kernel.loaded == []
