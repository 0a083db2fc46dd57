"""The report for people: one waterfall per target, as rich renderables.

A *waterfall* draws each part of a total as a bar that begins where the part before it ended. The
eye follows a packet from left to right. Pure: the caller's console draws the result, and decides on
colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.document import LatencyReport, Node, TargetResult, incomplete
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.patience import Peer, describe_peer
from latencyprobe.domain.pending import PENDING_BY_NAME, Pending, describe
from latencyprobe.domain.report import StageReport, TargetReport
from latencyprobe.domain.stages import BY_NAME, is_duration
from latencyprobe.domain.verdict import Verdict

BAR_WIDTH = 24
MIN_BAR_WIDTH = 6
SHOWN_PIDS = 6
SHOWN_DETAILS = 8
SHOWN_CGROUPS = 4
_QUIET = frozenset({Bottleneck.NONE, Bottleneck.INSUFFICIENT_DATA})


def render_report(report: LatencyReport) -> RenderableType:
    """Render the whole report: node, targets, and stages that could not be measured."""
    parts: list[RenderableType] = [_headline(report)]
    for target in report.targets:
        parts += [Text(), *_render_target(target)]
    parts += _render_node(report.node)
    parts += _render_coverage(report.coverage)
    return Group(*parts)


def render_live(report: LatencyReport) -> RenderableType:
    """Render the live view: the waterfalls, with the figures that fit beside them."""
    parts: list[RenderableType] = [_headline(report)]
    for target in report.targets:
        parts += [_target_line(target), _waterfall(target.report, columns=("p50", "p99"))]
    parts.append(Text("Ctrl-C ends the measurement and prints the report.", style="dim"))
    return Group(*parts)


def _headline(report: LatencyReport) -> Text:
    node = report.node
    return Text.assemble(
        ("latencyprobe", "bold"),
        f" {node.agent_version} on {node.name}, Linux {node.kernel} {node.architecture}, "
        f"cgroup {node.cgroup_version}: {report.duration_seconds:.1f} s",
    )


def _render_target(target: TargetResult) -> Iterator[RenderableType]:
    yield _target_line(target)
    if target.message:
        yield _indented(Text(target.message, style="yellow"))
    if target.report.stages:
        yield _waterfall(target.report, columns=("p50", "p90", "p99", "max"))
    else:
        yield _indented(Text("no packets seen"))
    yield from map(_indented, _missing(target.report.stages))
    yield from map(_indented, _counters("counters", target.report.counters))
    yield from map(_indented, _counters("network namespace", target.report.netns_counters))
    yield from map(_indented, _pending(target.report.pending or {}))
    yield from map(_indented, _peers(target.report.peers))
    yield from map(_indented, _cgroups(target.report.cgroups))
    yield from map(_indented, _verdict(target.report.verdict))


def _indented(line: RenderableType) -> RenderableType:
    return Padding(line, (0, 0, 0, 2), expand=False)


def _target_line(target: TargetResult) -> Text:
    details = []
    if target.pids:
        shown = ", ".join(map(str, target.pids[:SHOWN_PIDS]))
        others = len(target.pids[SHOWN_PIDS:]) + target.omitted_pids
        more = f" and {others} more" if others else ""
        details.append(f"{'pid' if len(target.pids) == 1 else 'pids'} {shown}{more}")
    if target.cgroup:
        details.append(f"cgroup {target.cgroup}")
    return Text.assemble((target.name, "bold cyan"), ("  " + ", ".join(details), "dim"))


def _waterfall(report: TargetReport, *, columns: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="dim")
    table.add_column("stage", no_wrap=True)
    # The one column that may be wrapped is the one that shrinks on a narrow terminal.
    heading = Text("where the time goes", no_wrap=True, overflow="ellipsis")
    table.add_column(heading, min_width=MIN_BAR_WIDTH, max_width=BAR_WIDTH)
    for name in ("share", "count", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rows(report.stages):
        table.add_row(
            Text("  " * row.depth + row.stage.name, style="" if row.depth else "bold"),
            row.bar(_colour(row, report.verdict)),
            row.share(),
            f"{row.stage.count:,}",
            *(_figure(row.stage, column) for column in columns),
        )
    return table


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the waterfall: a stage, and the begin and end of its bar in percent."""

    stage: StageReport
    depth: int = 0
    begin: float = 0.0
    end: float = 0.0

    def bar(self, colour: str) -> RenderableType:
        if self.end <= self.begin:
            return Text()
        return Bar(100, self.begin, self.end, color=colour)

    def share(self) -> str:
        share = self.stage.share_percent
        return "" if share is None else f"{share:.1f}%"


def _colour(row: _Row, verdict: Verdict) -> str:
    if row.stage.name == verdict.stage:
        return "red"
    return "cyan" if row.depth else "blue"


def _rows(stages: Iterable[StageReport]) -> Iterator[_Row]:
    """Yield each total above its indented parts, and single stages in the order of the table."""
    everything = list(stages)
    names = {stage.name for stage in everything}
    for stage in everything:
        whole = BY_NAME[stage.name].within or BY_NAME[stage.name].total
        if whole is None:
            parts = [part for part in everything if BY_NAME[part.name].total == stage.name]
            yield _Row(stage, end=100.0 if parts else 0.0)
            yield from _part_rows(parts, everything)
        elif whole not in names:
            yield _Row(stage)


def _part_rows(parts: Iterable[StageReport], everything: Iterable[StageReport]) -> Iterator[_Row]:
    """Yield parts one after another; a sub-part begins where its part begins."""
    begin = 0.0
    for part in parts:
        end = _end(begin, part)
        yield _Row(part, depth=1, begin=begin, end=end)
        for inner in everything:
            if BY_NAME[inner.name].within == part.name:
                yield _Row(inner, depth=2, begin=begin, end=_end(begin, inner))
        begin = end


def _end(begin: float, part: StageReport) -> float:
    return min(begin + (part.share_percent or 0.0), 100.0)


def _figure(stage: StageReport, column: str) -> str:
    if not stage.count:
        return "-"
    figures = {
        "p50": stage.p50_ns,
        "p90": stage.p90_ns,
        "p99": stage.p99_ns,
        "max": stage.max_ns,
    }
    return format_ns(figures[column])


def _missing(stages: Iterable[StageReport]) -> Iterator[Text]:
    """Yield a line per stage with missing samples: all known losses that are not 0."""
    for stage in stages:
        losses = [
            f"{count:,} {what}"
            for what, count in (
                ("lost", stage.lost),
                ("unmatched", stage.unmatched),
                ("clamped to 0", stage.clamped),
            )
            if count
        ]
        if stage.sampling_ratio < 1:
            losses.append(f"sampled {stage.sampling_ratio:.1%} of the packets")
        if losses:
            name = f"{stage.name} {stage.detail}".rstrip()
            yield Text(f"{name}: {', '.join(losses)}", style="yellow")


def _counters(heading: str, counters: Mapping[str, int]) -> Iterator[Text]:
    seen = [f"{name} {_amount(name, count)}" for name, count in counters.items() if count]
    if seen:
        yield Text(f"{heading}: " + ", ".join(seen))


def _amount(name: str, count: int) -> str:
    return format_ns(count) if is_duration(name) else f"{count:,}"


def _pending(pending: Mapping[str, Pending]) -> Iterator[Text]:
    waiting = [describe(PENDING_BY_NAME[name], each) for name, each in pending.items()]
    if waiting:
        yield Text("pending: " + "; ".join(waiting))


def _peers(peers: Sequence[Peer]) -> Iterator[Text]:
    shown = [f"{each.address} ({describe_peer(each)})" for each in peers]
    if shown:
        yield Text("peers: " + ", ".join(shown))


def _cgroups(cgroups: Sequence[Cgroup]) -> Iterator[Text]:
    shown = [f"{each.id} is {each.name}" for each in cgroups[:SHOWN_CGROUPS] if each.name]
    if shown:
        yield Text("waited for: " + ", ".join(shown))


def _verdict(verdict: Verdict) -> Iterator[Text]:
    style = "bold green" if verdict.bottleneck in _QUIET else "bold red"
    yield Text.assemble("verdict: ", (str(verdict.bottleneck), style), _where(verdict))
    for sentence in verdict.evidence:
        yield Text(f"  - {sentence}")
    yield Text(f"  next: {verdict.next_step}")


def _where(verdict: Verdict) -> str:
    return f" in {verdict.stage}, {verdict.share_percent}%" if verdict.stage else ""


def _render_node(node: Node) -> Iterator[RenderableType]:
    """Yield the measurement of the whole node, if there is one."""
    report = node.report
    if not report:
        return
    yield Text()
    yield Text.assemble((node.name, "bold cyan"), ("  the whole node", "dim"))
    if report.stages:
        yield _node_table(report.stages)
    yield from map(_indented, _missing(report.stages))
    yield from map(_indented, _counters("counters", report.counters))


def _node_table(stages: Sequence[StageReport]) -> Table:
    """Return the stages with the costliest details of each, and the number of omitted ones."""
    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="dim")
    table.add_column("stage", no_wrap=True)
    table.add_column("of", no_wrap=True)
    columns = ("p50", "p90", "p99", "max")
    for heading in ("count", *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in dict.fromkeys(stage.name for stage in stages):
        details = [stage for stage in stages if stage.name == name]
        for stage in details[:SHOWN_DETAILS]:
            figures = (_figure(stage, column) for column in columns)
            table.add_row(name, Text(stage.detail), f"{stage.count:,}", *figures)
        if len(details) > SHOWN_DETAILS:
            table.add_row(name, f"and {len(details) - SHOWN_DETAILS} more")
    return table


def _render_coverage(coverage: Iterable[StageCoverage]) -> Iterator[RenderableType]:
    stages = incomplete(coverage)
    if not stages:
        return
    yield Text()
    yield Text("not fully measured on this machine:", style="bold")
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=True)
    for stage in stages:
        style = "yellow" if stage.state is CoverageState.PARTIAL else "red"
        table.add_row(Text(stage.name), Text(stage.state.lower(), style=style), Text(stage.reason))
    yield table
