"""Only what a kernel can use is compiled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.hooks import EVENTS, Event, Hook, HookKind, events_of
from latencyprobe_agent.kernel.load.reach import Reach, TypeIds
from tests.unit.agent.fake_kernel import SEND, SOCK_OPS, Types

TRACEPOINTS = tuple(
    {each.symbol for event in EVENTS for hook in event.hooks for each in (hook, *hook.also)}
)
MODERN = Types(TRACEPOINTS, TRACEPOINTS)
ITERATOR = "bpf_iter_task_file"
COUNTS = ("LINUX_MIB_LISTENOVERFLOWS",)
WITH_COUNT = Types(TRACEPOINTS, (*TRACEPOINTS, ITERATOR), counts=COUNTS)
CONTEXT = next(event for event in EVENTS if event.name == "softirq context")
SOFTIRQS = ("softirq_entry", "softirq_exit")


def functions(
    types: TypeIds | None,
    *,
    event: Event = SEND,
    without: tuple[str, ...] = (),
    first_only: bool = True,
) -> set[str]:
    return set(Reach(types, without).functions((event,), first_only=first_only))


def test_behind_a_tracepoint_that_is_there_nothing_is_compiled() -> None:
    types = Types(("tcp_sendmsg_locked", "sock_send_length"), ("tcp_sendmsg_locked",))
    assert functions(types) == {"on_send"}
    assert functions(types, first_only=False) == {"on_send", "on_fentry_send", "on_length"}


def test_a_function_may_be_refused_so_what_stands_behind_it_is_compiled_too() -> None:
    types = Types(("sock_send_length",), ("tcp_sendmsg_locked",))
    assert functions(types) == {"on_fentry_send", "on_length"}


def test_a_hook_left_out_on_request_is_not_compiled() -> None:
    types = Types(("tcp_sendmsg_locked",), ("tcp_sendmsg_locked",))
    assert functions(types, without=("tp_btf/tcp_sendmsg_locked",)) == {"on_fentry_send"}


def test_without_btf_everything_that_needs_no_types_is_compiled() -> None:
    assert functions(None) == {"on_send", "on_kprobe_send", "on_length"}


def test_code_that_belongs_to_a_hook_is_compiled_with_it() -> None:
    wait = Hook("on_wait", "sk_stream_wait_memory", HookKind.FEXIT)
    send = Hook("on_fentry_send", "tcp_sendmsg_locked", HookKind.FENTRY, also=(wait,))
    event = Event("send", frozenset(Module), (send,))
    types = Types(functions=("tcp_sendmsg_locked", "sk_stream_wait_memory"))
    assert functions(types, event=event) == {"on_fentry_send", "on_wait"}


def test_a_tracepoint_with_too_few_fields_on_some_kernels_has_its_next_one_beside_it() -> None:
    drop = next(event for event in EVENTS if event.name == "drop")
    assert functions(Types(("kfree_skb",)), event=drop) == {"on_kfree_skb", "on_kfree_sent"}


def test_behind_a_variable_that_programs_may_read_nothing_is_compiled() -> None:
    for symbol in ("__preempt_count", "pcpu_hot.preempt_count"):
        types = Types(SOFTIRQS, variables=(symbol,))
        assert functions(types, event=CONTEXT) == {"preempt_count"}
        assert Reach(types).reads((CONTEXT,), HookKind.VARIABLE) == {"preempt_count": symbol}


def test_of_two_variables_that_programs_may_read_they_read_the_one_that_is_reported() -> None:
    symbols = ("irq_stat.__softirq_pending", "__softirq_pending")
    raised = next(event for event in EVENTS if event.name == "NET_RX raise")
    reach = Reach(Types(variables=symbols))
    assert reach.reads((raised,), HookKind.VARIABLE) == {"softirq_pending": "__softirq_pending"}


@pytest.mark.parametrize(
    ("types", "without"),
    [
        pytest.param(Types(SOFTIRQS), (), id="there is none"),
        pytest.param(
            Types(SOFTIRQS, variables=("__preempt_count",)),
            ("percpu/__preempt_count",),
            id="excluded",
        ),
        pytest.param(
            Types(SOFTIRQS, variables=("__preempt_count",), is_realtime=True), (), id="PREEMPT_RT"
        ),
        pytest.param(None, (), id="no BTF"),
    ],
)
def test_without_the_variable_programs_note_it(
    types: TypeIds | None, without: tuple[str, ...]
) -> None:
    assert functions(types, event=CONTEXT, without=without) == {
        "on_softirq_entry",
        "on_softirq_exit",
    }
    assert Reach(types, without).reads((CONTEXT,), HookKind.VARIABLE) == {}


@pytest.mark.parametrize(
    ("types", "without", "expected"),
    [
        pytest.param(WITH_COUNT, (), {"on_listener", "on_state_of_any_socket"}, id="counts"),
        pytest.param(MODERN, (), {"on_sk_data_ready", "on_inet_sock_set_state"}, id="no count"),
        pytest.param(
            Types(TRACEPOINTS, (*TRACEPOINTS, ITERATOR), counts=COUNTS, helpers=()),
            (),
            {"on_sk_data_ready", "on_inet_sock_set_state"},
            id="before 5.19",
        ),
        pytest.param(
            WITH_COUNT,
            ("iter/task_file",),
            {"on_sk_data_ready", "on_state_of_any_socket"},
            id="excluded",
        ),
        pytest.param(None, (), {"on_sk_data_ready", "on_inet_sock_set_state"}, id="no BTF"),
    ],
)
def test_listeners_are_read_where_the_kernels_count_can_be_found(
    types: TypeIds | None, without: tuple[str, ...], expected: set[str]
) -> None:
    events = [event for event in EVENTS if event.name in ("listener", "state change")]
    reach = Reach(types, without)
    on_cgroups = {"on_sock_ops", "on_connect4", "on_connect6"}
    programs = reach.functions(events, first_only=True) - {"listen_overflows", *on_cgroups}
    assert programs == expected
    is_counted = types is WITH_COUNT
    assert reach.reads(events, HookKind.COUNT) == (
        {"listen_overflows": COUNTS[0]} if is_counted else {}
    )


def test_without_a_probe_for_udp_its_programs_are_not_compiled() -> None:
    udp = {"on_sock_recv_length", "on_consume_skb", "on_sk_data_ready"}
    reach = Reach(MODERN)
    with_udp = reach.functions(events_of({Module.RX}), first_only=False)
    without_udp = reach.functions(events_of({Module.RX}, udp=False), first_only=False)
    assert with_udp - without_udp == udp
    assert without_udp < with_udp


def test_a_program_for_cgroups_is_compiled_beside_the_first_choice() -> None:
    event = replace(SEND, scoped=SOCK_OPS)
    types = Types(("tcp_sendmsg_locked",))
    assert functions(types, event=event) == {"on_send", "on_sock_ops"}
    assert functions(types, event=event, without=("sock_ops/tcp_set_state",)) == {"on_send"}
    assert "on_sock_ops" not in functions(None, event=event)
