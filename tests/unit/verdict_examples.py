"""Examples of verdicts for docs/verdicts.md, made from recorded situations.

Causes that no situation has are shown by made-up figures, and say so.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    StageMeasurement,
)
from latencyprobe.domain.verdict import Verdict
from latencyprobe.domain.verdict import judge as judge_figures
from tests.live.situations.recording import load
from tests.live.situations.runner import judge
from tests.live.situations.situation import End

DOCUMENT = Path(__file__).parents[2] / "docs" / "verdicts.md"
_COMMAND = "LATENCYPROBE_WRITE_GOLDEN=1 pytest tests/unit/test_verdict_examples.py"
_BEGIN, _END = f"<!-- examples: `{_COMMAND}` -->\n", "<!-- end of examples -->\n"
_COLUMNS = 118
_MS = 10**6


class Recorded(NamedTuple):
    """One end of a situation. `about`: the part of the cause that it shows, if that has two."""

    situation: str
    end: End
    about: str = ""


# In the order of the document's sections.
RECORDED = {
    Bottleneck.SLOW_READER: (Recorded("reader_that_never_reads", End.SERVER),),
    Bottleneck.CPU_THROTTLED: (Recorded("cpu_quota", End.SERVER),),
    Bottleneck.NOISY_NEIGHBOUR: (Recorded("hog_of_another_cgroup_with_sched", End.SERVER),),
    Bottleneck.SELF_CONTENTION: (Recorded("own_threads_too_many_with_sched", End.SERVER),),
    Bottleneck.CPU_CONTENTION: (Recorded("hog_of_another_cgroup", End.SERVER),),
    Bottleneck.ACCEPT_QUEUE: (Recorded("single_synchronous_worker", End.SERVER),),
    Bottleneck.APPLICATION: (Recorded("io_uring", End.SERVER),),
    Bottleneck.DNS: (
        Recorded("name_server_with_a_slow_upstream", End.CLIENT),
        Recorded("name_server_without_replies", End.CLIENT, "no reply"),
    ),
    Bottleneck.PEER: (Recorded("reader_that_never_reads", End.CLIENT),),
    Bottleneck.PACKET_LOSS: (Recorded("loss_of_2_5_percent", End.CLIENT),),
    Bottleneck.CONNECT_FAILURES: (Recorded("refused_connects", End.CLIENT),),
    Bottleneck.DROPS: (Recorded("dns_query_dropped_on_the_node", End.CLIENT),),
    Bottleneck.HELD_BACK: (Recorded("body_waits_for_a_delayed_ack", End.CLIENT),),
    Bottleneck.RECEIVE_WINDOW: (Recorded("receive_buffer_of_8_kb", End.CLIENT),),
    Bottleneck.CONGESTION: (Recorded("slow_start_after_idle", End.CLIENT),),
    Bottleneck.NETWORK: (
        Recorded("rtt_growing_from_2_to_50_ms", End.CLIENT, "a queue"),
        Recorded("rtt_of_30_ms_from_the_start", End.CLIENT, "distance"),
    ),
    Bottleneck.QDISC_BACKLOG: (Recorded("bandwidth_annotation", End.SERVER),),
    Bottleneck.HOST_PATH: (Recorded("thousands_of_rules", End.CLIENT),),
    Bottleneck.NONE: (Recorded("idle_pool", End.CLIENT),),
    Bottleneck.INSUFFICIENT_DATA: (Recorded("unix_sockets", End.CLIENT),),
}


def _stages(**mean_ms: int) -> Measurement:
    """200 packets that take this long in these stages."""
    stages = {
        name.replace("_", ".", 1): StageMeasurement(Histogram.of([ms * _MS] * 200))
        for name, ms in mean_ms.items()
    }
    return Measurement(stages)


MADE_UP = {
    Bottleneck.NODE_STEAL: (
        _stages(rx_stack=1, rx_socket=11, rx_total=12)
        + Measurement(counters={"readerDelayNs": 2000 * _MS}),
        NodeMeasurement(counters={"cpuTimeNs": 100_000 * _MS, "cpuStealNs": 40_000 * _MS}),
    ),
    Bottleneck.DRIVER: (_stages(tx_driver=9, tx_stack=2, tx_total=11), NOTHING_OF_THE_NODE),
    Bottleneck.SOFTIRQ_BACKLOG: (
        _stages(rx_softirq=9, rx_stack=2, rx_total=11),
        NOTHING_OF_THE_NODE,
    ),
}


def verdicts() -> Iterator[tuple[Bottleneck, str, Verdict]]:
    """Yield the cause that each example is of, its origin, and the verdict that it has."""
    for cause, recorded in RECORDED.items():
        for each in recorded:
            recording = load(each.situation)
            about = f"{cause}, {each.about}" if each.about else str(cause)
            kernel = ".".join(recording.of(each.end).kernel.split(".")[:2])
            origin = f"`{each.situation}`, from the {each.end}, on {kernel}"
            yield cause, f"**{about}** ({origin}): {recording.truth}", judge(recording.of(each.end))
    for cause, (measurement, node) in MADE_UP.items():
        yield cause, f"**{cause}** (made-up figures)", judge_figures(measurement, node)


def examples() -> str:
    """Return the text of all examples."""
    return "\n".join(f"{origin}\n\n```\n{_shown(found)}\n```\n" for _, origin, found in verdicts())


def documented() -> str:
    """Return the text that the document holds."""
    return _parts()[1]


def write() -> None:
    """Put the examples into the document."""
    before, _, after = _parts()
    DOCUMENT.write_text(f"{before}{_BEGIN}\n{examples()}\n{_END}{after}")


def _parts() -> tuple[str, str, str]:
    before, begin, rest = DOCUMENT.read_text().partition(_BEGIN)
    text, end, after = rest.partition(_END)
    assert begin, f"{DOCUMENT} has no line {_BEGIN}"
    assert end, f"{DOCUMENT} has no line {_END}"
    return before, text, after


def _shown(verdict: Verdict) -> str:
    """Return the lines of `latencyprobe run`."""
    where = f" in {verdict.stage}, {verdict.share_percent}%" if verdict.stage else ""
    lines = (
        f"verdict: {verdict.bottleneck}{where}",
        *(f"  - {each}" for each in verdict.evidence),
        f"  next: {verdict.next_step}",
    )
    return "\n".join(
        textwrap.fill(line, _COLUMNS, subsequent_indent=" " * 4, break_on_hyphens=False)
        for line in lines
    )
