"""The memory that the operator takes for each target, and for each node of a probe."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.stages import DEFAULT_MODULES, stages_of
from latencyprobe.domain.summary import PodScore, ProbeSummary
from latencyprobe.protocol.summaries import summary_from_proto, summary_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator import model
from latencyprobe_operator.agents.agent_facts import AgentFacts
from latencyprobe_operator.agents.messages import targets_by_probe
from latencyprobe_operator.agents.misreports import Misreports
from latencyprobe_operator.agents.sent_states import SentStates
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.model import MAX_TEXTS_BYTES, read_pod
from latencyprobe_operator.observed_state import ReportedProbe, Span
from latencyprobe_operator.probes.summaries import NodeSummaries
from tools.fakes.samples import pod_body, probe_spec

NODE = "node-a"
PODS = 1000
NODES = 100
# Each is an object of its own, in a few indices. The id alone would take 163 bytes.
MOST_BYTES_OF_A_POD = 300
# Of 19 stages with 60 buckets each, the counts of the buckets are 2,280 bytes.
STAGES = [stage.name for stage in stages_of(DEFAULT_MODULES)][:19]
BUCKETS = range(40, 100)
SCORES = 10
MOST_BYTES_OF_A_NODE = 4300


def test_an_attached_pod_takes_little_more_than_its_object_and_its_target() -> None:
    bodies = [pod_body(f"pod-{number}", node=NODE) for number in range(PODS)]
    for number, body in enumerate(bodies):
        body["metadata"]["uid"] = f"0e7c1b1e-8f43-4a5c-9d1f-{number:012x}"
        body["status"]["containerStatuses"][0]["containerID"] = f"containerd://{number:064x}"
    pods = list(map(read_pod, bodies))
    metrics = OperatorMetrics()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        states, sent = DesiredStates(), SentStates(lambda: 1)
        facts = AgentFacts(Misreports(NODE, metrics))
        states.set_probe(probe_spec(), pods)
        state = states.of_node(NODE)
        outgoing = sent.encode(state)
        (probe,) = outgoing.message.probes
        result = pb.ApplyResult(probes=[pb.ProbeStatus(id=probe.id)])
        for target in probe.targets:
            result.probes[0].targets.add(id=target.id, state=pb.TargetStatus.ATTACHED)
        sent.mark_applied()
        answered = targets_by_probe(result, outgoing.sent)
        facts.set_targets(state, answered, outgoing.left_out)
        assert len(probe.targets) == PODS
        del outgoing, result, probe, answered
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (after - before) / PODS < MOST_BYTES_OF_A_POD


def pod_of(*, labels: int = 0, value: str = "", containers: int = 1) -> dict[str, Any]:
    """Return a pod with so many labels and containers, which have names of their own."""
    body = pod_body(
        "a",
        labels={f"{'k' * 240}.org/{number:060}": value for number in range(labels)},
        containers=tuple(f"{number:063}" for number in range(containers)),
    )
    for number, each in enumerate(body["status"]["containerStatuses"]):
        each["containerID"] = f"containerd://{number:064x}"
    return body


@pytest.mark.parametrize("body", [pod_of(labels=128, value="v" * 63), pod_of(containers=2000)])
def test_a_pod_with_more_text_than_is_kept_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_TEXTS_BYTES} are kept"):
        read_pod(body)


@pytest.mark.parametrize(
    "body", [pod_of(labels=40, value="v" * 63), pod_of(containers=75)], ids=["labels", "containers"]
)
def test_the_largest_pod_takes_little_more_than_its_text(body: dict[str, Any]) -> None:
    model._shared_labels.cache_clear()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        pod = read_pod(body)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert pod.uid
    assert after - before < 2 * MAX_TEXTS_BYTES


def test_a_nodes_summary_takes_little_more_than_the_counts_of_its_buckets() -> None:
    uids = tuple(f"0e7c1b1e-8f43-4a5c-9d1f-{number:012x}" for number in range(SCORES))
    histogram = Histogram(dict.fromkeys(BUCKETS, 300), 10**12, 100, 10**9)
    sent = ProbeSummary(
        merged=Measurement({name: StageMeasurement(histogram) for name in STAGES}),
        verdicts={"None": SCORES},
        scores=tuple(PodScore(10**9 + number, uid) for number, uid in enumerate(uids)),
    )
    encoded = summary_to_proto(sent).SerializeToString()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        summaries = NodeSummaries()
        for number in range(NODES):
            _take(summaries, encoded, uids, number)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert summaries.measured == NODES * SCORES
    assert (after - before) / NODES < MOST_BYTES_OF_A_NODE


def _take(summaries: NodeSummaries, encoded: bytes, uids: tuple[str, ...], number: int) -> None:
    """Take in a node's summary as a session has it: by the operator's UIDs."""
    summary = summary_from_proto(pb.ProbeSummary.FromString(encoded))
    scores = tuple(
        PodScore(each.score, uid) for each, uid in zip(summary.scores, uids, strict=True)
    )
    report = ReportedProbe(probe_uid="uid", span=Span(number, number + 10))
    known = replace(summary, scores=scores)
    summaries.take(f"node-{number}", report, known, at=number, window_s=60)
