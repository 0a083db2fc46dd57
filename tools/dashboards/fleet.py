"""The board of all probes: the worst pods, nodes and stages, and the verdicts over time."""

from __future__ import annotations

from tools.dashboards.panels import Board, Query, figure, graph, rows, variable
from tools.dashboards.queries import NO_BOTTLENECK, STAGE_TIMES, WHOLE, quantile, rate_of

_OWN = 'namespace=~"$namespace"'
_STAGE = f'{_OWN},stage="$stage"'
_PODS = f"latencyprobe_pods{{{_OWN}}}"
_VERDICT = "latencyprobe_operator_probe_verdict"
_OUTCOME = "latencyprobe_operator_objective_outcome"
_PROBE_BOARD = (
    "/d/latencyprobe-probe?${datasource:queryparam}"
    "&var-namespace=${__data.fields.namespace}&var-probe=${__data.fields.probe}"
)


def fleet() -> Board:
    """Return the board."""
    board = Board("fleet", "Fleet", "All LatencyProbes: where the time goes, and for which pods.")
    board.variable(
        variable("namespace", "Namespace", "label_values(latencyprobe_pods, namespace)", multi=True)
    )
    stages = f"label_values({STAGE_TIMES}, stage)"
    board.variable(variable("stage", "Stage", stages, default="rx.total"))
    _now(board)
    _verdicts(board)
    _worst(board)
    _stages(board)
    return board


def _now(board: Board) -> None:
    accused = f'latencyprobe_pods{{{_OWN},verdict!~"{NO_BOTTLENECK}"}}'
    missed = f'{_OUTCOME}{{{_OWN},{_OUTCOME}="missed"}}'
    board.row(
        "Now",
        figure(
            "Pods measured",
            "Pods of all probes. One that two probes select counts twice.",
            Query(f"sum({_PODS})"),
        ),
        figure(
            "Pods with a bottleneck",
            "Pods whose verdict names a cause.",
            Query(f"sum({accused}) or 0 * sum({_PODS})"),
        ),
        figure(
            "Nodes that measure",
            "Nodes with an agent that Prometheus reads.",
            Query("count(count by (node) (latencyprobe_sampling_ratio))"),
        ),
        figure(
            "Objectives missed",
            "Empty without a probe that has objectives.",
            Query(f"sum({missed})"),
        ),
    )


def _of_objective(kind: str) -> str:
    metric = f"latencyprobe_operator_objective_{kind}seconds"
    return f"max by (namespace, probe, objective) ({metric}{{{_OWN}}})"


def _verdicts(board: Board) -> None:
    board.row(
        "Verdicts",
        graph(
            "Pods by verdict",
            "Verdicts on single pods, over the window of their probe.",
            Query(f"sum by (verdict) ({_PODS})", "{{verdict}}"),
            stacked=True,
        ),
        rows(
            "Verdict of each probe",
            "On all pods of the probe together, as in its status. From the operator.",
            Query(f"max by (namespace, probe, {_VERDICT}) ({_VERDICT}{{{_OWN}}} == 1)"),
            columns=["probe", "namespace", _VERDICT],
            link=_PROBE_BOARD,
        ),
        graph(
            "Objectives: percentile by limit",
            "Above 100 % for longer than the objective's `for`, it is missed.",
            Query(f"{_of_objective('')} / {_of_objective('limit_')}", "{{probe}} {{objective}}"),
            unit="percentunit",
        ),
    )


def _worst(board: Board) -> None:
    board.row(
        "Worst pods",
        rows(
            "Pods by p99 of $stage",
            "The 20 worst ones, over the time range. Pods without series of their own share a row:"
            " that of their probe and node. See `spec.metrics.perPod`.",
            Query(
                "topk(20, "
                + quantile(99, rate_of(_STAGE, "namespace", "probe", "pod", "node", over=WHOLE))
                + ")"
            ),
            columns=["probe", "namespace", "pod", "node"],
            value="p99",
            unit="s",
            link=_PROBE_BOARD,
        ),
        graph(
            "p99 of $stage by probe",
            "All pods of a probe together. The ten worst probes.",
            Query(
                f"topk(10, {quantile(99, rate_of(_STAGE, 'namespace', 'probe'))})",
                "{{namespace}}/{{probe}}",
            ),
            unit="s",
        ),
    )


def _stages(board: Board) -> None:
    parts = f'{_OWN},stage!~".*[.]total"'
    board.row(
        "Worst nodes and stages",
        graph(
            "p99 of $stage by node",
            "All measured pods of a node together. The ten worst nodes.",
            Query(f"topk(10, {quantile(99, rate_of(_STAGE, 'node'))})", "{{node}}"),
            unit="s",
        ),
        rows(
            "Stages by time",
            "Seconds that packets and connections spend in a stage, in each second of the time"
            " range. Totals are left out: their parts are here.",
            Query(f"histogram_sum({rate_of(parts, 'stage', over=WHOLE)})"),
            columns=["stage"],
            value="per second",
            unit="s",
        ),
        rows(
            "Stages by p99",
            "Over the time range, all pods together.",
            Query(quantile(99, rate_of(_OWN, "stage", over=WHOLE))),
            columns=["stage"],
            value="p99",
            unit="s",
        ),
    )
