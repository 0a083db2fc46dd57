"""What each stage and counter stands on, and what is told where the kernel lacks it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import BY_NAME, Module, counters_of
from latencyprobe_agent import cli
from latencyprobe_agent.kernel.hooks import COUNTER_NEEDS, EVENTS, STAGE_NEEDS, coverage_of
from latencyprobe_agent.main import Settings

MODULES = frozenset(Module)
ALL = {event.name: f"tp_btf/{event.hooks[0].symbol}" for event in EVENTS}


def test_every_stage_and_counter_stands_on_events_that_its_modules_have() -> None:
    assert STAGE_NEEDS.keys() == BY_NAME.keys()
    assert set(COUNTER_NEEDS) == set(counters_of(MODULES))
    for needs in (*STAGE_NEEDS.values(), *COUNTER_NEEDS.values()):
        assert {*needs.requires, *needs.profits} <= ALL.keys()


def test_a_node_that_lacks_nothing_has_no_remark_on_counters() -> None:
    covered = coverage_of(MODULES, ALL, {})
    assert [row.name for row in covered] == list(BY_NAME)
    assert {row.state for row in covered} == {CoverageState.ACTIVE}


def test_a_node_without_a_probe_for_udp_lacks_nothing_and_says_so() -> None:
    attached = {name: hook for name, hook in ALL.items() if not name.startswith("UDP ")}
    covered = {row.name: row for row in coverage_of(MODULES, attached, {}, udp=False)}
    of_udp = covered.pop("udp.response")
    assert (of_udp.state, of_udp.reason) == (CoverageState.IDLE, "no probe asks for UDP")
    assert {row.state for row in covered.values()} == {CoverageState.ACTIVE}
    noted = {name for name, row in covered.items() if row.reason}
    assert noted == {name for name in BY_NAME if name.startswith("rx.")}
    assert {covered[name].reason for name in noted} == {"no probe asks for UDP"}
    refused = {"UDP read": "no hook", "UDP queue": "no hook"}
    wanted = {row.name: row for row in coverage_of(MODULES, attached, refused)}
    assert {wanted[name].state for name in noted} == {CoverageState.PARTIAL}


def test_the_stages_that_datagrams_do_not_have_say_so_where_a_probe_asks_for_udp() -> None:
    for udp, stages in ((True, {"tx.socket", "tx.stack"}), (False, set())):
        covered = coverage_of(frozenset({Module.TX}), ALL, {}, udp=udp)
        noted = {row.name for row in covered if "absent for datagrams" in row.reason}
        assert noted == stages
        assert {row.state for row in covered if row.name in stages} <= {CoverageState.ACTIVE}


def test_a_node_whose_targets_are_no_processes_lacks_nothing_without_their_forks() -> None:
    attached = {name: hook for name, hook in ALL.items() if name not in ("fork", "exit")}
    refused = {"fork": "refused", "exit": "refused"}
    covered = coverage_of(MODULES, attached, refused, udp=False, processes=False)
    assert {row.state for row in covered} == {CoverageState.ACTIVE, CoverageState.IDLE}
    assert not any("refused" in row.reason for row in covered)
    with_processes = {row.name: row for row in coverage_of(MODULES, attached, refused)}
    assert with_processes["tx.total"].state is CoverageState.PARTIAL
    assert with_processes["tx.total"].reason.endswith("are not followed: refused")


def test_a_counter_that_lacks_its_event_says_why() -> None:
    attached = {
        name: hook for name, hook in ALL.items() if name not in ("listener", "receive drop")
    }
    refused = {"listener": "no tracepoint", "receive drop": "names no socket"}
    *stages, accept, receive, drops = coverage_of(MODULES, attached, refused)
    assert {row.state for row in stages} == {CoverageState.ACTIVE}
    assert (accept.name, accept.state) == ("acceptQueueOverflows", CoverageState.UNAVAILABLE)
    assert accept.reason == "no tracepoint"
    assert (receive.name, receive.state) == ("receiveQueueOverflows", CoverageState.PARTIAL)
    assert receive.reason == "only datagrams are counted: names no socket"
    assert (drops.name, drops.state) == ("drops", CoverageState.PARTIAL)


def test_a_kernel_whose_listeners_are_not_read_says_what_else_it_counts() -> None:
    attached = {name: hook for name, hook in ALL.items() if name != "listener reading"}
    attached["listener"] = "raw_tp/sk_data_ready"
    covered = coverage_of(MODULES, attached, {"listener reading": "iter/task_file: refused"})
    (gap,) = (row for row in covered if row.state is not CoverageState.ACTIVE)
    assert (gap.name, gap.state) == ("acceptQueueOverflows", CoverageState.PARTIAL)
    assert gap.reason == (
        "counted when the next connection arrives, with other packets that the listener dropped: "
        "iter/task_file: refused"
    )


def test_counters_of_a_module_that_no_probe_asks_for_are_not_reported() -> None:
    covered = coverage_of(frozenset({Module.RX}), {}, {})
    assert "drops" not in {row.name for row in covered}
    assert "headOfLineSegments" in {row.name for row in covered}


def test_a_better_hook_that_is_not_in_use_is_explained_and_the_stage_lacks_nothing() -> None:
    remarks = {"state change": "sock_ops/tcp_set_state is not used: why"}
    covered = {row.name: row for row in coverage_of(MODULES, ALL, {}, remarks=remarks)}
    assert {row.state for row in covered.values()} == {CoverageState.ACTIVE}
    noted = {name for name, row in covered.items() if "sock_ops" in row.reason}
    assert noted == {
        *("tcp.connect", "tcp.handshake", "tcp.accept", "tcp.recovery"),
        *("app.response", "peer.response", "app.transfer", "peer.transfer"),
    }
    assert {covered[name].reason for name in noted} == set(remarks.values())


def test_the_part_of_an_event_that_a_hook_does_not_report_is_missing_in_its_stage() -> None:
    attached = {**ALL, "accept": "cgroup_sock_addr/getpeername4"}
    covered = coverage_of(MODULES, attached, {})
    (gap,) = (row for row in covered if row.state is not CoverageState.ACTIVE)
    assert (gap.name, gap.state) == ("tcp.accept", CoverageState.PARTIAL)
    assert "without room for an address" in gap.reason


@pytest.mark.parametrize(
    ("arguments", "variable", "on_cgroups", "on_devices"),
    [
        ((), None, True, False),
        (("--hooks=tracepoints",), None, False, False),
        (("--hooks=scoped",), None, True, True),
        ((), "tracepoints", False, False),
        ((), "scoped", True, True),
        (("--hooks=best",), "tracepoints", True, False),
    ],
)
def test_hooks_on_cgroups_and_devices_are_an_option_of_the_agent(
    arguments: tuple[str, ...],
    variable: str | None,
    on_cgroups: bool,
    on_devices: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LATENCYPROBE_HOOKS", raising=False)
    if variable is not None:
        monkeypatch.setenv("LATENCYPROBE_HOOKS", variable)
    started: list[Settings] = []
    monkeypatch.setattr(cli, "_start", lambda settings, **_: started.append(settings))
    result = CliRunner().invoke(cli.agent_command, ["--socket=/s", *arguments])
    assert result.exit_code == 0, result.output
    (settings,) = started
    assert (settings.uses_cgroup_hooks, settings.uses_device_hooks) == (on_cgroups, on_devices)


def test_coverage_says_how_arrivals_on_devices_differ() -> None:
    attached = {**ALL, "receive": "tcx/ingress"}
    covered = {row.name: row for row in coverage_of(MODULES, attached, {})}
    assert covered["rx.host"].state is CoverageState.ACTIVE
    assert "segments count from their transmission" in covered["rx.host"].reason
    assert covered["rx.softirq"].reason.startswith("absent for packets of this node's pods")
    assert covered["rx.stack"].reason == ""
    assert covered["udp.response"].state is CoverageState.ACTIVE


def test_queries_are_not_measured_by_departures_on_devices() -> None:
    covered = {row.name: row for row in coverage_of(MODULES, {**ALL, "queue": "tcx/egress"}, {})}
    assert covered["tx.total"].state is CoverageState.ACTIVE
    assert covered["udp.response"].state is CoverageState.UNAVAILABLE
    assert "on devices" in covered["udp.response"].reason


def test_drops_of_the_host_need_the_module_tx() -> None:
    modules = frozenset({Module.TCP})
    covered = {row.name: row for row in coverage_of(modules, ALL, {})}
    assert covered["drops"].state is CoverageState.PARTIAL
    assert covered["drops"].reason.endswith("are not counted without module tx")
