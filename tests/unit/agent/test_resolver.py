"""Targets that fail for a while, on a clock that the test turns."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import ContainerSelector, NetnsSelector, PidSelector, Selector
from latencyprobe_agent.targets.cgroups import Hierarchy, SubtreeTracker
from latencyprobe_agent.targets.containers import ContainerFinder
from latencyprobe_agent.targets.facts import TargetFacts, failed
from latencyprobe_agent.targets.netns import NetnsTracker
from latencyprobe_agent.targets.processes import Processes, ProcessTracker
from latencyprobe_agent.targets.resolver import Resolver
from tests.patience import patient
from tests.unit.agent.running import Running
from tests.unit.agent.scripted import Clock
from tests.unit.agent.states import probe, state

TARGET = NetnsSelector("/run/netns/blue")
ATTACHED = TargetFacts(TargetState.ATTACHED, netns=frozenset({7}))
TRANSIENT = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO]
Step = TargetFacts | int


class ScriptedTracker:
    """Takes one step a poll; the last one again and again. A number is the errno of a failure."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)

    def poll(self) -> TargetFacts:
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, int):
            raise OSError(step, os.strerror(step), "cgroup.procs")
        return step


class Tracked:
    """A resolver with one scripted target."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: Step) -> None:
        self.clock = Clock()
        self.resolver = Resolver(clock=self.clock)
        tracker = ScriptedTracker(*steps)
        monkeypatch.setattr(self.resolver, "_tracker_of", lambda _: tracker)
        self.resolver.track([TARGET])

    @property
    def facts(self) -> TargetFacts:
        return self.resolver.facts_of(TARGET)

    def wait(self) -> float:
        """Let the time pass until the next poll; return how long that was."""
        assert self.resolver.next_poll is not None
        delay_s = self.resolver.next_poll - self.clock.now
        self.clock.now += delay_s
        self.resolver.refresh()
        return delay_s


@pytest.mark.parametrize("steps", [(failed("no such"),) * 3, (errno.EMFILE,) * 3, (errno.EPERM,)])
def test_a_target_that_failed_is_attached_once_its_cause_has_passed(
    monkeypatch: pytest.MonkeyPatch, steps: tuple[Step, ...]
) -> None:
    tracked = Tracked(monkeypatch, *steps, ATTACHED)
    for _ in steps:
        assert tracked.facts.state is TargetState.FAILED
        tracked.wait()
    assert tracked.facts == ATTACHED


@pytest.mark.parametrize("code", TRANSIENT)
def test_a_transient_error_keeps_the_facts_of_a_resolved_target(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    later = TargetFacts(TargetState.ATTACHED, netns=frozenset({8}))
    tracked = Tracked(monkeypatch, ATTACHED, code, code, code, later)
    for _ in range(3):
        tracked.wait()
        assert tracked.facts == ATTACHED
    tracked.wait()
    assert tracked.facts == later


def test_another_error_of_a_resolved_target_is_its_failure_until_it_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracked = Tracked(monkeypatch, ATTACHED, errno.EPERM, errno.EMFILE, ATTACHED)
    tracked.wait()
    assert tracked.facts.state is TargetState.FAILED
    assert "Operation not permitted" in tracked.facts.message
    tracked.wait()
    assert "Too many open files" in tracked.facts.message
    tracked.wait()
    assert tracked.facts == ATTACHED


@pytest.mark.parametrize("step", [failed("no such"), errno.EMFILE])
def test_the_attempts_become_seldom_and_are_never_given_up(
    monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    tracked = Tracked(monkeypatch, step)
    delays = [tracked.wait() for _ in range(20)]
    assert delays[0] <= 1
    assert all(30 <= delay <= 60 for delay in delays[-5:])
    assert len(set(delays)) == len(delays)


def test_after_a_success_the_attempts_are_frequent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tracked = Tracked(monkeypatch, ATTACHED, *(errno.EIO,) * 8, ATTACHED, errno.EIO)
    for _ in range(9):
        tracked.wait()
    tracked.wait()
    assert tracked.wait() <= 1


def test_a_target_with_very_many_processes_is_polled_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (
        TargetFacts(TargetState.ATTACHED, netns=frozenset({7}), pids=tuple(range(number)))
        for number in (1000, 30_000)
    )
    tracked = Tracked(monkeypatch, few, few, few, few, few, few, many)
    assert [tracked.wait() for _ in range(4)][-1] <= 1
    assert max(tracked.wait() for _ in range(4)) >= 10


def test_an_outage_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracked = Tracked(monkeypatch, ATTACHED, errno.EMFILE)
    for _ in range(5):
        tracked.wait()
    assert len([one for one in caplog.records if "Too many open files" in one.message]) == 1


def test_a_process_that_gets_the_number_of_a_refused_one_is_not_measured(tmp_path: Path) -> None:
    tracker = ProcessTracker(Processes(tmp_path), 42)
    assert tracker.poll().message == "no such process: 42"
    (tmp_path / "42/task").mkdir(parents=True)
    (tmp_path / "42/status").write_text("Tgid:\t42\n")
    (tmp_path / "42/stat").write_text("42 (b) S 1" + " 0" * 4 + " 0" + " 0" * 12 + " 777 0 0")
    assert tracker.poll().message == "no such process: 42"


async def test_a_target_that_comes_late_is_reported_without_another_apply(
    running: Running, tmp_path: Path
) -> None:
    path = tmp_path / "netns"
    desired = state(probe())
    desired.probes[0].targets[0].netns_path = os.fsencode(path)
    result = await running.stub.Apply(desired)
    assert result.probes[0].targets[0].state == pb.TargetStatus.FAILED
    path.symlink_to("/proc/self/ns/net")
    async for report in running.stub.WatchReports(
        iter([pb.WatchReportsRequest()]), timeout=patient(60)
    ):
        states = {t.status.state for one in report.probes for t in one.targets}
        if states == {pb.TargetStatus.ATTACHED}:
            break
    assert running.engine.slots


def _failing(call: Callable[..., object], code: int, ending: str) -> Callable[..., object]:
    """The call, except on paths that end so."""

    def fails(path: object, *args: object, **options: object) -> object:
        if str(path).endswith(ending):
            raise OSError(code, os.strerror(code), str(path))
        return call(path, *args, **options)

    return fails


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ENOENT])
@pytest.mark.parametrize("call", ["open", "stat"])
def test_a_nested_cgroup_that_is_removed_during_a_poll_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    nested = tmp_path / "a/nested"
    nested.mkdir(parents=True)
    for directory in (tmp_path / "a", nested):
        (directory / "cgroup.procs").write_text("")
    tracker = SubtreeTracker(Hierarchy(str(tmp_path)), Processes(), str(tmp_path / "a"))
    tracker.poll()
    ending = "nested/cgroup.procs" if call == "open" else "nested"
    monkeypatch.setattr(os, call, _failing(getattr(os, call), code, ending))
    assert tracker.poll().state is TargetState.PENDING


def test_a_cgroup_that_ends_between_opening_and_reading_has_no_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.procs").write_text("1\n")

    def gone(descriptor: int, size: int) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", gone)
        pids = Hierarchy(str(tmp_path)).pids(str(tmp_path))
    assert pids == []


@pytest.mark.parametrize("code", [errno.ESRCH, errno.ENOENT])
@pytest.mark.parametrize("call", ["open", "listdir", "stat"])
def test_a_process_that_exits_during_a_poll_is_gone(
    monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    tracker = ProcessTracker(Processes(), os.getpid())
    assert tracker.poll().state is TargetState.ATTACHED
    with monkeypatch.context() as patched:
        ending = {"open": "/stat", "listdir": "/task", "stat": "/ns/net"}[call]
        patched.setattr(os, call, _failing(getattr(os, call), code, ending))
        found = tracker.poll().state
    assert found is (TargetState.ATTACHED if call == "listdir" else TargetState.GONE)


@pytest.mark.parametrize("code", TRANSIENT)
@pytest.mark.parametrize(
    ("selector", "call", "ending"),
    [
        (PidSelector(os.getpid()), "open", "/stat"),
        (PidSelector(os.getpid()), "listdir", "/task"),
        (PidSelector(os.getpid()), "stat", "/ns/net"),
        (NetnsSelector("/proc/self/ns/net"), "open", "/ns/net"),
        (NetnsSelector("/proc/self/ns/net"), "stat", "/ns/net"),
    ],
)
def test_every_call_that_may_fail_for_a_while_keeps_the_target_attached(
    monkeypatch: pytest.MonkeyPatch, selector: Selector, call: str, ending: str, code: int
) -> None:
    clock = Clock()
    resolver = Resolver(clock=clock)
    resolver.track([selector])
    before = resolver.facts_of(selector)
    assert before.state is TargetState.ATTACHED
    with monkeypatch.context() as patched:
        patched.setattr(os, call, _failing(getattr(os, call), code, ending))
        clock.now += 10
        resolver.refresh()
        during = resolver.facts_of(selector)
    assert during == before


def test_the_agents_own_namespace_that_cannot_be_read_now_is_no_final_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = ProcessTracker(Processes(), os.getpid())
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", _failing(os.stat, errno.ENOMEM, "/self/ns/pid"))
        with pytest.raises(OSError, match="Cannot allocate memory"):
            tracker.poll()
    assert tracker.poll().state is TargetState.ATTACHED


def test_a_namespace_whose_file_is_removed_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "netns"
    path.symlink_to("/proc/self/ns/net")
    tracker = NetnsTracker(str(path))
    tracker.poll()
    path.unlink()
    assert tracker.poll().state is TargetState.GONE


def test_a_survey_that_failed_in_the_middle_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubepods/besteffort").mkdir(parents=True)
    finder = ContainerFinder(Hierarchy(str(tmp_path)), clock=Clock())
    container = ContainerSelector("0" * 32, "ab" * 32)
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", _failing(os.scandir, errno.EMFILE, "kubepods"))
        with pytest.raises(OSError, match="Too many open files"):
            finder.find(container)
    (tmp_path / "kubepods/besteffort" / f"pod{'0' * 32}" / container.container_id).mkdir(
        parents=True
    )
    assert finder.find(container) is not None


def test_a_survey_that_fails_leaves_the_directories_that_hold_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubepods/besteffort").mkdir(parents=True)
    clock = Clock()
    finder = ContainerFinder(Hierarchy(str(tmp_path)), clock=clock)
    finder.find_pod("0" * 32)
    parents = finder.pod_parents
    assert len(parents) == 2
    clock.now += 60
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", _failing(os.scandir, errno.EMFILE, "kubepods"))
        with pytest.raises(OSError, match="Too many open files"):
            finder.find_pod("0" * 32)
        assert finder.pod_parents == parents
