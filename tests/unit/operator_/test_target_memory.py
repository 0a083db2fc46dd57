"""The memory that the operator takes for the targets of one agent, beside that for their pods."""

from __future__ import annotations

import gc
import tracemalloc

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.agent_facts import AgentFacts
from latencyprobe_operator.agents.messages import targets_by_probe
from latencyprobe_operator.agents.misreports import Misreports
from latencyprobe_operator.agents.sent_states import SentStates
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.model import read_pod
from tools.fakes.samples import pod_body, probe_spec

NODE = "node-a"
PODS = 1000
# Each is an object of its own, in a few indices. The id alone would take 163 bytes.
MOST_BYTES_OF_A_POD = 300


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
