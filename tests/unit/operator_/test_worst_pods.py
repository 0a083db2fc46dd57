"""The worst pods of a cluster are in the status, and cost few reports in full."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.report import report_on
from latencyprobe.domain.score import SCORE_VERSION, TROUBLED, score_of
from latencyprobe.domain.serialisation import document_of
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.domain.summary import NO_PODS, PodChoice, PodScore, ProbeSummary
from latencyprobe.protocol.summaries import choice_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.asked_pods import AskedPods
from latencyprobe_operator.agents.reported_summaries import reported_summary
from latencyprobe_operator.api.status_fields import PodStatus
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.model import Pod, read_pod
from latencyprobe_operator.observed_state import AgentView, ReportedProbe, ReportSource
from latencyprobe_operator.probes.byte_budget import BURST_BYTES, BYTES_PER_MINUTE
from latencyprobe_operator.probes.choices import NO_TOP, Top, choice_of, top_of, top_of_rows
from latencyprobe_operator.probes.probe import Probe
from latencyprobe_operator.probes.summaries import NodeScore, NodeSummaries
from latencyprobe_operator.probes.worst_pods import WorstPods
from tests.unit.operator_.probe_world import World, report, running
from tests.unit.operator_.status_facts import SLOW_READER, noisy
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.agent import measurement
from tools.fakes.samples import pod, pod_body, probe_body, probe_spec, target_id
from tools.fakes.windows import AgentWindows

LOOP = VirtualTimeLoop
UID = "uid-checkout"
INTERVAL_S = 10
MAX_PODS = 5


class Cluster(World):
    """Nodes whose agents keep windows, and answer choices at once."""

    def __init__(self, nodes: int, pods_of_a_node: int = 3, *, max_pods: int = MAX_PODS) -> None:
        super().__init__()
        self.max_pods = max_pods
        self.pods = {
            f"node-{node:03}": [f"pod-{node:03}-{number}" for number in range(pods_of_a_node)]
            for node in range(nodes)
        }
        self.windows = {node: AgentWindows() for node in self.pods}
        self.now = 1000.0
        """The time for pods that have ended before the operator led."""
        self.asked = {node: AskedPods(lambda: self.now) for node in self.pods}
        self.slow: dict[str, Measurement] = {}
        self.ended: set[str] = set()
        self.mute: set[str] = set()
        """The nodes whose agents do not answer a choice."""
        self.later: dict[str, pb.WantedPods] = {}
        """Choices that go with the acknowledgement of a node's next report."""
        self.full_reports = 0
        self.score_version = SCORE_VERSION
        self.probe: Probe | None = None

    @asynccontextmanager
    async def running(self, **body: Any) -> AsyncIterator[None]:
        """Run the probe over all pods."""
        whole = probe_body(interval=f"{INTERVAL_S}s", report={"maxPods": self.max_pods})
        async with running(self, {**whole, **body}) as self.probe:
            self.show_all()
            yield

    def show_all(self) -> None:
        """List all pods that have not ended."""
        self.show(*self.running_pods())

    def running_pods(self) -> list[Pod]:
        """Return all pods that have not ended."""
        return [
            pod(name, node=node)
            for node, names in self.pods.items()
            for name in names
            if name not in self.ended
        ]

    def want_in_full(self, node: str, probe_uid: str, choice: PodChoice, at_once: bool) -> None:
        super().want_in_full(node, probe_uid, choice, at_once)
        wanted = pb.WantedPods(probe_id=probe_uid, choice=choice_to_proto(choice))
        self.later[node] = wanted
        if at_once:
            self.hear(node)

    def hear(self, node: str) -> None:
        """Let the agent of a node hear the newest choice, and answer."""
        wanted = self.later.pop(node, None)
        answer = self.windows[node].answer(wanted) if wanted else None
        if answer and node not in self.mute:
            asyncio.get_running_loop().call_later(0.05, self.deliver, node, answer)

    def decoded(self, node: str, message: pb.ProbeReport) -> ReportedProbe:
        asked, state = self.asked[node], self.desired.of_node(node)
        asked.ask(state)
        names = {(probe.key.uid, target.id) for probe in state for target in probe.targets}
        return reported_summary(message, names, asked)

    def deliver(self, node: str, message: pb.ProbeReport) -> None:
        assert self.probe
        self.full_reports += len(message.pods)
        self.probe.take_report(node, self.decoded(node, message))

    def summarised(self, node: str) -> pb.ProbeReport:
        """The report of a node: each of its pods took 1 us, or what `slow` has."""
        windows = self.windows[node]
        windows.forget_figures(UID)
        figures = {
            target_id(name): self.slow.get(name, measurement(*[1000] * 200))
            for name in self.pods[node]
        }
        (asked,) = self.desired.of_node(node) or (None,)
        probe = pb.Probe(pods_in_full=choice_to_proto(asked.pods_in_full)) if asked else None
        message = windows.summarised(
            report(figures), probe=probe, ended={f"uid-{name}" for name in self.ended}
        )
        message.summary.score_version = self.score_version
        return message

    async def interval(self) -> None:
        """Let all agents report, and the status be written."""
        for node in self.pods:
            self.deliver(node, self.summarised(node))
            self.hear(node)
        await asyncio.sleep(INTERVAL_S)

    @property
    def names(self) -> list[str]:
        """The names of all pods."""
        return [name for names in self.pods.values() for name in names]

    @property
    def listed(self) -> list[str]:
        """The names of the listed pods."""
        return [row["name"] for row in self.status.get("pods", ())]


async def test_the_worst_pod_is_found_wherever_it_goes() -> None:
    cluster = Cluster(nodes=20)
    async with cluster.running():
        await cluster.interval()
        for node in (3, 17, 4, 0, 19):
            worst = f"pod-{node:03}-1"
            cluster.slow = {worst: measurement(*[9 * 10**6] * 200)}
            for _ in range(2):
                await cluster.interval()
            assert cluster.listed[0] == worst
            assert len(cluster.listed) == MAX_PODS
            assert cluster.status["omittedPods"] == 60 - MAX_PODS


@pytest.mark.parametrize("minutes", [5, pytest.param(60, marks=pytest.mark.thorough)])
async def test_the_worst_pod_is_found_while_figures_take_all_bytes(minutes: int) -> None:
    cluster, chance = Cluster(nodes=30, pods_of_a_node=1, max_pods=20), random.Random(7)
    figures = [noisy(chance) for _ in range(50)]

    async def interval(*worst: str) -> None:
        noise = {name: chance.choice(figures) for name in cluster.names}
        cluster.slow = {**noise, **dict.fromkeys(worst, SLOW_READER)}
        await cluster.interval()

    async with cluster.running():
        for _ in range(minutes * 60 // INTERVAL_S):
            await interval()
        written = cluster.written_bytes
        assert written > BYTES_PER_MINUTE * minutes, "there was more than may be written"
        for node in (17, 4):
            worst = f"pod-{node:03}-0"
            for _ in range(2):
                await interval(worst)
            assert cluster.listed[0] == worst
        assert cluster.written_bytes <= BURST_BYTES + BYTES_PER_MINUTE * (minutes + 1)


async def test_every_pod_of_a_large_cluster_turns_bad_at_once() -> None:
    cluster = Cluster(nodes=300)
    async with cluster.running():
        for _ in range(3):
            await cluster.interval()
        cluster.slow = dict.fromkeys(cluster.names, SLOW_READER)
        for _ in range(3):
            before = cluster.full_reports
            await cluster.interval()
            assert cluster.full_reports - before <= 3 * MAX_PODS
        assert len(cluster.listed) == MAX_PODS
        assert {row["verdict"]["bottleneck"] for row in cluster.status["pods"]} == {"SlowReader"}


async def test_nodes_that_all_pods_have_left_send_few_of_them_in_full() -> None:
    cluster = Cluster(nodes=30)
    async with cluster.running():
        for _ in range(3):
            await cluster.interval()
        cluster.ended = set(cluster.names)
        cluster.show_all()
        for _ in range(4):
            before = cluster.full_reports
            await cluster.interval()
            assert cluster.full_reports - before <= 3 * MAX_PODS
            assert len(cluster.desired.left_by(UID)) == 30
        assert len(cluster.listed) == MAX_PODS
        assert all(row["ended"] for row in cluster.status["pods"])


async def test_a_choice_for_many_left_nodes_counts_them_without_a_copy_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies: list[int] = []
    left_by = DesiredStates.left_by

    def note(states: DesiredStates, probe_uid: str) -> frozenset[str]:
        left = left_by(states, probe_uid)
        copies.append(len(left))
        return left

    states = DesiredStates()
    states.set_probe(probe_spec(), [], left=[f"node-{number}" for number in range(1000)])
    nodes, choices = states.left_by(UID), []
    monkeypatch.setattr(DesiredStates, "left_by", note)
    worst = WorstPods(UID, desired=states, want_in_full=lambda *each: choices.append(each), rows=[])
    await worst.choose(NodeSummaries(), nodes)

    assert len(choices) == 1000
    assert len(copies) <= 2


async def test_other_tasks_go_on_while_the_worst_of_many_pods_are_chosen() -> None:
    scores = tuple(PodScore(1000 - number, f"pod-{number}") for number in range(20))
    summary, summaries, turns = ProbeSummary(scores=scores), NodeSummaries(), []
    for number in range(1000):
        report = ReportedProbe(probe_uid=UID, summary=summary)
        summaries.take(f"node-{number:03}", report, summary, at=0.0, window_s=60.0)
    worst = WorstPods(UID, desired=DesiredStates(), want_in_full=lambda *_: None, rows=[])
    worst.max_pods = 3

    async def note() -> None:
        while True:
            turns.append(worst._top)
            await asyncio.sleep(0)

    noting = asyncio.create_task(note())
    await worst.choose(summaries, [])
    noting.cancel()

    assert len(turns) >= 20
    assert worst._top
    assert [each.place for each in worst._top.pods] == [scores[0]] * 3


async def test_a_new_leader_asks_left_nodes_for_few_pods_in_full() -> None:
    cluster = Cluster(nodes=6, pods_of_a_node=6)
    rows = [row(f"pod-{node:03}-0", f"node-{node:03}", SLOW_READER) for node in range(MAX_PODS)]
    cluster.slow = {each["name"]: SLOW_READER for each in rows}
    for alive in ([], ["pod-005-0"], cluster.pods["node-005"]):
        cluster.ended = {name for name in cluster.names if name not in alive}
        cluster.full_reports = 0
        async with cluster.running(status={"pods": rows}):
            assert len(cluster.desired.left_by(UID)) == 5
            await cluster.interval()
            assert cluster.full_reports <= 3 * MAX_PODS
            assert len(cluster.listed) == MAX_PODS
        cluster.windows = {node: AgentWindows() for node in cluster.pods}


async def test_all_pods_are_in_full_while_they_fit() -> None:
    cluster = Cluster(nodes=5, pods_of_a_node=1)
    async with cluster.running():
        await cluster.interval()
        assert cluster.full_reports == 5
        assert sorted(cluster.listed) == sorted(cluster.names)
        assert cluster.status["omittedPods"] == 0
        assert set(cluster.choices.values()) == {PodChoice(MAX_PODS)}


async def test_equal_scores_are_ordered_by_uid_and_the_order_stays() -> None:
    cluster = Cluster(nodes=20)
    async with cluster.running():
        await cluster.interval()
        first = cluster.listed
        assert first == sorted(cluster.names, reverse=True)[:MAX_PODS]
        for _ in range(3):
            await cluster.interval()
            assert cluster.listed == first


async def test_a_new_leader_has_the_whole_picture_after_one_report_of_each_node() -> None:
    cluster = Cluster(nodes=20)
    cluster.slow = {"pod-007-2": measurement(*[9 * 10**6] * 200)}
    async with cluster.running():
        await cluster.interval()
    status, cluster.windows = cluster.status, {node: AgentWindows() for node in cluster.pods}
    for known in ({}, {"status": status}):
        cluster.status, cluster.full_reports = dict(known.get("status", {})), 0
        async with cluster.running(**known):
            (state,) = cluster.desired.of_node("node-007")
            assert bool(state.pods_in_full.most) is bool(known)
            await cluster.interval()
            assert cluster.listed[0] == "pod-007-2"
            assert len(cluster.listed) == MAX_PODS
            assert cluster.full_reports <= 3 * MAX_PODS
        cluster.windows = {node: AgentWindows() for node in cluster.pods}


async def test_the_status_stands_until_each_node_has_reported_to_a_new_leader() -> None:
    cluster = Cluster(nodes=20)
    cluster.slow = {"pod-019-2": measurement(*[9 * 10**6] * 200)}
    async with cluster.running():
        await cluster.interval()
    before, cluster.windows = cluster.status, {node: AgentWindows() for node in cluster.pods}
    cluster.slow = {"pod-019-1": measurement(*[20 * 10**6] * 200)}
    async with cluster.running(status=before):
        cluster.writes.clear()
        for node in cluster.pods:
            # Their intervals end at different times.
            assert cluster.writes == []
            await asyncio.sleep(0.5)
            cluster.deliver(node, cluster.summarised(node))
            cluster.hear(node)
        await asyncio.sleep(5)
        assert cluster.listed[0] == "pod-019-1"
        assert cluster.status["omittedPods"] == 60 - MAX_PODS


async def test_pods_that_an_agent_does_not_send_are_omitted_and_waited_for_briefly() -> None:
    cluster = Cluster(nodes=20)
    async with cluster.running():
        cluster.mute.add("node-019")
        await cluster.interval()
        assert len(cluster.listed) == MAX_PODS - 3
        assert cluster.status["omittedPods"] == 60 - len(cluster.listed)


async def test_ended_pods_are_listed_until_their_window_has_passed() -> None:
    cluster = Cluster(nodes=2, pods_of_a_node=2)
    async with cluster.running():
        await cluster.interval()
        # One is alone on its node then, and the other node has none left.
        cluster.ended = {"pod-000-0", "pod-001-0", "pod-001-1"}
        cluster.show_all()
        cluster.deliver("node-000", cluster.summarised("node-000"))
        await asyncio.sleep(INTERVAL_S)
        rows = {row["name"]: row.get("ended", False) for row in cluster.status["pods"]}
        assert rows == {
            "pod-000-0": True,
            "pod-000-1": False,
            "pod-001-0": True,
            "pod-001-1": True,
        }
        cluster.pods["node-000"] = ["pod-000-1"]
        for _ in range(7):
            cluster.deliver("node-000", cluster.summarised("node-000"))
            await asyncio.sleep(INTERVAL_S)
        assert cluster.listed == ["pod-000-1"]


async def test_a_probe_whose_pods_have_all_ended_keeps_its_figures_for_the_window() -> None:
    cluster = Cluster(nodes=1, pods_of_a_node=1)
    async with cluster.running():
        await cluster.interval()
        cluster.ended = {"pod-000-0"}
        cluster.show()
        await asyncio.sleep(20)
        assert cluster.status["targets"]["pods"] == 0
        assert [row.get("ended") for row in cluster.status["pods"]] == [True]
        assert "p99" in cluster.status["summary"]
        await asyncio.sleep(60)
        assert cluster.status["pods"] == []
        assert "p99" not in cluster.status["summary"]


async def test_the_last_interval_of_a_nodes_last_pod_is_reported() -> None:
    cluster = Cluster(nodes=2, pods_of_a_node=1)
    async with cluster.running():
        await cluster.interval()
        cluster.ended = {"pod-001-0"}
        cluster.slow = {"pod-001-0": measurement(*[5 * 10**6] * 300)}
        cluster.show_all()
        await cluster.interval()
        (row,) = (row for row in cluster.status["pods"] if row.get("ended"))
        assert row["name"] == "pod-001-0"
        assert {stage["count"] for stage in row["stages"]} == {300}
        assert cluster.status["targets"]["nodes"] == 1
        assert cluster.desired.left_by(UID) == {"node-001"}

        cluster.pods["node-001"] = []
        await cluster.interval()
        await cluster.interval()
        assert cluster.desired.left_by(UID) == set()
        assert cluster.listed == ["pod-000-0"]


async def test_an_agent_that_does_not_answer_is_asked_for_a_window_and_no_longer() -> None:
    cluster = Cluster(nodes=1, pods_of_a_node=1)
    async with cluster.running():
        await cluster.interval()
        cluster.ended = {"pod-000-0"}
        cluster.show()
        await asyncio.sleep(60)
        assert cluster.desired.left_by(UID) == {"node-000"}
        await asyncio.sleep(60)
        assert cluster.desired.left_by(UID) == set()


async def test_a_new_leader_asks_nodes_that_the_pods_of_the_status_have_left() -> None:
    before = Cluster(nodes=2, pods_of_a_node=1)
    async with before.running():
        await before.interval()
    cluster = Cluster(nodes=2, pods_of_a_node=1)
    cluster.ended = {"pod-001-0"}
    rows = [*before.status["pods"], "no row", {"node": "No Name"}, {"node": 7}]
    async with cluster.running(status={**before.status, "pods": rows}):
        assert cluster.desired.left_by(UID) == {"node-001"}
        await cluster.interval()
        ended = {row["name"]: row.get("ended", False) for row in cluster.status["pods"]}
        assert ended == {"pod-000-0": False, "pod-001-0": True}


async def test_a_pod_that_has_ended_before_a_new_leader_came_is_listed_by_its_name() -> None:
    cluster = Cluster(nodes=1, pods_of_a_node=1)
    rows = [{"name": name, "node": "node-000"} for name in ("job-x7", "Not A Name", "alive")]
    async with cluster.running(status={"pods": rows}):
        message = cluster.summarised("node-000")
        for uid, name, ended in (
            ("uid-job", "job-x7", True),
            ("uid-lie", "Not A Name", True),
            ("uid-live", "alive", False),
        ):
            message.pods.add().CopyFrom(message.pods[0])
            message.pods[-1].pod_uid, message.pods[-1].name = uid, name
            message.pods[-1].ended = ended
            message.summary.scores.add(pod_uid=uid, score=5)
        reported = cluster.decoded("node-000", message)
        # The living one and its score. The one without a pod's name may have ended.
        assert reported.unasked == 2
        cluster.deliver("node-000", message)
        await asyncio.sleep(INTERVAL_S)
        assert sorted(cluster.listed) == ["job-x7", "pod-000-0"]


async def test_a_job_that_has_ended_before_a_new_leader_came_is_listed() -> None:
    cluster = Cluster(nodes=2, pods_of_a_node=1)
    async with cluster.running():
        body = pod_body("job-x7", node="node-000")
        body["status"]["phase"] = "Succeeded"
        cluster.show(*cluster.running_pods(), read_pod(body))
        for node in ("node-000", "node-001"):
            message = cluster.summarised(node)
            message.pods.add().CopyFrom(message.pods[0])
            message.pods[-1].pod_uid, message.pods[-1].name = "uid-job-x7", "job-x7"
            message.pods[-1].ended = True
            message.summary.scores.add(pod_uid="uid-job-x7", score=5)
            reported = cluster.decoded(node, message)
            assert reported.unasked == 0
            cluster.deliver(node, message)
        await asyncio.sleep(INTERVAL_S)
        assert sorted(cluster.listed) == ["job-x7", "pod-000-0", "pod-001-0"]


async def test_a_node_that_scores_pods_of_others_costs_itself_alone() -> None:
    cluster = Cluster(nodes=20)
    async with cluster.running():
        await cluster.interval()
        honest = cluster.listed
        lie = cluster.summarised("node-001")
        del lie.summary.scores[:]
        for number in range(100):
            uid = f"uid-pod-{number % 20:03}-{number // 20}"
            lie.summary.scores.add(pod_uid=uid, score=2**53 - 1 - number)
        assert cluster.decoded("node-001", lie).unasked == 0, "they may have ended earlier"
        cluster.now += 85
        reported = cluster.decoded("node-001", lie)
        assert reported.summary
        assert {each.pod_uid for each in reported.summary.scores} == {
            f"uid-pod-001-{number}" for number in range(3)
        }
        assert reported.unasked == 97
        cluster.deliver("node-001", lie)
        await cluster.interval()
        assert cluster.listed == honest


async def test_scores_of_another_version_are_named_as_version_skew() -> None:
    cluster = Cluster(nodes=2, pods_of_a_node=2)
    async with cluster.running():
        message = cluster.summarised("node-001")
        message.summary.score_version = SCORE_VERSION + 1
        for score, each in zip(message.summary.scores, message.pods, strict=True):
            score.score = each.score = 7
        cluster.deliver("node-000", cluster.summarised("node-000"))
        cluster.deliver("node-001", message)
        await asyncio.sleep(INTERVAL_S)
        (node,) = cluster.status["nodes"]
        assert (node["name"], node["state"]) == ("node-001", "Partial")
        assert f"scores of version {SCORE_VERSION + 1}" in node["message"]
        # All fit.
        assert sorted(cluster.listed) == sorted(cluster.names)
        assert cluster.status["omittedPods"] == 0
        assert cluster.condition("Covered") == ("True", "FullyCovered")
        await cluster.interval()
        assert cluster.status["nodes"] == []


async def test_nodes_that_all_make_scores_of_another_version_list_pods() -> None:
    cluster = Cluster(nodes=50)
    cluster.score_version = SCORE_VERSION + 1
    async with cluster.running():
        for _ in range(4):
            before = cluster.full_reports
            await cluster.interval()
            assert cluster.full_reports - before <= 3 * MAX_PODS
        assert len(cluster.listed) == MAX_PODS
        assert len({choice for choice in cluster.choices.values() if choice.most}) == 1
        assert sorted({each.min_score for each in cluster.choices.values()}) == [0]
        assert len(cluster.status["nodes"]) == 50

        cluster.score_version = SCORE_VERSION
        worst = "pod-049-1"
        cluster.slow = {worst: SLOW_READER}
        for _ in range(2):
            await cluster.interval()
        assert cluster.listed[0] == worst
        assert cluster.status["nodes"] == []


async def test_a_few_nodes_with_other_scores_list_their_worst_pod() -> None:
    cluster = Cluster(nodes=50)
    async with cluster.running():
        for _ in range(4):
            for node in cluster.pods:
                cluster.score_version = SCORE_VERSION + (node == "node-000")
                cluster.slow = {"pod-000-2": SLOW_READER}
                cluster.deliver(node, cluster.summarised(node))
                cluster.hear(node)
            await asyncio.sleep(INTERVAL_S)
        assert cluster.listed[0] == "pod-000-2"


async def test_stages_and_causes_of_a_newer_agent_are_named_as_version_skew() -> None:
    cluster = Cluster(nodes=2, pods_of_a_node=1)
    async with cluster.running():
        message = cluster.summarised("node-001")
        for name in ("rx.new", "\x1b[2J"):
            message.summary.stages.add(name=name, sampling_ratio=1)
        message.summary.waiting_ns["NewCause"] = 5
        message.summary.verdicts["NewVerdict"] = 1
        cluster.deliver("node-000", cluster.summarised("node-000"))
        cluster.deliver("node-001", message)
        await asyncio.sleep(INTERVAL_S)
        (node,) = cluster.status["nodes"]
        assert (node["name"], node["state"]) == ("node-001", "Partial")
        assert node["message"].endswith(
            "measures NewCause, NewVerdict, \\x1b[2J and 1 more, "
            "which this operator does not know; upgrade the operator"
        )
        assert sorted(cluster.listed) == sorted(cluster.names)
        await cluster.interval()
        assert cluster.status["nodes"] == []


async def test_figures_of_a_newer_agent_are_shown_in_rows_and_named_as_version_skew() -> None:
    cluster = Cluster(nodes=1, pods_of_a_node=2)
    async with cluster.running():
        message = cluster.summarised("node-000")
        message.summary.counters["teleports"] = 12
        for each in message.pods:
            each.counters["teleports"] = 6
            each.counters["\x1b[2J"] = 6
            each.pending.add(kind="unsignedForms", count=3, sockets=2)
        cluster.deliver("node-000", message)
        await asyncio.sleep(INTERVAL_S)
        for row in cluster.status["pods"]:
            assert row["counters"]["teleports"] == 6
            assert "\\x1b[2J" not in row["counters"]
            assert row["pending"]["unsignedForms"]["count"] == 3
        (node,) = cluster.status["nodes"]
        assert node["state"] == "Partial"
        assert node["message"].endswith(
            "measures \\x1b[2J, teleports, unsignedForms, which this operator does not know; "
            "upgrade the operator"
        )


async def test_covered_stages_of_a_newer_agent_are_named_as_version_skew() -> None:
    class Newer(Cluster):
        def agent(self, node: str) -> AgentView:
            return replace(super().agent(node), version="9.0", unknown=("rx.new",))

    cluster = Newer(nodes=1)
    async with cluster.running():
        await cluster.interval()
        (node,) = cluster.status["nodes"]
        assert node["message"] == (
            "agent 9.0 measures rx.new, which this operator does not know; upgrade the operator"
        )


async def test_a_gap_between_a_nodes_reports_is_unobserved_until_it_leaves_the_window() -> None:
    cluster = Cluster(nodes=2)
    async with cluster.running():
        await cluster.interval()
        for node, late_s in (("node-000", 0), ("node-001", 8)):
            message = cluster.summarised(node)
            message.begin.seconds += late_s
            reported = cluster.decoded(node, message)
            assert cluster.probe
            cluster.probe.take_report(node, reported)
        await asyncio.sleep(INTERVAL_S)
        assert cluster.status["summary"]["unobservedSeconds"] == 8
        (node,) = cluster.status["nodes"]
        assert (node["name"], node["state"]) == ("node-001", "Partial")
        assert node["message"].startswith("8s of the window were not observed: ")
        for _ in range(8):
            await cluster.interval()
        assert cluster.status["nodes"] == []
        assert "unobservedSeconds" not in cluster.status["summary"]


@pytest.mark.parametrize(("late_s", "unobserved_s"), [(5, 15), (45, 50), (70, 50)])
async def test_a_restarted_agent_leaves_unobserved_time(late_s: int, unobserved_s: int) -> None:
    cluster = Cluster(nodes=1)
    async with cluster.running():
        assert cluster.probe
        for instance, away_s in (("first", 0), ("second", late_s)):
            await asyncio.sleep(away_s)
            message = cluster.summarised("node-000")
            message.begin.seconds += away_s
            message.end.seconds += away_s
            reported = cluster.decoded("node-000", message)
            source = ReportSource(instance, 1)
            cluster.probe.take_report(
                "node-000",
                ReportedProbe(
                    probe_uid=UID,
                    summary=reported.summary,
                    pods=reported.pods,
                    span=reported.span,
                    source=source,
                ),
            )
            await asyncio.sleep(INTERVAL_S)
        assert cluster.status["nodes"][0]["message"] == (
            f"{unobserved_s}s of the window were not observed: the agent was restarted"
        )


node_scores = st.lists(
    st.builds(
        NodeScore,
        st.builds(PodScore, st.integers(0, 3), st.uuids().map(str)),
        st.sampled_from("abcdefgh"),
    ),
    max_size=40,
    unique_by=lambda each: each.place.pod_uid,
)


@given(node_scores, node_scores, st.integers(1, 10))
def test_the_choices_bring_the_worst_pods_and_few_others(
    earlier: list[NodeScore], scores: list[NodeScore], max_pods: int
) -> None:
    nodes = sorted({each.node for each in scores})
    before = top_of(earlier, max_pods, NO_TOP, nodes)
    top = top_of(scores, max_pods, before, nodes)
    expected = sorted(scores, reverse=True)[:max_pods]
    assert list(top.pods) == expected

    chosen: list[PodScore] = []
    for node in nodes:
        choice = choice_of(node, top, pods=len(scores), nodes=len(nodes), max_pods=max_pods)
        own = sorted((each.place for each in scores if each.node == node), reverse=True)
        chosen += choice.of(own)
    assert {each.place for each in expected} <= set(chosen)
    assert len(chosen) <= 3 * max_pods


def test_scores_that_vary_a_little_make_no_new_choice() -> None:
    def top(score: int, before: Top = NO_TOP) -> Top:
        return top_of([NodeScore(PodScore(score, "pod"), "n")], 1, before)

    def choice(found: Top) -> PodChoice:
        return choice_of("n", found, pods=1000, nodes=100, max_pods=1)

    first = top(10_000)
    assert first.min_score < 10_000
    for score in (9_500, 10_400, 9_900):
        again = top(score, first)
        assert (again.threshold, choice(again)) == (score, choice(first))
    for score in (8_000, 13_000, 0):
        another = top(score, first)
        assert choice(another) != choice(first)
        assert another.min_score <= score


def test_a_node_whose_pods_come_and_go_among_the_worst_is_asked_once() -> None:
    nodes = [f"n{number}" for number in range(100)]
    top, choices = NO_TOP, set()
    for interval in range(10):
        scores = [
            NodeScore(
                PodScore(1000 if index % 2 == interval % 2 else 10, f"p{index}"), nodes[index]
            )
            for index in range(8)
        ]
        top = top_of(scores, 4, top, nodes)
        if interval:
            choices.add(tuple(choice_of(n, top, pods=800, nodes=100, max_pods=4) for n in nodes))
    assert len(choices) == 1
    assert sum(each.most for each in choices.pop()) == 8

    other = [NodeScore(PodScore(1000, f"q{index}"), nodes[50 + index]) for index in range(4)]
    top = top_of(other, 4, top, nodes)
    assert {top.asked[node] for node in nodes[50:54]} == {1}
    assert sum(top.asked.values()) == 12
    assert top_of(other, 4, top, nodes[50:]).asked == top.by_node


def test_without_scores_a_large_cluster_sends_no_pod_in_full() -> None:
    assert choice_of("n", None, pods=1000, nodes=100, max_pods=20) == NO_PODS
    assert choice_of("n", None, pods=20, nodes=20, max_pods=20) == PodChoice(20)
    assert choice_of("n", None, pods=1000, nodes=3, max_pods=20) == PodChoice(20)


def row(name: str, node: str, measured: Measurement) -> Mapping[str, Any]:
    """A pod's row in a status."""
    found = report_on(measured, DEFAULT_MODULES)
    return document_of(
        PodStatus(
            name=name,
            node=node,
            containers=(),
            verdict=found.verdict,
            stages=found.stages,
            counters=found.counters,
            netns_counters={},
        )
    )


@pytest.mark.parametrize("measured", [NOTHING, measurement(*[1000] * 200), SLOW_READER])
def test_an_earlier_status_has_the_scores_of_its_pods(measured: Measurement) -> None:
    top = top_of_rows([row("a", "n", SLOW_READER), row("b", "m", measured)])
    assert top
    assert top.threshold == score_of(report_on(measured, DEFAULT_MODULES))
    assert top.by_node == {"n": 1, "m": 1}
    assert top.threshold < TROUBLED or measured is SLOW_READER


@pytest.mark.parametrize(
    "rows", [[], [{}], [{"name": "a", "node": "n", "stages": 7}], ["a"], [None]]
)
def test_an_earlier_status_without_scores_says_nothing(rows: list[Any]) -> None:
    assert top_of_rows(rows) is None


def test_a_top_of_no_pods_asks_for_none() -> None:
    assert top_of([], 20) == Top(0, {}, ())
