"""The board of one probe: its budget by stage, distributions, counters, and pending waits."""

from __future__ import annotations

from tools.dashboards.panels import (
    Board,
    Panel,
    Query,
    distribution,
    figure,
    graph,
    rows,
    variable,
)
from tools.dashboards.queries import (
    RECENT,
    STAGE_TIMES,
    durations,
    mean_by_stage,
    quantile,
    rate_of,
)

_PROBE = 'namespace="$namespace",probe="$probe"'
_NODES = f'{_PROBE},node=~"$node"'
_OWN = f'{_NODES},pod=~"$pod"'
_VERDICT = "latencyprobe_operator_probe_verdict"
_POD_VERDICT = "latencyprobe_verdict"


def probe() -> Board:
    """Return the board."""
    board = Board("probe", "Probe", "One LatencyProbe: each stage of its packets, and the waiting.")
    _variables(board)
    _now(board)
    _budget(board)
    _stages(board)
    _counters(board)
    _pending(board)
    _pods(board)
    return board


def _variables(board: Board) -> None:
    def values(label: str, selector: str) -> str:
        return f"label_values({STAGE_TIMES}{{{selector}}}, {label})"

    of_namespace = 'label_values(latencyprobe_pods{namespace="$namespace"}, probe)'
    board.variable(variable("namespace", "Namespace", "label_values(latencyprobe_pods, namespace)"))
    board.variable(variable("probe", "Probe", of_namespace))
    board.variable(variable("node", "Node", values("node", _PROBE), multi=True))
    board.variable(variable("pod", "Pod", values("pod", _NODES), multi=True))
    board.variable(variable("stage", "Stages", values("stage", _OWN), multi=True))


def _now(board: Board) -> None:
    board.row(
        "Now",
        figure(
            "Verdict",
            "On all pods of the probe together, as in its status. From the operator.",
            Query(f"max by ({_VERDICT}) ({_VERDICT}{{{_PROBE}}} == 1)", f"{{{{{_VERDICT}}}}}"),
        ),
        figure("Pods", "Pods that are measured.", Query(f"sum(latencyprobe_pods{{{_NODES}}})")),
        figure(
            "Received, p99",
            "From the first stage to the application.",
            Query(quantile(99, rate_of(f'{_OWN},stage="rx.total"'))),
            unit="s",
        ),
        figure(
            "Sent, p99",
            "From the application to the end of transmission.",
            Query(quantile(99, rate_of(f'{_OWN},stage="tx.total"'))),
            unit="s",
        ),
        figure(
            "Not observed",
            "The longest part of a node's window that was not measured.",
            Query(f"max(latencyprobe_unobserved_seconds{{{_NODES}}})"),
            unit="s",
        ),
        figure(
            "Objectives missed",
            "Empty if the probe has none.",
            Query(
                "sum(latencyprobe_operator_objective_outcome{"
                f'{_PROBE},latencyprobe_operator_objective_outcome="missed"}})'
            ),
        ),
    )


def _budget(board: Board) -> None:
    board.row(
        "The budget of a packet",
        graph(
            "Received: mean time by stage",
            "The stages of a packet add up to its total: the upper edge is the mean of rx.total.",
            Query(mean_by_stage(_OWN, "rx.total"), "{{stage}}"),
            unit="s",
            stacked=True,
        ),
        graph(
            "Sent: mean time by stage",
            "The upper edge is the mean of tx.total.",
            Query(mean_by_stage(_OWN, "tx.total"), "{{stage}}"),
            unit="s",
            stacked=True,
        ),
    )
    board.row(
        "Percentiles",
        _percentiles("Received", "rx.total"),
        _percentiles("Sent", "tx.total"),
        graph(
            "Connections and answers, p99",
            "Stages that are no part of a packet's total.",
            Query(quantile(99, rate_of(f'{_OWN},stage=~"{durations()}"', "stage")), "{{stage}}"),
            unit="s",
        ),
    )


def _percentiles(title: str, stage: str) -> Panel:
    histograms = rate_of(f'{_OWN},stage="{stage}"')
    return graph(
        f"{title}: percentiles",
        f"Of {stage}.",
        *(
            # All three are of the same histograms: their exemplars are shown once.
            Query(quantile(percentile, histograms), f"p{percentile}", exemplars=percentile == 99)
            for percentile in (50, 90, 99)
        ),
        unit="s",
    )


def _stages(board: Board) -> None:
    board.row(
        "Distributions",
        distribution(
            "$stage",
            "The kernel's own buckets, by the number of samples in a second.",
            # Grafana gives a variable with several values as a pattern, even of one value.
            Query(rate_of(f'{_OWN},stage=~"$stage"'), exemplars=True),
            repeat="stage",
        ),
    )


def _counters(board: Board) -> None:
    def rates(metric: str, label: str) -> Query:
        return Query(f"sum by ({label}) (rate({metric}{{{_OWN}}}[{RECENT}]))", f"{{{{{label}}}}}")

    board.row(
        "Counters",
        graph(
            "Events in a second",
            "Events without a duration, such as retransmits: docs/stages.md explains each.",
            rates("latencyprobe_events_total", "counter"),
        ),
        graph(
            "Counted waiting, seconds in a second",
            "Waiting that is counted as a sum and is no stage.",
            rates("latencyprobe_counted_seconds_total", "counter"),
            unit="s",
        ),
        graph(
            "Dropped packets in a second",
            "By the kernel's reason. Empty without drops.",
            rates("latencyprobe_drops_total", "reason"),
        ),
    )


def _pending(board: Board) -> None:
    board.row(
        "Pending",
        graph(
            "Waiting that has not ended",
            "At the last reading: unread segments, unsent writes, missing answers and so on.",
            Query(f"sum by (kind) (latencyprobe_pending{{{_OWN}}})", "{{kind}}"),
        ),
        graph(
            "Age of the oldest",
            "Of each kind.",
            Query(f"max by (kind) (latencyprobe_pending_oldest_seconds{{{_OWN}}})", "{{kind}}"),
            unit="s",
        ),
    )


def _pods(board: Board) -> None:
    received = rate_of(f'{_OWN},stage="rx.total"', "pod", "node")
    board.row(
        "Pods",
        graph(
            "Pods by verdict",
            "Over the window of the probe.",
            Query(f"sum by (verdict) (latencyprobe_pods{{{_NODES}}})", "{{verdict}}"),
            stacked=True,
        ),
        rows(
            "Verdict of each pod",
            "Of pods with series of their own: see `spec.metrics.perPod`.",
            Query(f"max by (pod, node, {_POD_VERDICT}) ({_POD_VERDICT}{{{_OWN}}} == 1)"),
            columns=["pod", "node", _POD_VERDICT],
        ),
        graph(
            "Received: p99 by pod",
            "The ten worst ones. Pods without series of their own are one series of their node.",
            Query(f"topk(10, {quantile(99, received)})", "{{pod}} {{node}}"),
            unit="s",
        ),
    )
