"""Summaries over real gRPC: one an interval, with the pods that the client wants in full."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.measurement import Measurement, NodeMeasurement, NodeStage
from latencyprobe.domain.summary import PodChoice
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.summaries import choice_to_proto, pod_from_proto, summary_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import ContainerSelector, Selector
from latencyprobe_agent.evidence.known_cgroups import KnownCgroups
from latencyprobe_agent.serving import wishes
from latencyprobe_agent.serving.reports import ReportPump
from latencyprobe_agent.targets.cgroups import Hierarchy
from latencyprobe_agent.targets.facts import TargetFacts
from latencyprobe_agent.targets.resolver import Resolver
from tests.patience import patient
from tests.unit.agent.running import Running, next_reading, until
from tests.unit.agent.scripted import samples
from tests.unit.agent.states import probe, seconds, state

UIDS = [f"0b7e3f0c-1d2e-4f5a-8b9c-{n:012x}" for n in range(9)]
A, B, C = UIDS[:3]
EVERY_POD = PodChoice(100)
NO_POD = PodChoice(0)


class Containers:
    """Containers that run until the test ends them; each has a network namespace of its own."""

    def __init__(self) -> None:
        self.gone: set[Selector] = set()
        self.failed: set[Selector] = set()

    def tracker_of(self, selector: Selector) -> _Tracker:
        return _Tracker(self, selector)


class _Tracker:
    def __init__(self, containers: Containers, selector: Selector) -> None:
        self._containers, self._selector = containers, selector

    def poll(self) -> TargetFacts:
        assert isinstance(self._selector, ContainerSelector)
        number = int(self._selector.container_id, 16)
        facts = TargetFacts(TargetState.ATTACHED, pids=(number,), cgroup_ids=frozenset({number}))
        if self._selector in self._containers.failed:
            return TargetFacts(TargetState.FAILED, "no cgroup")
        return facts.gone("has exited") if self._selector in self._containers.gone else facts


@pytest.fixture(autouse=True)
def containers(monkeypatch: pytest.MonkeyPatch) -> Containers:
    found = Containers()
    monkeypatch.setattr(Resolver, "_tracker_of", lambda _, selector: found.tracker_of(selector))
    return found


def container(uid: str, number: int = 0) -> pb.Target:
    """A container of a pod, by the pod's UID."""
    index = UIDS.index(uid)
    return pb.Target(
        id=f"{uid}/{number}",
        container=pb.Container(
            pod_uid=uid,
            container_id=f"containerd://{16 * (index + 1) + number:064x}",
            pod_name=f"pod-{index}",
            container_name=f"c{number}",
        ),
    )


def windowed(
    *targets: pb.Target,
    name: str = "p",
    interval_s: float = 0.1,
    window_s: float = 600,
    max_pods: int = 20,
    in_full: PodChoice = EVERY_POD,
) -> pb.Probe:
    """A probe that the agent keeps a window of."""
    wanted = probe(name, interval_s=interval_s)
    del wanted.targets[:]
    wanted.targets.extend(targets)
    wanted.window.CopyFrom(seconds(window_s))
    wanted.max_pods = max_pods
    wanted.pods_in_full.CopyFrom(choice_to_proto(in_full))
    return wanted


class Client:
    """A client of one stream."""

    def __init__(self, running: Running, term: int = 0) -> None:
        self.running = running
        self._term = term
        # The stubs of stream-stream calls know no `write`.
        self._call: Any = running.stub.WatchReports()

    async def __aenter__(self) -> Client:
        await self._call.write(pb.WatchReportsRequest(term=self._term))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def acknowledge(self, sequence: int, **wanted: PodChoice) -> None:
        """Acknowledge a report, and name the pods that are wanted by probe."""
        named = [
            pb.WantedPods(probe_id=name, choice=choice_to_proto(choice))
            for name, choice in wanted.items()
        ]
        await self._call.write(pb.WatchReportsRequest(acknowledged=sequence, wanted=named))

    async def half_close(self) -> None:
        """Send no more messages."""
        await self._call.done_writing()

    async def report(self) -> pb.Report:
        """The next report; the stream must not have ended."""
        async with asyncio.timeout(patient(20)):
            report = await self._call.read()
        assert isinstance(report, pb.Report)
        return report

    async def probes(self) -> AsyncGenerator[pb.ProbeReport, None]:
        """The reports on probes, without an end."""
        while True:
            for each in (await self.report()).probes:
                yield each

    async def until(self, accept: Callable[[pb.ProbeReport], object]) -> pb.ProbeReport:
        """The next report on a probe that is accepted."""
        async with asyncio.timeout(patient(20)), contextlib.aclosing(self.probes()) as found:
            async for each in found:
                if accept(each):
                    return each
        raise AssertionError

    async def summary(self, name: str = "p") -> pb.ProbeReport:
        """The next report on a probe with a summary."""
        return await self.until(lambda each: each.id == name and each.HasField("summary"))


def client(running: Running) -> Client:
    """A new client."""
    return Client(running)


def packets(report: pb.ProbeReport) -> int:
    """The number of packets in all pods' windows."""
    return summary_from_proto(report.summary).merged.stage("rx.total").histogram.count


def in_full(report: pb.ProbeReport) -> list[str]:
    """The UIDs of the pods in full."""
    return [pod.pod_uid for pod in report.pods]


async def measured(running: Running, *of_slots: Measurement) -> None:
    """Have these measured, by slot, and read."""
    for slot, measurement in enumerate(of_slots):
        running.engine.measure(measurement, slot=slot)
    await next_reading(running.engine)


async def test_a_summary_comes_each_interval_and_has_the_whole_window(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A), container(B))))
    async with client(running) as stream:
        await measured(running, samples(100, 200), samples(300))
        first = await stream.until(lambda each: packets(each) == 3)
        await measured(running, samples(400))
        later = await stream.until(lambda each: packets(each) == 4)
    assert not first.targets
    assert first.begin.ToNanoseconds() < first.end.ToNanoseconds()
    assert first.end.ToNanoseconds() < later.end.ToNanoseconds()
    summary = summary_from_proto(later.summary)
    assert summary.verdicts == {"InsufficientData": 2}
    assert [score.pod_uid for score in summary.scores] == [A, B]
    assert in_full(later) == [A, B]
    pod = pod_from_proto(later.pods[0])
    assert (pod.name, pod.containers, pod.ended) == ("pod-0", ("c0",), False)
    assert pod.report.stages[0].count == 3


@pytest.mark.parametrize("node_figures", [False, True])
async def test_cgroups_that_a_pod_waited_for_have_identities_and_paths_with_figures_of_nodes(
    running: Running, tmp_path: Path, *, node_figures: bool
) -> None:
    path = f"/kubepods/pod{B}/{16 * '0123'}"
    (tmp_path / path[1:]).mkdir(parents=True)
    cgroup_id = os.stat(tmp_path / path[1:]).st_ino
    running.agent.readings.cgroups = KnownCgroups(Hierarchy(str(tmp_path)))
    wanted = windowed(container(A))
    wanted.modules.append("sched")
    wanted.node_figures = node_figures
    await running.stub.Apply(state(wanted))
    waits = Measurement(counters={f"waitedForCgroup.{cgroup_id}": 5, "waitedForCgroup.4": 9})
    async with client(running) as stream:
        await measured(running, samples(100) + waits)
        report = await stream.until(lambda each: packets(each) == 1)
    assert pod_from_proto(report.pods[0]).report.cgroups == (
        Cgroup(
            cgroup_id,
            pod_uid=B,
            container_id=16 * "0123",
            path=path if node_figures else "",
        ),
    )


async def test_a_probe_without_a_window_is_reported_beside_it_as_before(running: Running) -> None:
    plain = probe("plain")
    del plain.targets[:]
    plain.targets.append(container(A))
    await running.stub.Apply(state(windowed(container(A)), plain))
    async with client(running) as stream:
        await measured(running, samples(100))
        delta = await stream.until(lambda each: each.id == "plain" and each.targets[0].stages)
        assert packets(await stream.summary()) == 1
    assert not delta.HasField("summary")


async def test_probes_of_one_interval_share_a_message(running: Running) -> None:
    probes = [windowed(container(A), name=f"p{number}") for number in range(5)]
    await running.stub.Apply(state(*probes))
    async with client(running) as stream:
        async with asyncio.timeout(patient(20)):
            while len(together := (await stream.report()).probes) < 5:
                pass
    assert [each.id for each in together] == [each.id for each in probes]
    assert all(each.HasField("summary") for each in together)


async def test_a_summary_without_pods_says_so(running: Running) -> None:
    await running.stub.Apply(state(windowed()))
    async with client(running) as stream:
        summary = summary_from_proto((await stream.summary()).summary)
    assert (summary.pods, summary.scores, summary.unobserved_ns) == (0, (), 0)


async def test_two_containers_are_one_pod(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A, 0), container(A, 1))))
    async with client(running) as stream:
        await measured(running, samples(100), samples(200, 300))
        report = await stream.until(lambda each: packets(each) == 3)
    (pod,) = map(pod_from_proto, report.pods)
    assert pod.containers == ("c0", "c1")
    assert pod.report.stages[0].count == 3


async def test_a_pod_that_has_ended_stays_in_the_window(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A), container(B))))
    async with client(running) as stream:
        await measured(running, samples(100), samples(200))
        await stream.until(lambda each: packets(each) == 2)
        running.engine.measure(samples(300), slot=0)
        await running.stub.Apply(state(windowed(container(B)), generation=2))
        report = await stream.until(lambda each: any(pod.ended for pod in each.pods))
    assert packets(report) == 3
    assert {pod.pod_uid: pod.ended for pod in report.pods} == {A: True, B: False}
    assert [pod.name for pod in report.pods if pod.ended] == ["pod-0"]


async def test_the_last_pod_of_a_node_has_its_last_interval_in_the_window(
    running: Running,
) -> None:
    await running.stub.Apply(state(windowed(container(A))))
    async with client(running) as stream:
        await measured(running, samples(100))
        await stream.until(lambda each: packets(each) == 1)
        running.engine.measure(samples(300), slot=0)
        await running.stub.Apply(state(windowed(), generation=2))
        report = await stream.until(lambda each: packets(each) == 2)
        (pod,) = map(pod_from_proto, report.pods)
        assert (pod.name, pod.ended) == ("pod-0", True)
        # Nothing is measured any more, and the window goes on.
        last = report.end.ToNanoseconds()
        await stream.until(lambda each: packets(each) == 2 and each.end.ToNanoseconds() > last)


async def test_a_pod_whose_containers_are_gone_has_ended(
    running: Running, containers: Containers
) -> None:
    await running.stub.Apply(state(windowed(container(A, 0), container(A, 1), container(B))))
    first, second = (running.agent._reconciler.desired.targets[n][1].selector for n in (0, 1))
    async with client(running) as stream:
        containers.gone.add(first)
        status = await stream.until(lambda each: "has exited" in str(each.summary.statuses))
        assert not any(pod.ended for pod in status.pods)
        containers.gone.add(second)
        report = await stream.until(lambda each: any(pod.ended for pod in each.pods))
    assert {pod.pod_uid: pod.ended for pod in report.pods} == {A: True, B: False}


async def test_figures_of_the_node_come_only_if_they_are_wanted(running: Running) -> None:
    with_node, without = (windowed(container(A), name=name) for name in ("with", "without"))
    with_node.node_figures, without.node_figures = True, False
    await running.stub.Apply(state(with_node, without))
    running.engine.node = NodeMeasurement(counters={"softnetDropped": 3})
    await next_reading(running.engine)
    async with client(running) as stream:
        shown = await stream.until(lambda each: each.id == "with" and each.node.counters)
        assert shown.node.counters == {"softnetDropped": 3}
        assert not (await stream.summary("without")).HasField("node")


async def test_of_many_stages_of_a_node_the_costliest_fit_beside_a_summary(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latencyprobe_agent.serving.summary_messages._NODE_BYTES", 200)
    wanted = windowed(container(A))
    wanted.node_figures = True
    await running.stub.Apply(state(wanted))
    stages = {
        NodeStage("rx.total", f"eth{n}"): samples(10**n).stage("rx.total") for n in range(2, 9)
    }
    running.engine.node = NodeMeasurement(stages, {"softnetDropped": 3})
    await next_reading(running.engine)
    async with client(running) as stream:
        shown = await stream.until(lambda each: each.node.stages)
    assert shown.node.counters == {"softnetDropped": 3}
    assert 0 < len(shown.node.stages) < len(stages)
    assert shown.node.stages[0].detail == "eth8"


# The pods in full


async def test_the_pods_in_full_are_those_of_the_probe_until_the_client_wants_others(
    running: Running,
) -> None:
    pods = [container(uid) for uid in (A, B, C)]
    await running.stub.Apply(state(windowed(*pods, in_full=PodChoice(1))))
    async with client(running) as stream:
        await measured(running, samples(10), samples(10**6), samples(10**7))
        report = await stream.until(lambda each: packets(each) == 3)
        assert [score.pod_uid for score in report.summary.scores] == [C, B, A]
        assert in_full(report) == [C]
        await stream.acknowledge(1, p=PodChoice(3, report.summary.scores[1].score))
        assert in_full(await stream.until(lambda each: len(each.pods) == 2)) == [C, B]


async def test_wanted_pods_that_a_summary_lacked_follow_at_once_in_a_report_of_their_own(
    running: Running,
) -> None:
    pods = [container(uid) for uid in (A, B, C)]
    await running.stub.Apply(state(windowed(*pods, in_full=PodChoice(1), interval_s=1)))
    async with client(running) as stream:
        running.engine.measure(samples(10**6), slot=2)
        report = await stream.summary()
        assert in_full(report) == [C]
        await stream.acknowledge(2, p=EVERY_POD)
        following = await stream.until(lambda _: True)
        assert not following.HasField("summary")
        assert (following.id, following.begin, following.end) == ("p", report.begin, report.end)
        assert sorted(in_full(following)) == [A, B]
        await stream.acknowledge(3, p=PodChoice(2))
        # Both were sent already.
        assert (await stream.until(lambda _: True)).HasField("summary")


async def test_a_new_stream_begins_with_the_probes_choice_again(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A), in_full=NO_POD)))
    async with client(running) as stream:
        assert in_full(await stream.summary()) == []
        await stream.acknowledge(1, p=EVERY_POD)
        await stream.until(lambda each: in_full(each) == [A])
    async with client(running) as again:
        assert in_full(await again.summary()) == []


async def test_a_pod_that_becomes_the_worst_is_in_full_in_the_next_report(
    running: Running,
) -> None:
    pods = [container(uid) for uid in (A, B)]
    await running.stub.Apply(state(windowed(*pods, window_s=0.1, in_full=PodChoice(1))))
    async with client(running) as stream:
        for slot, uid in ((0, A), (1, B), (0, A)):
            running.engine.measure(samples(10**7), slot=slot)
            report = await stream.until(lambda each: packets(each) == 1)
            assert in_full(report) == [uid]


async def test_equal_scores_are_ordered_by_uid_and_limited(running: Running) -> None:
    pods = [container(uid) for uid in reversed(UIDS)]
    await running.stub.Apply(state(windowed(*pods, max_pods=4, in_full=PodChoice(2))))
    async with client(running) as stream:
        report = await stream.summary()
    ordered = sorted(UIDS, reverse=True)
    assert [score.pod_uid for score in report.summary.scores] == ordered[:4]
    assert in_full(report) == ordered[:2]
    assert summary_from_proto(report.summary).pods == len(UIDS)


async def test_pods_that_exceed_a_message_follow_in_others(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("reports", "parts"):
        monkeypatch.setattr(f"latencyprobe_agent.serving.{module}.MESSAGE_BYTES", 1500)
    await running.stub.Apply(state(windowed(*map(container, UIDS))))
    async with client(running) as stream:
        report = await stream.summary()
        received, parts = set(in_full(report)), 1
        assert 0 < len(received) < len(UIDS)
        while len(received) < len(UIDS):
            part = await stream.until(lambda _: True)
            assert not part.HasField("summary")
            assert (part.begin, part.end) == (report.begin, report.end)
            received |= set(in_full(part))
            parts += 1
        assert (await stream.until(lambda _: True)).HasField("summary")
    assert parts > 1


# States of targets


async def test_states_are_sent_once_and_when_they_change(
    running: Running, containers: Containers
) -> None:
    await running.stub.Apply(state(windowed(container(A), container(B))))
    async with client(running) as stream:
        first = await stream.summary()
        states = {status.id: status.state for status in first.summary.statuses}
        assert states == dict.fromkeys((f"{A}/0", f"{B}/0"), pb.TargetStatus.ATTACHED)
        assert not any(status.pids for status in first.summary.statuses)
        assert not (await stream.summary()).summary.statuses
        containers.gone.add(running.agent._reconciler.desired.targets[0][1].selector)
        changed = await stream.until(lambda each: each.summary.statuses)
        (status,) = changed.summary.statuses
        assert (status.id, status.state) == (f"{A}/0", pb.TargetStatus.GONE)
    async with client(running) as again:
        assert len((await again.summary()).summary.statuses) == 2


# Delivery


async def test_after_a_reconnect_the_newest_summary_comes_at_once(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A), interval_s=0.3)))
    running.engine.measure(samples(100), slot=0)
    async with client(running) as stream:
        assert packets(await stream.summary()) == 1
    await running.stub.Apply(state(windowed(container(A), interval_s=600), generation=2))
    async with client(running) as again:
        assert packets(await again.summary()) == 1


async def test_a_new_leader_gets_the_newest_summary_in_its_term_at_once(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A), interval_s=0.3)))
    running.engine.measure(samples(100), slot=0)
    async with client(running) as stream:
        await stream.summary()
    quiet = state(windowed(container(A), interval_s=600), generation=2)
    await running.stub.Apply(quiet)
    async with Client(running, term=8) as leader:
        # Its stream is there before its state.
        assert packets(await leader.summary()) == 1
        quiet.term = 8
        await running.stub.Apply(quiet)
        report = await leader.report()
        while not report.probes:
            report = await leader.report()
        assert (report.term, packets(report.probes[0])) == (8, 1)


def without_window(*targets: pb.Target) -> pb.Probe:
    """A probe whose client keeps the window."""
    wanted = probe()
    del wanted.targets[:]
    wanted.targets.extend(targets)
    return wanted


def in_another_term(before: pb.DesiredState) -> pb.DesiredState:
    """The next leader's state: the same probes with another filter."""
    after = pb.DesiredState(generation=2, term=before.term + 1, lease=before.lease)
    after.probes.extend(before.probes)
    for each in after.probes:
        each.filter.ports.append(443)
    return after


@pytest.mark.parametrize(
    "probes",
    [
        [windowed(*map(container, UIDS))],
        [windowed(container(A), name=f"p{number}") for number in range(5)],
        [without_window(*map(container, UIDS))],
    ],
    ids=["pods in full", "summaries", "figures of an interval"],
)
async def test_parts_of_one_reading_keep_its_state_though_another_comes_into_force(
    running: Running, monkeypatch: pytest.MonkeyPatch, probes: list[pb.Probe]
) -> None:
    """A client counts what an earlier state has measured for that state, and drops it."""
    for module in ("reports", "parts"):
        monkeypatch.setattr(f"latencyprobe_agent.serving.{module}.MESSAGE_BYTES", 300)
    before = state(*probes)
    before.term = 7
    await running.stub.Apply(before)
    running.engine.measure(samples(*range(64, 1 << 14, 1 << 9)))
    await next_reading(running.engine)
    sent: list[pb.Report] = []

    async def send(report: pb.Report) -> None:
        sent.append(report)
        if report.probes and running.agent.term == 7:
            await running.stub.Apply(in_another_term(before))

    pump = asyncio.create_task(ReportPump(running.agent, lambda: None, send).run())
    await until(lambda: any(each.probes and each.term == 8 for each in sent), "the next term")
    pump.cancel()
    await asyncio.wait({pump})
    parts = [(report, part) for report in sent for part in report.probes]
    of_first = [report for report, part in parts if part.end == parts[0][1].end]
    assert len(of_first) > 1
    assert {(each.generation, each.term) for each in of_first} == {(1, 7)}
    assert (sent[-1].generation, sent[-1].term) == (2, 8)


async def test_pods_that_follow_a_summary_have_the_state_that_it_has(running: Running) -> None:
    wanted = windowed(container(A), in_full=NO_POD)
    await running.stub.Apply(state(wanted))
    async with client(running) as stream:
        await stream.summary()
        wanted.filter.ports.append(443)
        wanted.interval.CopyFrom(seconds(600))
        await running.stub.Apply(state(wanted, generation=2))
        await stream.acknowledge(2, p=EVERY_POD)
        report = await stream.report()
        while not (report.probes and report.probes[0].pods):
            report = await stream.report()
    assert report.generation == 1


async def test_a_stream_that_stands_still_costs_no_figures_and_no_memory(
    running: Running,
) -> None:
    await running.stub.Apply(state(windowed(container(A))))
    for _ in range(5):
        await measured(running, samples(100))
    async with client(running) as stream:
        newest = await stream.summary()
        assert packets(newest) == 5


async def test_a_client_that_acknowledges_nothing_gets_all(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A))))
    async with client(running) as stream:
        await stream.half_close()
        for number in range(1, 4):
            await measured(running, samples(100))
            await stream.until(lambda each, number=number: packets(each) == number)  # type: ignore[misc]


async def test_a_report_that_was_never_sent_is_not_acknowledged(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A))))
    async with client(running) as stream:
        await stream.acknowledge(2**64 - 1)
        await measured(running, samples(100))
        await stream.until(lambda each: packets(each) == 1)


async def test_unknown_probes_and_too_many_wishes_are_ignored(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wishes, "MAX_PROBES", 3)
    plain = probe("plain")
    del plain.targets[:]
    await running.stub.Apply(state(windowed(container(A), in_full=NO_POD), plain))
    async with client(running) as stream:
        await stream.summary()
        await stream.acknowledge(1, x=EVERY_POD, plain=EVERY_POD, y=EVERY_POD, p=EVERY_POD)
        await stream.acknowledge(1, x=EVERY_POD)
        for _ in range(3):
            assert in_full(await stream.summary()) == []
        await stream.acknowledge(1, x=EVERY_POD, p=EVERY_POD)
        await stream.until(lambda each: in_full(each) == [A])


async def test_a_flood_of_wishes_does_not_keep_summaries_away(running: Running) -> None:
    await running.stub.Apply(state(windowed(container(A))))
    async with client(running) as stream:

        async def flood() -> None:
            for number in range(10**6):
                await stream.acknowledge(1, p=PodChoice(number % 2))

        flooding = asyncio.create_task(flood())
        for number in range(1, 4):
            await measured(running, samples(100))
            await stream.until(lambda each, number=number: packets(each) == number)  # type: ignore[misc]
        flooding.cancel()
        await asyncio.wait({flooding})


@pytest.mark.parametrize("acknowledges", [True, False])
async def test_figures_of_an_interval_come_again_only_if_the_client_acknowledges(
    running: Running, *, acknowledges: bool
) -> None:
    plain = probe()
    del plain.targets[:]
    plain.targets.append(container(A))
    await running.stub.Apply(state(plain, windowed(container(B), name="w", in_full=NO_POD)))

    def count(each: pb.ProbeReport) -> int:
        return sum(
            sum(stage.histogram.counts) for target in each.targets for stage in target.stages
        )

    async with client(running) as stream:
        first = await stream.report()
        await stream.summary("w")
        await stream.acknowledge(first.sequence if acknowledges else 0, w=EVERY_POD)
        await stream.until(in_full)  # the agent has taken the message in
        running.engine.measure(samples(100, 200), slot=0)
        await stream.until(lambda each: count(each) == 2)
        # More reports follow: the agent knows that this one was sent.
        await stream.until(lambda each: each.id == "p")
    async with client(running) as again:
        running.engine.measure(samples(300), slot=0)
        expected = 3 if acknowledges else 1
        seen, later = 0, 0
        while later < 2:
            report = await again.until(lambda each: each.id == "p")
            seen += count(report)
            later += seen >= expected
        assert seen == expected


async def test_the_time_without_a_lease_is_unobserved(running: Running) -> None:
    wanted = windowed(container(A))
    await running.stub.Apply(state(wanted, lease_s=0.2))
    await measured(running, samples(100))
    await until(lambda: not running.engine.slots, "everything detached")
    await running.stub.Apply(state(wanted, generation=2, lease_s=60))
    async with client(running) as stream:
        report = summary_from_proto((await stream.summary()).summary)
    assert report.merged.stage("rx.total").histogram.count == 1
    assert report.unobserved_ns > 0


async def test_loading_before_the_first_measurement_is_unobserved(running: Running) -> None:
    running.engine.stall = asyncio.Event()
    applied = asyncio.ensure_future(running.stub.Apply(state(windowed(container(A)))))
    await until(lambda: running.engine.stalled == 1, "the modules to be loaded")
    running.engine.stall.set()
    await applied
    async with client(running) as stream:
        report = await stream.summary()
    assert summary_from_proto(report.summary).unobserved_ns > 0


async def test_a_probe_of_the_first_state_after_the_start_differs_from_a_later_one(
    running: Running,
) -> None:
    first = windowed(container(A))
    later = windowed(container(B), name="later")
    await running.stub.Apply(state(first))
    await running.stub.Apply(state(first, later, generation=2))
    async with client(running) as stream:
        of_first = summary_from_proto((await stream.summary("p")).summary)
        of_later = summary_from_proto((await stream.summary("later")).summary)
    assert (of_first.of_first_state, of_later.of_first_state) == (True, False)
    assert of_first.kept_ns
    assert of_later.kept_ns
