"""Other tools beside ours: what they say, and the table."""

from __future__ import annotations

import pytest

from bench.bcc_tools import message_in
from bench.other_tools import _outcome
from bench.ratio import Paired

NO_KPROBES = """\
WARNING: Linux version for eBPF program is being overridden with: 397868
create_probe_event: open(/sys/kernel/debug/tracing/kprobe_events): No such file or directory
Traceback (most recent call last):
  File "/usr/sbin/tcprtt-bpfcc", line 229, in <module>
    b.attach_kprobe(event="tcp_rcv_established", fn_name="trace_tcp_rcv")
Exception: Failed to attach BPF program b'trace_tcp_rcv' to kprobe b'tcp_rcv_established'
"""


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            NO_KPROBES,
            "; ".join(line for line in NO_KPROBES.splitlines() if ": " in line and line[0] in "cE"),
        ),
        ("", "it ended without a message"),
        ("x" * 1000, "x" * 400),
    ],
    ids=["kprobe", "nothing", "much"],
)
def test_the_message_of_a_tool_is_its_output_without_its_code(output: str, message: str) -> None:
    assert message_in(output) == message


def test_a_tool_that_does_not_run_has_its_message_and_no_ratio() -> None:
    found = Paired({"ours": [0.9, 0.92]}, [100.0, 100.0])
    nearest = {"ours": "all", "tcprtt": "tcp.rtt"}
    ours, tcprtt = _outcome(nearest, found, {"tcprtt": "no kprobes"}, 0).document["tools"]
    assert ours["median"] == 0.91
    assert tcprtt == {"tool": "tcprtt", "nearest": "tcp.rtt", "refused": "no kprobes"}
