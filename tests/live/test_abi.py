"""What C and Python share: a side that changes alone fails the compile, with what it changed."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from pathlib import Path

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.build import compiler, source
from latencyprobe_agent.kernel.build.compiler import CompileError
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.sources import source_folder

COUNTERS = "\tu64 counters[NR_COUNTERS];\n"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("\tu64 sum;\n", "\tu32 sum, added;\n", "struct stage_stats: sum is not the 8 bytes at 0"),
        (COUNTERS, COUNTERS.replace("u64", "u32"), "struct slot_stats: counters is not the"),
        (COUNTERS, f"{COUNTERS}\tu64 added;\n", "struct slot_stats is not"),
        ("\tu32 sample_mask;", "\tu32 added, sample_mask;", "struct config: sample_mask is not"),
        ("\tu64 owners; /* of every", "\tu32 owners; /* of every", "struct netns_entry: owners is"),
        ("\tu16 protocols;", "\tu8 protocols;", "struct slot_filter: protocols is not the 2 bytes"),
        ("char text[HANDLER_NAME_BYTES]", "char text[40]", "struct handler_name is not 32 bytes"),
        ("\tu16 family;", "\tu32 family;", "struct endpoints: family is not the 2 bytes"),
        ("\tu64 reported;\n", "\tu64 reported, again;\n", "struct trace_control: limited is not"),
        ("{ LOST, UNMATCHED,", "{ UNMATCHED, LOST,", "enum missing: LOST is not 0"),
        ("{ MAX, TOP_LESS_MIN,", "{ TOP_LESS_MIN, MAX,", "enum extreme: MAX is not 0"),
        (" ROLE_CLIENT, ROLE_SERVER ", " ROLE_SERVER, ROLE_CLIENT ", "enum role: ROLE_CLIENT is"),
        ("{ FINE, MIDDLE,", "{ FINE, FINER, MIDDLE,", "enum resolution: COARSE is not 2"),
        ("u64, owners_t, cgroups,", "u32, owners_t, cgroups,", "map cgroups: its key is not 8"),
        (
            "u32, u8, filter_ports,",
            "u32, u16, filter_ports,",
            "map filter_ports: its leaf is not 1",
        ),
    ],
)
def test_a_member_that_changes_on_one_side_fails_the_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, message: str
) -> None:
    copy = shutil.copytree(source_folder(), tmp_path / "bpf")
    patch(copy, before, after)
    monkeypatch.setattr(source, "source_folder", lambda: copy)
    modules = (Module.TCP, Module.IRQ, Module.SCHED)
    request = Request(modules, os.stat("/proc/self/ns/net").st_ino, trace=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bcc prefers bytes for its texts
        with pytest.raises(CompileError, match=re.escape(message)):
            compiler.build(request)


def patch(folder: Path, before: str, after: str) -> None:
    """Change the one place in the C sources that has this text."""
    (path,) = (path for path in folder.rglob("*.[ch]") if before in path.read_text())
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
