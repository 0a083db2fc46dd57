"""A probe's figures for metrics, from the facts of its status."""

from __future__ import annotations

from collections import Counter

from latencyprobe_operator.api.spec import ProbeKey
from latencyprobe_operator.probe_figures import PERCENTILES, ObjectiveFigures, ProbeSnapshot
from latencyprobe_operator.probes.document import Document
from latencyprobe_operator.probes.facts import ProbeFacts


def snapshot_of(key: ProbeKey, facts: ProbeFacts, document: Document) -> ProbeSnapshot:
    """Return the figures of these facts; the verdict is that of their document."""
    objectives = dict.fromkeys(facts.spec.objectives if facts.spec else ())
    return ProbeSnapshot(
        namespace=key.namespace,
        name=key.name,
        pods=facts.matched_pods,
        nodes=Counter(str(node.state) for node in facts.nodes),
        percentiles_ns={
            name: tuple(measured.histogram.percentiles(*PERCENTILES))
            for name, measured in facts.merged.stages.items()
            if measured.histogram.count
        },
        objectives=tuple(
            ObjectiveFigures(
                objective.name,
                objective.bound.stage,
                objective.bound.percentile,
                objective.bound.max_ns,
                judgement.value_ns,
                str(judgement.outcome),
            )
            for objective, judgement in zip(objectives, facts.objectives, strict=False)
        ),
        verdict=(document.get("summary") or {}).get("bottleneck", ""),
        unobserved_s=facts.unobserved_s,
    )
