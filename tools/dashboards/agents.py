"""The board of agents and operator: overhead, sampling, coverage and losses."""

from __future__ import annotations

from tools.dashboards.panels import Board, Query, graph, rows, variable
from tools.dashboards.queries import RECENT, WHOLE, quantile, rate_of

_OWN = 'node=~"$node"'
_STATE = "latencyprobe_coverage"


def agents() -> Board:
    """Return the board."""
    board = Board("agents", "Agents", "The agents themselves: their cost and their losses.")
    nodes = "label_values(latencyprobe_sampling_ratio, node)"
    board.variable(variable("node", "Node", nodes, multi=True))
    _overhead(board)
    _coverage(board)
    _losses(board)
    _work(board)
    _operator(board)
    return board


def _by_node(function: str, metric: str) -> str:
    return f"{function} by (node) ({metric}{{{_OWN}}})"


def _rate_by_node(metric: str) -> Query:
    return Query(f"sum by (node) (rate({metric}{{{_OWN}}}[{RECENT}]))", "{{node}}")


def _overhead(board: Board) -> None:
    board.row(
        "Overhead and sampling",
        graph(
            "Cost of the eBPF programs",
            "In cores, with the budget of the node. Measured during one second of ten. 0 means that"
            " there is no figure: it takes CAP_SYS_ADMIN.",
            Query(_by_node("max", "latencyprobe_program_cpu_ratio"), "{{node}}"),
            # 0: no limit.
            Query(
                _by_node("max", "latencyprobe_program_cpu_limit_ratio") + " > 0", "{{node}} budget"
            ),
            unit="percentunit",
        ),
        graph(
            "Sampling ratio",
            "The share of the packets that is measured. Counts are not multiplied by it.",
            Query(_by_node("min", "latencyprobe_sampling_ratio"), "{{node}}"),
            unit="percentunit",
        ),
        graph(
            "Nodes with a module",
            "Nodes on which the programs of a module are attached.",
            Query(f"sum by (module) (latencyprobe_module_loaded{{{_OWN}}})", "{{module}}"),
        ),
    )


def _coverage(board: Board) -> None:
    board.row(
        "Coverage",
        graph(
            "Stages by state",
            "Stages and counters of all nodes. Idle: no probe asks for it.",
            Query(f"count by ({_STATE}) ({_STATE}{{{_OWN}}} == 1)", f"{{{{{_STATE}}}}}"),
            stacked=True,
        ),
        rows(
            "Nodes by stage and state",
            "Active: measured in full. The status of a probe has the reasons of the others.",
            Query(f"count by (stage, {_STATE}) ({_STATE}{{{_OWN}}} == 1)"),
            columns=["stage", _STATE],
            value="nodes",
        ),
        graph(
            "Targets by state",
            "Pods and containers of all probes.",
            Query(f"sum by (state) (latencyprobe_targets{{{_OWN}}})", "{{state}}"),
            stacked=True,
        ),
        graph(
            "Pods without series of their own",
            "Beyond `agent.metrics.maxPods`. They count in the series of their probe.",
            Query(_by_node("sum", "latencyprobe_pods_without_series"), "{{node}}"),
        ),
    )


def _losses(board: Board) -> None:
    missing = f"sum by (node) (rate(latencyprobe_missing_samples_total{{{_OWN}}}[{RECENT}]))"
    samples = f"histogram_count({rate_of(_OWN, 'node')})"
    board.row(
        "Losses",
        graph(
            "Missing samples by samples",
            "Lost, unmatched and clamped ones, for each sample of a stage.",
            Query(f"({missing} or 0 * {samples}) / {samples}", "{{node}}"),
            unit="percentunit",
        ),
        graph(
            "Missed program runs in a second",
            "Events that the kernel kept from a program that was running on that CPU.",
            _rate_by_node("latencyprobe_missed_program_runs_total"),
        ),
        graph(
            "Pods missed",
            "Pods that ended before they could be measured, over the time range.",
            Query(
                f"sum by (node) (increase(latencyprobe_missed_pods_total{{{_OWN}}}[{WHOLE}]))",
                "{{node}}",
            ),
        ),
        graph(
            "Not observed",
            "The longest part of a probe's window that was not measured.",
            Query(_by_node("max", "latencyprobe_unobserved_seconds"), "{{node}}"),
            unit="s",
        ),
    )


def _work(board: Board) -> None:
    apply = "latencyprobe_apply_seconds_bucket"
    board.row(
        "Work",
        graph(
            "Readings of the kernel's maps in a second",
            "At least one in each interval of a probe.",
            _rate_by_node("latencyprobe_engine_reads_total"),
        ),
        graph(
            "Reports in a second",
            "Sent to the operator.",
            _rate_by_node("latencyprobe_reports_sent_total"),
        ),
        graph(
            "Time to put a state in force, p99",
            "Since the start of the agent, compiling included.",
            Query(quantile(99, f"sum by (node, le) ({apply}{{{_OWN}}})"), "{{node}}"),
            unit="s",
        ),
        graph(
            "Refused connections",
            "By reason, over the time range: docs/metrics.md explains each.",
            Query(
                "sum by (reason) "
                f"(increase(latencyprobe_refused_connections_total{{{_OWN}}}[{WHOLE}]))",
                "{{reason}}",
            ),
        ),
    )


def _operator(board: Board) -> None:
    def rate_of_all(metric: str) -> str:
        return f"sum(rate(latencyprobe_operator_{metric}_total[{RECENT}]))"

    def rate(metric: str, legend: str) -> Query:
        return Query(rate_of_all(metric), legend)

    # A node has a series since its first fault. Before that, there are none while reports come in.
    corrupt = f"{rate_of_all('corrupt_reports')} or 0 * {rate_of_all('reports')}"
    end = "certificate_end_timestamp_seconds"
    ends = f"latencyprobe_{end}{{{_OWN}}} or latencyprobe_operator_{end}"
    board.row(
        "Operator",
        graph(
            "Agents by state",
            "The state of the operator's connection to them.",
            Query("sum by (state) (latencyprobe_operator_agents)", "{{state}}"),
            stacked=True,
        ),
        graph(
            "Probes by phase",
            "Of all namespaces. Leaders: 1, unless something is wrong.",
            Query("sum by (phase) (latencyprobe_operator_probes)", "{{phase}}"),
            Query("sum(latencyprobe_operator_leader)", "leaders"),
        ),
        graph(
            "Messages in a second",
            "Reports that came in, statuses that were written, and faults of both.",
            rate("reports", "reports"),
            Query(corrupt, "corrupt reports"),
            rate("status_writes", "status writes"),
            rate("status_write_failures", "failed status writes"),
        ),
        graph(
            "Time until certificates end",
            "The first one to end of each name.",
            Query(f"min by (certificate) ({ends}) - time()", "{{certificate}}"),
            unit="s",
        ),
    )
